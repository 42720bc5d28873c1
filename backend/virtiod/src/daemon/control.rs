//! The control socket: whoever connects is sent a [`Report`] as JSON, and that is all there is to
//! say.
//!
//! Each is answered in a thread of its own, so that nobody waits for one who does not read.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crate::daemon::registry::{Registry, Report};
use crate::listener::{self, ListenError, SocketFile};

/// Where the socket lies unless told otherwise.
pub const DEFAULT_SOCKET: &str = "/run/xen-virtiod.sock";
/// The longest that either side waits for the other, from the first byte to the last.
const PATIENCE: Duration = Duration::from_secs(5);
/// Answers under way at once; who comes then is sent away.
const MOST_ANSWERS: usize = 16;

/// How long to leave a connection that cannot be accepted, as when no file descriptor is left.
/// Nothing tells when there is one again.
const RETRY: Duration = Duration::from_secs(1);

/// Why the socket cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The daemon's side.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// Another daemon has it.
    #[error("another xen-virtiod listens on {0:?}; stop it first")]
    Taken(PathBuf),
    /// Nobody can answer on it.
    #[error("cannot start a thread that answers")]
    Thread(#[source] io::Error),
    /// The asking side.
    #[error("no xen-virtiod answers on {path:?}")]
    Ask {
        /// The socket.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The answer is not a report.
    #[error("the answer on {path:?} is no report")]
    Answer {
        /// The socket.
        path: PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
    },
}

/// The socket; removed when dropped.
#[derive(Debug)]
pub struct ControlSocket(#[expect(dead_code, reason = "kept for its drop")] SocketFile);

impl ControlSocket {
    /// Listens, and answers in a thread of its own.
    ///
    /// # Errors
    /// [`ControlError::Listen`], [`ControlError::Taken`], [`ControlError::Thread`].
    pub fn listen(path: &Path, registry: Arc<Registry>) -> Result<Self, ControlError> {
        let (listener, file) = match listener::listen(path) {
            Err(ListenError::Taken(path)) => return Err(ControlError::Taken(path)),
            listening => listening?,
        };
        let answer_all = move || {
            // A clone for each answer under way.
            let answers = Arc::new(());
            for stream in listener.incoming() {
                match stream {
                    Ok(_) if Arc::strong_count(&answers) > MOST_ANSWERS => {
                        tracing::debug!("too many control connections; one is sent away");
                    }
                    Ok(stream) => answer_apart(stream, &registry, &answers),
                    Err(error) => {
                        tracing::debug!(%error, "control connection");
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

/// Answers in a thread of its own, if there is one more to be had.
fn answer_apart(stream: UnixStream, registry: &Arc<Registry>, answers: &Arc<()>) {
    let (registry, under_way) = (Arc::clone(registry), Arc::clone(answers));
    let answer = move || {
        let _under_way = under_way;
        if let Err(error) = answer(stream, &registry) {
            tracing::debug!(%error, "control connection");
        }
    };
    if let Err(error) = thread::Builder::new().name("answer".to_owned()).spawn(answer) {
        tracing::debug!(%error, "control connection");
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

/// Asks the daemon that listens on `path`.
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

    /// A registry whose report fills more than a socket's buffer.
    fn large_registry() -> Arc<Registry> {
        let registry = Arc::new(Registry::default());
        for number in 0..2000 {
            let path = DevicePath { class: "virtio".to_owned(), guest: DomId(1), number };
            registry.begin(&path, Arc::<GuestLog>::default());
        }
        registry
    }

    #[test]
    fn nobody_waits_for_one_who_does_not_read() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("control");
        let registry = large_registry();
        let _control = ControlSocket::listen(&path, Arc::clone(&registry)).unwrap();
        let silent: Vec<_> = (0..3).map(|_| UnixStream::connect(&path).unwrap()).collect();
        // Within the asker's own limit, though those before it have not read a byte.
        assert_eq!(ask(&path).unwrap().devices.len(), 2000);
        drop(silent);
    }

    #[test]
    fn more_than_a_few_who_do_not_read_are_sent_away() {
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
