//! Creates the Unix sockets that this daemon listens on.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

/// A socket that the daemon cannot listen on.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// The socket cannot be created.
    #[error("cannot listen on {path:?}")]
    Listen {
        /// The socket's path.
        path: PathBuf,
        /// The kernel's error.
        source: io::Error,
    },
    /// The directory for sockets cannot be created.
    #[error("cannot create the directory {path:?}")]
    Directory {
        /// The directory's path.
        path: PathBuf,
        /// The kernel's error.
        source: io::Error,
    },
    /// Another process listens on the socket.
    #[error("somebody else listens on {0:?}")]
    Taken(PathBuf),
    /// The supervisor reports a failure.
    #[error("{0}")]
    Supervisor(String),
}

/// Whether the directory of a socket is the daemon's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SocketDirectory {
    /// Somebody else makes it.
    Others,
    /// The daemon makes it if it is missing, with access for its user only.
    Own,
}

/// A socket that a device listens on.
#[derive(Debug)]
pub struct Listener {
    /// The socket.
    pub socket: UnixListener,
    /// Its path.
    pub path: PathBuf,
    /// Its file, if it ends with this.
    pub file: Option<SocketFile>,
}

/// Opens the sockets of devices.
pub trait Sockets: Send + Sync {
    /// Listens on `path`, in such a directory, without waiting for programs.
    ///
    /// # Errors
    /// [`ListenError`].
    fn listen(&self, path: &Path, directory: SocketDirectory) -> Result<Listener, ListenError>;

    /// Connects to the program that listens for `port` of the guest whose socket is at `path`, as a
    /// non-blocking socket.
    ///
    /// # Errors
    /// The kernel's: no program listens, or its backlog is full.
    fn connect(&self, path: &Path, port: u32) -> io::Result<UnixStream>;
}

/// Sockets of this process.
#[derive(Clone, Copy, Debug, Default)]
pub struct LocalSockets;

impl Sockets for LocalSockets {
    fn listen(&self, path: &Path, directory: SocketDirectory) -> Result<Listener, ListenError> {
        if let (SocketDirectory::Own, Some(directory)) = (directory, path.parent()) {
            let made = DirBuilder::new().recursive(true).mode(0o700).create(directory);
            made.map_err(|source| ListenError::Directory { path: directory.to_owned(), source })?;
        }
        let (socket, file) = listen(path)?;
        let failed = |source| ListenError::Listen { path: path.to_owned(), source };
        socket.set_nonblocking(true).map_err(failed)?;
        Ok(Listener { socket, path: path.to_owned(), file: Some(file) })
    }

    fn connect(&self, path: &Path, port: u32) -> io::Result<UnixStream> {
        let mut path = path.as_os_str().to_owned();
        path.push(format!("_{port}"));
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        connect(&socket, &SocketAddrUnix::new(&path)?)?;
        Ok(UnixStream::from(socket))
    }
}

/// The file of a socket. Dropping this removes it.
#[derive(Debug)]
pub struct SocketFile(Option<PathBuf>);

impl SocketFile {
    /// The file at `path`, which was left.
    pub fn of(path: &Path) -> Self {
        Self(Some(path.to_owned()))
    }

    /// Leaves the file.
    pub fn leave(mut self) {
        self.0 = None;
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let Some(path) = &self.0 else { return };
        if let Err(error) = fs::remove_file(path) {
            tracing::debug!(%error, "cannot remove socket {path:?}");
        }
    }
}

/// Listens on `path` with access for this daemon's user only.
///
/// # Errors
/// [`ListenError`].
pub fn listen(path: &Path) -> Result<(UnixListener, SocketFile), ListenError> {
    let failed = |source| ListenError::Listen { path: path.to_owned(), source };
    if is_taken(path).map_err(failed)? {
        return Err(ListenError::Taken(path.to_owned()));
    }
    // A killed daemon leaves a socket without a listener. Any other file stays, and `bind` fails.
    if fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket()) {
        fs::remove_file(path).map_err(failed)?;
    }
    let listener = UnixListener::bind(path).map_err(failed)?;
    let file = SocketFile::of(path);
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).map_err(failed)?;
    Ok((listener, file))
}

/// Whether a process listens on a socket. Does not wait for a listener with a full queue.
///
/// # Errors
/// The kernel's error, as without a free file descriptor.
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

/// Whether a call found the socket not ready, or a signal interrupted it: poll and try again.
pub fn would_wait(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn socket_of_a_busy_listener_is_taken() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let (_listener, _file) = listen(&path).unwrap();
        // Fills the queue of connections, which nobody accepts.
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
    fn stale_socket_is_replaced_and_any_other_file_kept() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists(), "left by a killed daemon");
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
