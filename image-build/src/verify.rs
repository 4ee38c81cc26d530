//! Whether an image is what its manifest says, read from the image alone.

use std::{collections::BTreeSet, fs, io, path::Path};

use crate::{
    initramfs::{self, Member},
    manifest::{self, Entry, Inner, Manifest, ManifestError},
    vmlinuz,
};

/// Kernel options whose absence is a promise: an IP stack, raw frames, network drivers, loading code at run time.
pub(crate) const ABSENT: [&str; 4] = ["CONFIG_INET", "CONFIG_PACKET", "CONFIG_NETDEVICES", "CONFIG_MODULES"];

/// How far to look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Depth {
    /// The sums of the files.
    Sums,
    /// What is in them, too.
    Contents,
}

/// Everything that is wrong with the image in `dir`; nothing when it is good.
pub(crate) fn verify(dir: &Path, depth: Depth) -> Result<Vec<String>, ManifestError> {
    let manifest = Manifest::read(dir)?;
    let mut wrong = files(dir, &manifest);
    // What has another sum is damaged: looking into it would only say so again, less clearly.
    if wrong.is_empty() && depth == Depth::Contents {
        wrong.extend(kernel(dir, &manifest));
        wrong.extend(initramfs(dir, &manifest));
    }
    Ok(wrong)
}

fn files(dir: &Path, manifest: &Manifest) -> Vec<String> {
    let mut wrong = Vec::new();
    for name in [manifest::VMLINUZ, manifest::INITRAMFS, manifest::TOR_NETWORK] {
        if !manifest.files.contains_key(name) {
            wrong.push(format!("the manifest does not name {name}"));
        }
    }
    for (name, entry) in &manifest.files {
        // A manifest is a file like any other: it must not lead out of the directory.
        if name.contains('/') || name == ".." {
            wrong.push(format!("the manifest names {name:?}, which is no file in this directory"));
        } else if let Err(what) = file(&dir.join(name), entry) {
            wrong.push(format!("{name} {what}"));
        }
    }
    let known = |name: &str| name == manifest::MANIFEST || manifest.files.contains_key(name);
    match names(dir) {
        Ok(names) => {
            let strangers = names.into_iter().filter(|name| !known(name));
            wrong.extend(strangers.map(|name| format!("{name} is not in the manifest")));
        }
        Err(error) => wrong.push(format!("the directory cannot be read: {error}")),
    }
    wrong
}

fn names(dir: &Path) -> io::Result<BTreeSet<String>> {
    fs::read_dir(dir)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
}

fn file(path: &Path, entry: &Entry) -> Result<(), String> {
    let missing = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => "is missing".to_owned(),
        _ => format!("cannot be read: {error}"),
    };
    let metadata = fs::symlink_metadata(path).map_err(missing)?;
    if !metadata.is_file() {
        return Err("is no regular file".into());
    }
    if metadata.len() != entry.bytes {
        return Err(format!("has {} bytes, in the manifest {}", metadata.len(), entry.bytes));
    }
    let sum = fs::File::open(path).and_then(manifest::sha256_of).map_err(missing)?;
    if sum == entry.sha256 { Ok(()) } else { Err("is damaged: it has another SHA-256 than in the manifest".into()) }
}

fn kernel(dir: &Path, manifest: &Manifest) -> Vec<String> {
    let name = manifest::VMLINUZ;
    let vmlinuz = match fs::read(dir.join(name)) {
        Ok(bytes) => bytes,
        Err(error) => return vec![format!("{name} cannot be read: {error}")],
    };
    let (release, config) = match (vmlinuz::release(&vmlinuz), vmlinuz::config(&vmlinuz)) {
        (Ok(release), Ok(config)) => (release, config),
        (Err(error), _) | (_, Err(error)) => return vec![format!("{name} says nothing about itself: {error}")],
    };
    let mut wrong = Vec::new();
    if release != manifest.kernel.release {
        wrong.push(format!("{name} is Linux {release}, in the manifest {}", manifest.kernel.release));
    }
    if manifest::sha256(config.as_bytes()) != manifest.kernel.config_sha256 {
        wrong.push(format!("{name} has another configuration than in the manifest"));
    }
    let present = ABSENT.into_iter().filter(|option| vmlinuz::has(&config, option));
    wrong.extend(present.map(|option| format!("{name} was built with {option}, which this image must not have")));
    wrong
}

fn initramfs(dir: &Path, manifest: &Manifest) -> Vec<String> {
    let name = manifest::INITRAMFS;
    let members = match fs::read(dir.join(name)).map(|bytes| initramfs::unpack(&bytes)) {
        Ok(Ok(members)) => members,
        Ok(Err(error)) => return vec![format!("{name}: {error}")],
        Err(error) => return vec![format!("{name} cannot be read: {error}")],
    };
    let found = initramfs::entries(&members);
    let mut wrong = Vec::new();
    for path in found.keys().chain(manifest.initramfs.keys()).collect::<BTreeSet<_>>() {
        match (found.get(path), manifest.initramfs.get(path)) {
            (Some(is), Some(said)) if is == said => {}
            (Some(_), Some(_)) => wrong.push(format!("{path} in {name} is not what the manifest says")),
            (None, _) => wrong.push(format!("{path} is in the manifest and not in {name}")),
            (_, None) => wrong.push(format!("{path} is in {name} and not in the manifest")),
        }
    }
    if found.len() != members.iter().filter(|member| member.is_regular()).count() {
        wrong.push(format!("{name} has a file twice"));
    }
    for path in [initramfs::INIT, initramfs::ROUTER] {
        if !found.contains_key(path) {
            wrong.push(format!("{name} has no {path}"));
        }
    }
    wrong.extend(inner(&members).err().map(|what| format!("{} in {name} {what}", initramfs::INNER_MANIFEST)));
    wrong
}

/// Whether the manifest in the initramfs fits the initramfs.
fn inner(members: &[Member]) -> Result<(), String> {
    let (own, files): (Vec<_>, Vec<_>) = members
        .iter()
        .filter(|member| member.is_regular())
        .partition(|member| member.path == initramfs::INNER_MANIFEST);
    let own = own.first().ok_or("is missing")?;
    let said: Inner = serde_json::from_slice(&own.bytes).map_err(|error| format!("does not parse: {error}"))?;
    if said == initramfs::inner_manifest(files) { Ok(()) } else { Err("does not fit what is beside it".into()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{initramfs::Contents, manifest::KernelEntry, output::Target, vmlinuz::tests::bzimage};

    const CONFIG: &str = "CONFIG_NET=y\n# CONFIG_INET is not set\n";

    /// An image with these members and this kernel configuration, and a manifest that fits after `change`.
    fn image(members: &[Member], config: &str, change: fn(&mut Manifest)) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let files = [
            (manifest::VMLINUZ, bzimage(config)),
            (manifest::INITRAMFS, initramfs::pack(members).unwrap()),
            (manifest::TOR_NETWORK, b"{}".to_vec()),
        ];
        let mut manifest = Manifest {
            version: manifest::VERSION,
            files: files.iter().map(|(name, bytes)| ((*name).to_owned(), Entry::of(bytes))).collect(),
            initramfs: initramfs::entries(members),
            kernel: KernelEntry {
                release: "6.12-test".into(),
                source: "none".into(),
                config_sha256: manifest::sha256(config.as_bytes()),
            },
        };
        change(&mut manifest);
        Target::new(dir.path()).unwrap().write(&files, &manifest).unwrap();
        dir
    }

    fn members() -> Vec<Member> {
        initramfs::members(&Contents { init: b"\x7fELF init".to_vec(), router: b"\x7fELF router".to_vec() }).unwrap()
    }

    fn good() -> tempfile::TempDir {
        image(&members(), CONFIG, |_| {})
    }

    fn wrong(dir: &tempfile::TempDir) -> String {
        verify(dir.path(), Depth::Contents).unwrap().join("; ")
    }

    #[test]
    fn a_good_image_is_good() {
        assert_eq!(wrong(&good()), "");
    }

    #[test]
    fn every_file_that_is_damaged_missing_cut_or_strange_is_named() {
        for name in [manifest::VMLINUZ, manifest::INITRAMFS, manifest::TOR_NETWORK] {
            let dir = good();
            let path = dir.path().join(name);
            let whole = fs::read(&path).unwrap();
            for at in [0, whole.len() / 2, whole.len() - 1] {
                let mut damaged = whole.clone();
                damaged[at] ^= 1;
                fs::write(&path, damaged).unwrap();
                assert_eq!(wrong(&dir), format!("{name} is damaged: it has another SHA-256 than in the manifest"));
            }
            fs::write(&path, &whole[1..]).unwrap();
            assert!(wrong(&dir).starts_with(&format!("{name} has {} bytes", whole.len() - 1)));
            fs::remove_file(&path).unwrap();
            assert_eq!(wrong(&dir), format!("{name} is missing"));
            fs::create_dir(&path).unwrap();
            assert_eq!(wrong(&dir), format!("{name} is no regular file"));
        }
        let dir = good();
        fs::write(dir.path().join("more"), b"").unwrap();
        assert_eq!(wrong(&dir), "more is not in the manifest");
    }

    #[test]
    fn what_was_wrong_before_the_sums_were_taken_is_found_inside() {
        type Change = fn(&mut Vec<Member>);
        let cases: [(&str, Change); 4] = [
            ("bin/stranger is in", |members| {
                let mut stranger = members.last().unwrap().clone();
                stranger.path = "bin/stranger".into();
                members.push(stranger);
            }),
            ("bin/oht-router is in the manifest and not in", |members| drop(members.pop())),
            ("bin/oht-router in initramfs.cpio.zst is not", |members| members.last_mut().unwrap().bytes.truncate(4)),
            ("bin/oht-router in initramfs.cpio.zst is not", |members| members.last_mut().unwrap().mode ^= 0o111),
        ];
        for (reason, change) in cases {
            let mut changed = members();
            change(&mut changed);
            let dir = image(&changed, CONFIG, |manifest| manifest.initramfs = initramfs::entries(&members()));
            assert!(wrong(&dir).contains(reason), "{reason}: {}", wrong(&dir));
            assert_eq!(verify(dir.path(), Depth::Sums).unwrap(), Vec::<String>::new());
        }
        let mut half = members();
        half.last_mut().unwrap().bytes.truncate(4);
        assert!(wrong(&image(&half, CONFIG, |_| {})).contains("etc/manifest.json in initramfs.cpio.zst does not fit"));
    }

    #[test]
    fn a_kernel_with_an_ip_stack_is_refused_whatever_the_manifest_says() {
        let reason = wrong(&image(&members(), "CONFIG_NET=y\nCONFIG_INET=y\n", |_| {}));
        assert_eq!(reason, "vmlinuz was built with CONFIG_INET, which this image must not have");
        let dir = image(&members(), CONFIG, |manifest| manifest.kernel.config_sha256 = "0".repeat(64));
        assert_eq!(wrong(&dir), "vmlinuz has another configuration than in the manifest");
    }

    #[test]
    fn a_manifest_cannot_lead_elsewhere_or_be_nonsense() {
        let dir = image(&members(), CONFIG, |manifest| {
            manifest.files.insert("../../etc/passwd".into(), Entry::of(b""));
        });
        assert!(wrong(&dir).contains("no file in this directory"));
        fs::write(dir.path().join(manifest::MANIFEST), b"{\"version\":1}").unwrap();
        assert!(matches!(verify(dir.path(), Depth::Sums), Err(ManifestError::Json { .. })));
        fs::remove_file(dir.path().join(manifest::MANIFEST)).unwrap();
        assert!(matches!(verify(dir.path(), Depth::Sums), Err(ManifestError::Read { .. })));
    }
}
