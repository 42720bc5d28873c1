//! The control socket: whoever connects is sent a [`Report`] as JSON, and that is all there is to say.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use crate::listener::{self, ListenError, SocketFile};
use crate::registry::{Registry, Report};

/// Where the socket lies unless told otherwise.
pub const DEFAULT_SOCKET: &str = "/run/xen-virtiod.sock";
/// The longest that either side waits for the other.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long to leave a connection that cannot be accepted, as when no file descriptor is left. Nothing
/// tells when there is one again.
const RETRY: Duration = Duration::from_secs(1);

/// Why the socket cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The daemon's side.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// Another daemon has it.
    #[error("another xen-virtiod listens on {0:?}; stop it, or give --socket")]
    Taken(PathBuf),
    /// Nobody can answer on it.
    #[error("cannot start a thread that answers: {0}")]
    Thread(#[source] io::Error),
    /// The asking side.
    #[error("no xen-virtiod answers on {path:?}: {source}")]
    Ask {
        /// The socket.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The answer is not a report.
    #[error("the answer on {path:?} is no report: {source}")]
    Answer {
        /// The socket.
        path: PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
    },
}

/// The socket; removed when dropped.
#[derive(Debug)]
pub struct Control(#[expect(dead_code, reason = "kept for its drop")] SocketFile);

impl Control {
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
            for stream in listener.incoming() {
                let accepted = stream.is_ok();
                if let Err(error) = stream.and_then(|stream| answer(stream, &registry)) {
                    tracing::debug!(%error, "control connection");
                }
                if !accepted {
                    thread::sleep(RETRY);
                }
            }
        };
        let thread = thread::Builder::new().name("control".to_owned());
        thread.spawn(answer_all).map_err(ControlError::Thread)?;
        Ok(Self(file))
    }
}

fn answer(mut stream: UnixStream, registry: &Registry) -> io::Result<()> {
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.write_all(&serde_json::to_vec(&registry.report())?)
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
