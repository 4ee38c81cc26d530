//! Listening AF_UNIX sockets that the agent makes and its children inherit.
//!
//! A socket file that is left over is stale when nobody answers on it, and is replaced. One on which somebody answers
//! belongs to another process and is left alone: taking its place would cut that process off without a word.

use std::{
    fs, io,
    os::unix::{
        fs::{DirBuilderExt, PermissionsExt},
        net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
};

/// Why a socket cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Another process serves it.
    #[error("another process listens on {0}: end it, or give this agent a --run-dir of its own")]
    InUse(PathBuf),
    /// It cannot be made.
    #[error("cannot listen on {path}")]
    Listen {
        /// Where.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// Listens on `path`, in place of a stale socket; only this user may connect.
///
/// # Errors
/// When another process listens there, or the directory does not allow it.
pub fn listen(path: &Path) -> Result<UnixListener, SocketError> {
    listen_with_mode(path, 0o600)
}

/// The same for a socket to which everybody may connect: who asks what is then judged by its peer's credentials. Its
/// directory is made if need be, open to everybody.
///
/// # Errors
/// As [`listen`].
pub fn listen_for_all(path: &Path) -> Result<UnixListener, SocketError> {
    if let Some(directory) = path.parent().filter(|directory| !directory.exists()) {
        let made = fs::DirBuilder::new().recursive(true).mode(0o755).create(directory);
        made.map_err(|source| SocketError::Listen { path: path.into(), source })?;
    }
    listen_with_mode(path, 0o666)
}

fn listen_with_mode(path: &Path, mode: u32) -> Result<UnixListener, SocketError> {
    let failed = |source| SocketError::Listen { path: path.into(), source };
    remove_stale(path)?;
    let listener = UnixListener::bind(path).map_err(failed)?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(failed)?;
    Ok(listener)
}

/// Removes a socket on which nobody answers.
///
/// # Errors
/// When somebody does, or it cannot be removed.
pub fn remove_stale(path: &Path) -> Result<(), SocketError> {
    match UnixStream::connect(path) {
        Ok(_) => Err(SocketError::InUse(path.into())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(_) => fs::remove_file(path).map_err(|source| SocketError::Listen { path: path.into(), source }),
    }
}

/// Whether a socket file is there and nobody answers.
#[must_use]
pub fn is_stale(path: &Path) -> bool {
    UnixStream::connect(path).is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
}

/// Whether somebody answers on a socket.
#[must_use]
pub fn is_served(path: &Path) -> bool {
    UnixStream::connect(path).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let first = listen(&path).unwrap();
        assert!(matches!(listen(&path), Err(SocketError::InUse(_))));
        assert!(!is_stale(&path));
        drop(first);
        assert!(is_stale(&path));
        let _second = listen(&path).unwrap();
        assert!(!is_stale(&dir.path().join("none")));
        assert!(listen(&dir.path().join("no/s")).unwrap_err().to_string().contains("no/s"));
    }
}
