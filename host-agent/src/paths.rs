//! Where things stand: the run directory (sockets, logs; gone after a reboot) and the state directory (kept).
//!
//! Both belong to the user who runs the agent and are closed to everybody else: whoever can open the sockets in the
//! run directory controls the router, and the state directory holds Tor's guards.

use std::{
    env, fs, io,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use wire::VmName;

/// Bytes of the longest path of an AF_UNIX socket: `sun_path` with its closing NUL (unix(7)).
pub const SOCKET_PATH_BYTES_MAX: usize = 107;

/// Why a directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PathError {
    /// It cannot be made or opened.
    #[error("cannot use the directory {path}: give another one ({option}), or its owner must allow it")]
    Directory {
        /// Which.
        path: PathBuf,
        /// The option that names another.
        option: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// vhost-device-vsock splits its arguments at commas, and has no way to escape one.
    #[error(
        "the run directory {0} has a comma in its path, which the vsock device cannot be told: give another --run-dir"
    )]
    Comma(PathBuf),
    /// A socket in it would have too long a name.
    #[error(
        "the socket path {path} has {bytes} bytes, {SOCKET_PATH_BYTES_MAX} are allowed: \
             give a shorter --run-dir, or a shorter VM name"
    )]
    Long {
        /// The path.
        path: PathBuf,
        /// Its length.
        bytes: usize,
    },
}

/// The run directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunDir(PathBuf);

/// The state directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateDir(PathBuf);

impl RunDir {
    /// The directory `given`, else the usual one of this user.
    #[must_use]
    pub fn new(given: Option<PathBuf>) -> RunDir {
        RunDir(given.map_or_else(default_run_dir, absolute))
    }

    /// The directory itself.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Makes the directory, closed to others.
    ///
    /// # Errors
    /// When it cannot be had.
    pub fn create(&self) -> Result<(), PathError> {
        create_private(&self.0, "--run-dir")?;
        create_private(&self.0.join("vm"), "--run-dir")
    }

    /// The HTTP API.
    #[must_use]
    pub fn api(&self) -> PathBuf {
        self.0.join("api.sock")
    }

    /// Held by the agent that uses this directory.
    #[must_use]
    pub fn lock(&self) -> PathBuf {
        self.0.join("lock")
    }

    /// The `uds-path` of vhost-device-vsock.
    #[must_use]
    pub fn vsock(&self) -> PathBuf {
        self.0.join("vsock")
    }

    /// Where a guest's connection to `port` of the host arrives.
    #[must_use]
    pub fn vsock_port(&self, port: u32) -> PathBuf {
        self.0.join(format!("vsock_{port}"))
    }

    /// The vhost-user socket of vhost-device-vsock.
    #[must_use]
    pub fn vhost_user_vsock(&self) -> PathBuf {
        self.0.join("vhu-vsock")
    }

    /// The vhost-user socket of virtiofsd.
    #[must_use]
    pub fn virtiofs(&self) -> PathBuf {
        self.0.join("fs.sock")
    }

    /// QMP of the router VM.
    #[must_use]
    pub fn qmp(&self) -> PathBuf {
        self.0.join("qmp.sock")
    }

    /// The router VM's serial log.
    #[must_use]
    pub fn router_log(&self) -> PathBuf {
        self.0.join("router.log")
    }

    /// What process `name` prints.
    #[must_use]
    pub fn process_log(&self, name: &str) -> PathBuf {
        self.0.join(format!("{}.log", name.replace(':', "-")))
    }

    /// What belongs to one VM.
    #[must_use]
    pub fn vm(&self, vm: &VmName) -> PathBuf {
        self.0.join("vm").join(vm.as_str())
    }

    /// The VM's vhost-user socket.
    ///
    /// # Errors
    /// When its path is too long for a socket.
    pub fn vm_socket(&self, vm: &VmName) -> Result<PathBuf, PathError> {
        fits(self.vm(vm).join("net.sock"))
    }

    /// Checks that the path can be given to everybody and the sockets of every run fit; those of VMs are checked when a VM is added.
    ///
    /// # Errors
    /// When a path is too long for a socket.
    pub fn check(&self) -> Result<(), PathError> {
        if self.0.as_os_str().as_encoded_bytes().contains(&b',') {
            return Err(PathError::Comma(self.0.clone()));
        }
        fits(self.vsock_port(u32::from(u16::MAX))).map(drop)
    }
}

impl StateDir {
    /// The directory `given`, else the usual one of this user.
    #[must_use]
    pub fn new(given: Option<PathBuf>) -> StateDir {
        StateDir(given.map_or_else(default_state_dir, absolute))
    }

    /// The directory itself.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Makes the directory, closed to others.
    ///
    /// # Errors
    /// When it cannot be had.
    pub fn create(&self) -> Result<(), PathError> {
        create_private(&self.0, "--state-dir")?;
        create_private(&self.router(), "--state-dir")
    }

    /// What the router VM mounts.
    #[must_use]
    pub fn router(&self) -> PathBuf {
        self.0.join("router")
    }

    /// Held by the agent that uses this directory.
    #[must_use]
    pub fn lock(&self) -> PathBuf {
        self.0.join("lock")
    }

    /// The VMs.
    #[must_use]
    pub fn vms(&self) -> PathBuf {
        self.0.join("vms.json")
    }

    /// The key store's directory.
    #[must_use]
    pub fn keys(&self) -> PathBuf {
        self.0.join("keys")
    }

    /// The root's key, sealed with a passphrase.
    #[must_use]
    pub fn sealed_root(&self) -> PathBuf {
        self.0.join("root.age")
    }

    /// The onion services of the VMs.
    #[must_use]
    pub fn onions(&self) -> PathBuf {
        self.0.join("onions.json")
    }

    /// The relays of the last consensus.
    #[must_use]
    pub fn relays(&self) -> PathBuf {
        self.0.join("relays.json")
    }

    /// The routes that the API was told.
    #[must_use]
    pub fn routes(&self) -> PathBuf {
        self.0.join("routes.conf")
    }

    /// The processes that run for this state.
    #[must_use]
    pub fn children(&self) -> PathBuf {
        self.0.join("children.json")
    }
}

/// Writes a file so that a reader, and a crash of the host, finds the old content or the new one and nothing between.
///
/// # Errors
/// When the disk is full, or the directory may not be written.
pub fn write_atomically(path: &Path, content: &[u8]) -> io::Result<()> {
    replace(path, content, |draft| fs::File::open(draft)?.sync_all())
}

/// As [`write_atomically`], for content that is for nobody else: the file is closed to others from the beginning. It is
/// there after a crash of the host, too.
///
/// # Errors
/// As [`write_atomically`].
pub fn write_privately(path: &Path, content: &[u8]) -> io::Result<()> {
    let draft = path.with_extension("new");
    // One that a crash has left may be open to others.
    let _ = fs::remove_file(&draft);
    fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&draft)?;
    write_atomically(path, content)?;
    let directory = path.parent().unwrap_or(Path::new("/"));
    fs::File::open(directory)?.sync_all()
}

/// As [`write_atomically`], for content that means nothing after a crash of the host: does not wait for the disk.
///
/// # Errors
/// When the disk is full, or the directory may not be written.
pub fn write_for_this_boot(path: &Path, content: &[u8]) -> io::Result<()> {
    replace(path, content, |_| Ok(()))
}

fn replace(path: &Path, content: &[u8], settle: impl FnOnce(&Path) -> io::Result<()>) -> io::Result<()> {
    let draft = path.with_extension("new");
    let written = fs::write(&draft, content).and_then(|()| settle(&draft));
    let renamed = written.and_then(|()| fs::rename(&draft, path));
    if renamed.is_err() {
        // The draft is worthless, and on a full disk it is in the way.
        let _ = fs::remove_file(&draft);
    }
    renamed
}

fn fits(path: PathBuf) -> Result<PathBuf, PathError> {
    let bytes = path.as_os_str().len();
    if bytes > SOCKET_PATH_BYTES_MAX { Err(PathError::Long { path, bytes }) } else { Ok(path) }
}

fn create_private(path: &Path, option: &'static str) -> Result<(), PathError> {
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(path).and_then(|()| {
        // One that was there already is closed too, so far as it is ours.
        fs::set_permissions(path, fs::Permissions::from_mode(0o700))
    });
    made.map_err(|source| PathError::Directory { path: path.into(), option, source })
}

fn absolute(path: PathBuf) -> PathBuf {
    std::path::absolute(&path).unwrap_or(path)
}

fn default_run_dir() -> PathBuf {
    match env::var_os("XDG_RUNTIME_DIR") {
        _ if is_root() => "/run/onion-router".into(),
        Some(dir) => PathBuf::from(dir).join("onion-router"),
        None => env::temp_dir().join(format!("onion-router-{}", nix::unistd::geteuid())),
    }
}

fn default_state_dir() -> PathBuf {
    if is_root() {
        return "/var/lib/onion-router".into();
    }
    xdg("XDG_STATE_HOME", ".local/state").join("onion-router")
}

/// A directory of the XDG base directory specification.
pub(crate) fn xdg(variable: &str, below_home: &str) -> PathBuf {
    let set = env::var_os(variable).map(PathBuf::from).filter(|path| path.is_absolute());
    set.unwrap_or_else(|| PathBuf::from(env::var_os("HOME").unwrap_or_else(|| "/".into())).join(below_home))
}

pub(crate) fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_are_made_closed_to_others() {
        let dir = tempfile::tempdir().unwrap();
        let run = RunDir::new(Some(dir.path().join("a/run")));
        run.create().unwrap();
        run.create().unwrap();
        let mode = fs::metadata(run.path()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
        let error = StateDir::new(Some("/proc/nowhere".into())).create().unwrap_err().to_string();
        assert!(error.contains("/proc/nowhere") && error.contains("--state-dir"), "{error}");
    }

    #[test]
    fn socket_paths_that_do_not_fit_are_refused_with_a_remedy() {
        let vm: VmName = "x".repeat(63).parse().unwrap();
        assert!(RunDir::new(Some("/run/user/1000/onion-router".into())).vm_socket(&vm).is_ok());
        let long = RunDir::new(Some(format!("/{}", "y".repeat(60)).into()));
        assert!(long.check().is_ok());
        assert!(long.vm_socket(&vm).unwrap_err().to_string().contains("shorter --run-dir"));
        assert!(RunDir::new(Some(format!("/{}", "y".repeat(100)).into())).check().is_err());
        assert!(RunDir::new(Some("/a,b".into())).check().unwrap_err().to_string().contains("comma"));
    }

    #[test]
    fn what_is_private_is_closed_to_others() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("routes.conf");
        fs::write(dir.path().join("routes.new"), b"open").unwrap();
        for content in [&b"one"[..], b"two"] {
            write_privately(&path, content).unwrap();
            assert_eq!(fs::read(&path).unwrap(), content);
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn files_are_replaced_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vms.json");
        write_atomically(&path, b"old").unwrap();
        write_atomically(&path, b"new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        assert!(write_atomically(&dir.path().join("no/such"), b"x").is_err());
    }
}
