//! Builds the image of the router VM, and looks into one: the same bytes from the same inputs.
//!
//! An image is a directory:
//!
//! | file | what | made by |
//! | --- | --- | --- |
//! | `vmlinuz` | the kernel, its configuration inside | [`kernel`], out of the distribution's source, cached |
//! | `initramfs.cpio.zst` | `guest-init`, the router program and what they need | [`initramfs`] |
//! | `tor-network.json` | the public Tor network, as the router program was built with it | the router program |
//! | `manifest.json` | SHA-256 and size of the others and of everything in the initramfs | [`manifest`] |
//!
//! Nothing half-written is ever seen: kernel and image are made under another name and renamed into place. Nothing of
//! the machine goes in: no times, users, paths or order of directories. [`mod@verify`] reads back what was promised, from
//! the files alone: sums, contents of the initramfs, and what the kernel was built without.

mod elf;
mod initramfs;
mod kernel;
mod manifest;
mod output;
mod verify;
mod vmlinuz;

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use anyhow::{Context as _, Result, bail};
use clap::{Parser, Subcommand};

use manifest::{Entry, KernelEntry, Manifest};

/// Builds the image of the router VM, and looks into one.
#[derive(Parser)]
#[command(version, max_term_width = 100)]
struct Arguments {
    #[command(subcommand)]
    command: Order,
}

#[derive(Subcommand)]
enum Order {
    /// Build an image. The kernel comes out of the cache when it was built from the same inputs before.
    Build(BuildArguments),
    /// Check an image against its manifest: every file, everything in the initramfs, the kernel's configuration.
    /// Ends with status 1 and names what is wrong.
    Verify {
        /// The image's directory.
        image: PathBuf,
        /// Only the sums of the files, without looking into them.
        #[arg(long)]
        sums: bool,
    },
    /// Show what an image consists of.
    Inspect {
        /// The image's directory.
        image: PathBuf,
        /// Only print the configuration that the kernel carries.
        #[arg(long)]
        kernel_config: bool,
    },
}

#[derive(clap::Args)]
struct BuildArguments {
    /// Where to put the image; an image that is there is replaced once the new one is whole.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// PID 1 [default: guest-init beside this program]
    #[arg(long, value_name = "PROGRAM")]
    init: Option<PathBuf>,
    /// The router program [default: oht-router beside this program]
    #[arg(long, value_name = "PROGRAM")]
    router: Option<PathBuf>,
    /// Cache with the kernel's source and built kernels [default: $OHT_CACHE, $XDG_CACHE_HOME/onion-router or
    /// ~/.cache/onion-router]
    #[arg(long, value_name = "DIR")]
    cache: Option<PathBuf>,
    /// Compilers at once [default: one a processor]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    jobs: Option<u16>,
    /// The kernel's source, a tar archive [default: the newest linux-source-*.tar.xz in the cache]
    #[arg(long, value_name = "FILE")]
    kernel_source: Option<PathBuf>,
    /// Another kernel configuration than the appliance's.
    #[arg(long, value_name = "FILE")]
    kernel_fragment: Option<PathBuf>,
    /// Build the kernel although it is in the cache, and fail if the bytes differ.
    #[arg(long)]
    force_kernel: bool,
    /// Make the initramfs twice and fail if the bytes differ.
    #[arg(long)]
    check_reproducible: bool,
}

fn main() -> ExitCode {
    let done = match Arguments::parse().command {
        Order::Build(arguments) => build(&arguments),
        Order::Verify { image, sums } => verify(&image, sums),
        Order::Inspect { image, kernel_config } => inspect(&image, kernel_config),
    };
    match done {
        Ok(code) => code,
        Err(error) => {
            eprintln!("image-build: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn build(arguments: &BuildArguments) -> Result<ExitCode> {
    let init = program(arguments.init.as_deref(), "guest-init")?;
    let router = program(arguments.router.as_deref(), "oht-router")?;
    let target = output::Target::new(&arguments.out)?;
    let contents = initramfs::Contents { init: elf::stripped(&init)?, router: elf::stripped(&router)? };
    let network = public_network(&router)?;

    let kernel = kernel::build(&kernel::Order {
        cache: cache(arguments.cache.as_deref())?,
        source: arguments.kernel_source.clone(),
        fragment: match &arguments.kernel_fragment {
            Some(path) => fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?,
            None => FRAGMENT.to_owned(),
        },
        jobs: arguments.jobs.map_or_else(processors, usize::from),
        force: arguments.force_kernel,
    })?;

    let members = initramfs::members(&contents)?;
    let archive = initramfs::pack(&members)?;
    if arguments.check_reproducible {
        let again = initramfs::pack(&initramfs::members(&contents)?)?;
        if again != archive {
            bail!("two initramfs of the same programs differ: this is a fault of image-build");
        }
        eprintln!("initramfs: made twice, the same {} bytes", archive.len());
    }

    let files = [(manifest::VMLINUZ, kernel.vmlinuz), (manifest::INITRAMFS, archive), (manifest::TOR_NETWORK, network)];
    let manifest = Manifest {
        version: manifest::VERSION,
        files: files.iter().map(|(name, bytes)| ((*name).to_owned(), Entry::of(bytes))).collect(),
        initramfs: initramfs::entries(&members),
        kernel: KernelEntry {
            release: kernel.release,
            source: kernel.source,
            config_sha256: manifest::sha256(kernel.config.as_bytes()),
        },
    };
    target.write(&files, &manifest)?;
    print_files(&manifest);
    Ok(ExitCode::SUCCESS)
}

fn verify(image: &Path, sums: bool) -> Result<ExitCode> {
    let wrong = verify::verify(image, if sums { verify::Depth::Sums } else { verify::Depth::Contents })?;
    for what in &wrong {
        eprintln!("image-build: {}: {what}", image.display());
    }
    if !wrong.is_empty() {
        eprintln!("image-build: build the image again: image-build build --out {}", image.display());
        return Ok(ExitCode::FAILURE);
    }
    println!("{}: every file is what the manifest says", image.display());
    Ok(ExitCode::SUCCESS)
}

fn inspect(image: &Path, kernel_config: bool) -> Result<ExitCode> {
    let path = image.join(manifest::VMLINUZ);
    let vmlinuz = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let config = vmlinuz::config(&vmlinuz).with_context(|| format!("cannot look into {}", path.display()))?;
    if kernel_config {
        print!("{config}");
        return Ok(ExitCode::SUCCESS);
    }
    let manifest = Manifest::read(image)?;
    print_files(&manifest);
    for (name, member) in &manifest.initramfs {
        println!("{:>10}  {}  initramfs/{name} ({:o})", member.bytes, member.sha256, member.mode);
    }
    let options = config.lines().filter(|line| line.ends_with("=y")).count();
    println!("kernel {} from {}, {options} options", manifest.kernel.release, manifest.kernel.source);
    for option in verify::ABSENT {
        println!("kernel {option}: {}", if vmlinuz::has(&config, option) { "PRESENT" } else { "absent" });
    }
    Ok(ExitCode::SUCCESS)
}

fn print_files(manifest: &Manifest) {
    for (name, file) in &manifest.files {
        println!("{:>10}  {}  {name}", file.bytes, file.sha256);
    }
    let booted = [manifest::VMLINUZ, manifest::INITRAMFS].iter().filter_map(|name| manifest.files.get(*name));
    println!("{:>10}  kernel and initramfs together", booted.map(|file| file.bytes).sum::<u64>());
}

/// The program that was named, or the one of this name beside this program.
fn program(named: Option<&Path>, name: &str) -> Result<PathBuf> {
    let path = match named {
        Some(path) => path.to_owned(),
        None => env::current_exe().context("cannot find this program's own directory")?.with_file_name(name),
    };
    if !path.is_file() {
        bail!("there is no program {}: run `cargo build --workspace`, or name one (see --help)", path.display());
    }
    Ok(path)
}

/// What the router program was built with.
fn public_network(router: &Path) -> Result<Vec<u8>> {
    let asked = || format!("{} --print-public-network", router.display());
    let done = Command::new(router)
        .arg("--print-public-network")
        .output()
        .with_context(|| format!("cannot start {}", asked()))?;
    if !done.status.success() {
        bail!("{} failed ({}): {}", asked(), done.status, String::from_utf8_lossy(&done.stderr).trim());
    }
    let network: serde_json::Value =
        serde_json::from_slice(&done.stdout).with_context(|| format!("{} printed no JSON", asked()))?;
    if !network["authorities"].is_array() {
        bail!("{} printed something else than a Tor network", asked());
    }
    Ok(done.stdout)
}

/// The cache that ci/setup fills.
fn cache(named: Option<&Path>) -> Result<PathBuf> {
    let variable = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let default =
        || Some(variable("XDG_CACHE_HOME").or_else(|| Some(variable("HOME")?.join(".cache")))?.join("onion-router"));
    let cache = named.map(Path::to_owned).or_else(|| variable("OHT_CACHE")).or_else(default);
    cache.context("neither OHT_CACHE nor HOME is set: name the cache with --cache")
}

fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// The router VM's kernel configuration.
const FRAGMENT: &str = include_str!("../../appliance/kernel.config");
