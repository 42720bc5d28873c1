//! The control socket: sends a [`Report`] as JSON to each client and closes the connection.
//!
//! A thread of its own answers each client, so that no client waits for another that does not read.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crate::daemon::registry::{Registry, Report};
use crate::listener::{self, ListenError, SocketFile};

/// Default path of the socket.
pub const DEFAULT_SOCKET: &str = "/run/xen-virtiod.sock";
/// Maximum time that either side waits for the other, from the first byte to the last.
const PATIENCE: Duration = Duration::from_secs(5);
/// Maximum number of concurrent answers. The daemon closes further connections without an answer.
const MOST_ANSWERS: usize = 16;

/// Delay after a failed accept, as without a free file descriptor. The kernel does not notify a
/// process when one is free again.
const RETRY: Duration = Duration::from_secs(1);

/// A failure of the control socket.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The daemon cannot listen.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// Another daemon listens on the socket.
    #[error("another xen-virtiod listens on {0:?}; stop it first")]
    Taken(PathBuf),
    /// The thread that answers cannot be started.
    #[error("cannot start the thread of the control socket")]
    Thread(#[source] io::Error),
    /// The client gets no answer.
    #[error("no xen-virtiod answers on {path:?}: is it running, and may this user connect?")]
    Ask {
        /// The socket's path.
        path: PathBuf,
        /// The kernel's error.
        source: io::Error,
    },
    /// The answer is not a report.
    #[error("the answer on {path:?} is not a report: is it another version of xen-virtiod?")]
    Answer {
        /// The socket's path.
        path: PathBuf,
        /// The parser's error.
        source: serde_json::Error,
    },
}

/// The control socket. Dropping this removes its file.
#[derive(Debug)]
pub struct ControlSocket(#[expect(dead_code, reason = "kept for its drop")] SocketFile);

impl ControlSocket {
    /// Listens on `path` and starts the thread that answers.
    ///
    /// # Errors
    /// [`ControlError::Listen`], [`ControlError::Taken`], [`ControlError::Thread`].
    pub fn listen(path: &Path, registry: Arc<Registry>) -> Result<Self, ControlError> {
        let (listener, file) = match listener::listen(path) {
            Err(ListenError::Taken(path)) => return Err(ControlError::Taken(path)),
            listening => listening?,
        };
        let answer_all = move || {
            // Each answer in progress holds a clone.
            let answers = Arc::new(());
            for stream in listener.incoming() {
                match stream {
                    Ok(_) if Arc::strong_count(&answers) > MOST_ANSWERS => {
                        tracing::debug!("control connection refused: too many others");
                    }
                    Ok(stream) => answer_apart(stream, &registry, &answers),
                    Err(error) => {
                        tracing::debug!(%error, "control connection failed");
                        thread::sleep(RETRY);
                    }
                }
            }
        };
        let thread = thread::Builder::new().name("control".to_owned());
        thread.spawn(answer_all).map_err(ControlError::Thread)?;
        Ok(Self(file))
    }
}

/// Answers in a new thread, if the kernel can start one.
fn answer_apart(stream: UnixStream, registry: &Arc<Registry>, answers: &Arc<()>) {
    let (registry, under_way) = (Arc::clone(registry), Arc::clone(answers));
    let answer = move || {
        let _under_way = under_way;
        if let Err(error) = answer(stream, &registry) {
            tracing::debug!(%error, "control connection failed");
        }
    };
    if let Err(error) = thread::Builder::new().name("answer".to_owned()).spawn(answer) {
        tracing::debug!(%error, "control connection failed");
    }
}

fn answer(mut stream: UnixStream, registry: &Registry) -> io::Result<()> {
    let (end, answer) = (Instant::now() + PATIENCE, serde_json::to_vec(&registry.report())?);
    let mut rest = answer.as_slice();
    while !rest.is_empty() {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        stream.set_write_timeout(Some(left))?;
        let count = stream.write(rest)?;
        rest = rest.get(count..).unwrap_or_default();
    }
    Ok(())
}

/// Gets the report of the daemon that listens on `path`.
///
/// # Errors
/// [`ControlError::Ask`], [`ControlError::Answer`].
pub fn ask(path: &Path) -> Result<Report, ControlError> {
    let failed = |source| ControlError::Ask { path: path.to_owned(), source };
    let mut stream = UnixStream::connect(path).map_err(failed)?;
    stream.set_read_timeout(Some(PATIENCE)).map_err(failed)?;
    let mut text = Vec::new();
    stream.read_to_end(&mut text).map_err(failed)?;
    serde_json::from_slice(&text)
        .map_err(|source| ControlError::Answer { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bus::DevicePath;
    use crate::guest_log::GuestLog;
    use xen::DomId;

    /// A registry whose report is larger than a socket's buffer.
    fn large_registry() -> Arc<Registry> {
        let registry = Arc::new(Registry::default());
        for number in 0..2000 {
            let path = DevicePath { class: "virtio".to_owned(), guest: DomId(1), number };
            registry.begin(&path, Arc::<GuestLog>::default());
        }
        registry
    }

    #[test]
    fn silent_clients_do_not_delay_others() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("control");
        let registry = large_registry();
        let _control = ControlSocket::listen(&path, Arc::clone(&registry)).unwrap();
        let silent: Vec<_> = (0..3).map(|_| UnixStream::connect(&path).unwrap()).collect();
        // Within the client's own limit, though the clients before it have not read a byte.
        assert_eq!(ask(&path).unwrap().devices.len(), 2000);
        drop(silent);
    }

    #[test]
    fn clients_beyond_the_limit_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("control");
        let _control = ControlSocket::listen(&path, large_registry()).unwrap();
        let mut silent: Vec<_> =
            (0..2 * MOST_ANSWERS).map(|_| UnixStream::connect(&path).unwrap()).collect();
        let last = silent.last_mut().unwrap();
        last.set_read_timeout(Some(2 * PATIENCE)).unwrap();
        assert_eq!(last.read(&mut [0]).unwrap(), 0, "answered");
    }
}
