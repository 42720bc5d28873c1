//! Unix sockets that this daemon listens on.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

/// Why nobody can be listened for.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// What the kernel said.
    #[error("cannot listen on {path:?}")]
    Listen {
        /// The socket.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// Somebody else does.
    #[error("somebody else listens on {0:?}")]
    Taken(PathBuf),
}

/// The file of a socket; removed when dropped.
#[derive(Debug)]
pub struct SocketFile(PathBuf);

impl SocketFile {
    /// Its path.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.0) {
            tracing::debug!(%error, "socket {:?} not removed", self.0);
        }
    }
}

/// Listens on `path`, which only this daemon's user may connect to.
///
/// # Errors
/// [`ListenError`].
pub fn listen(path: &Path) -> Result<(UnixListener, SocketFile), ListenError> {
    let failed = |source| ListenError::Listen { path: path.to_owned(), source };
    if is_taken(path).map_err(failed)? {
        return Err(ListenError::Taken(path.to_owned()));
    }
    // A socket that nobody answers on was left by a daemon that was killed. Any other file stays,
    // and has the next call fail.
    if fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket()) {
        fs::remove_file(path).map_err(failed)?;
    }
    let listener = UnixListener::bind(path).map_err(failed)?;
    let file = SocketFile(path.to_owned());
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).map_err(failed)?;
    Ok((listener, file))
}

/// Whether somebody listens on a socket, who may be too busy to answer: nobody waits for that.
///
/// # Errors
/// It cannot be told, as when no file descriptor is left to ask with.
fn is_taken(path: &Path) -> io::Result<bool> {
    let address = SocketAddrUnix::new(path)?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let asking = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    match connect(&asking, &address) {
        Ok(()) | Err(Errno::AGAIN) => Ok(true),
        Err(Errno::CONNREFUSED | Errno::NOENT) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

/// Whether a socket has nothing to say now, and will say when it has.
pub fn would_wait(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_whose_owner_is_busy_is_taken() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let (_listener, _file) = listen(&path).unwrap();
        // As many as wait to be accepted, and nobody accepts.
        let mut waiting = 0;
        while waiting < 5000 {
            let address = SocketAddrUnix::new(&path).unwrap();
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).unwrap();
            if connect(&socket, &address).is_err() {
                break;
            }
            std::mem::forget(socket);
            waiting += 1;
        }
        assert!(matches!(listen(&path), Err(ListenError::Taken(_))), "{waiting} wait");
    }

    #[test]
    fn a_socket_that_nobody_answers_on_is_replaced_and_any_other_file_stays() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists(), "left by a daemon that was killed");
        let (listener, file) = listen(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(matches!(listen(&path), Err(ListenError::Taken(_))));
        drop((listener, file));
        assert!(!path.exists());
        fs::write(&path, "precious").unwrap();
        assert!(matches!(listen(&path), Err(ListenError::Listen { .. })));
        assert_eq!(fs::read(&path).unwrap(), b"precious");
    }
}
