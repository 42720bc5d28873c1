//! The control socket. A client sends a command, a line. The answer is JSON: a [`Report`], or of
//! `reload` what changed. The daemon closes the connection at once, and after `end` when it has
//! ended itself.
//!
//! A thread of its own answers each client, so that no client waits for another that does not read.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;

use crate::bus::{Ending, StopSignal};
use crate::daemon::registry::{Registry, Report};
use crate::daemon::reload::{Change, Reloaded, Reloads};
use crate::listener::{self, ListenError, SocketFile};

/// Default path of the socket.
pub const DEFAULT_SOCKET: &str = command_line::DEFAULT_SOCKET;
/// Maximum time that either side waits for the other, from the first byte to the last.
const PATIENCE: Duration = Duration::from_secs(5);
/// Maximum time for all devices to end; the daemon itself waits less.
const END_LIMIT: Duration = Duration::from_secs(90);
/// Maximum number of concurrent answers. The daemon closes further connections without an answer.
const MOST_ANSWERS: usize = 16;

/// The commands.
const STAT: &str = "stat";
const END: &str = "end";
const RELOAD: &str = "reload";
/// Followed by a guest's domain id and a device, as `stat` shows them.
const RESUME: &str = "resume ";
/// Maximum length of a command in bytes.
const LONGEST_COMMAND: usize = 64;

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
    /// The daemon does not reload the configuration.
    #[error("the configuration is not reloaded: {0}")]
    Reload(String),
    /// The answer is not the expected one.
    #[error("the answer on {path:?} is not understood: is it another version of xen-virtiod?")]
    Answer {
        /// The socket's path.
        path: PathBuf,
        /// The parser's error.
        source: serde_json::Error,
    },
}

/// What clients may ask for.
#[derive(Clone)]
pub struct Control {
    /// The devices.
    pub registry: Arc<Registry>,
    /// Ends the daemon.
    pub stop: Arc<StopSignal>,
    /// Reloads the configuration.
    pub reloads: Arc<Reloads>,
}

#[cfg(test)]
impl Control {
    /// The devices of `registry`, and a daemon that neither ends nor reloads.
    pub(crate) fn for_test(registry: Arc<Registry>) -> Self {
        let woken = Arc::new(nix::sys::eventfd::EventFd::new().unwrap());
        let stop = Arc::new(StopSignal::new().unwrap());
        Self { registry, stop, reloads: Arc::new(Reloads::new(woken)) }
    }
}

/// The control socket. Dropping this removes its file.
#[derive(Debug)]
pub struct ControlSocket(#[expect(dead_code, reason = "kept for its drop")] SocketFile);

impl ControlSocket {
    /// Listens on `path` and starts the thread that answers.
    ///
    /// # Errors
    /// [`ControlError::Listen`], [`ControlError::Taken`], [`ControlError::Thread`].
    pub fn listen(path: &Path, control: Control) -> Result<Self, ControlError> {
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
                    Ok(stream) => answer_apart(stream, &control, &answers),
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
fn answer_apart(stream: UnixStream, control: &Control, answers: &Arc<()>) {
    let (control, under_way) = (control.clone(), Arc::clone(answers));
    let answer = move || {
        let _under_way = under_way;
        if let Err(error) = answer(stream, &control) {
            tracing::debug!(%error, "control connection failed");
        }
    };
    if let Err(error) = thread::Builder::new().name("answer".to_owned()).spawn(answer) {
        tracing::debug!(%error, "control connection failed");
    }
}

fn answer(mut stream: UnixStream, control: &Control) -> io::Result<()> {
    let end = Instant::now() + PATIENCE;
    let command = read_command(&mut stream, end)?;
    let answer = match command.as_str() {
        STAT | END => serde_json::to_vec(&control.registry.report())?,
        resume if resume.starts_with(RESUME) => {
            let (_, device) = resume.split_at(RESUME.len());
            serde_json::to_vec(&control.registry.resume(device))?
        }
        RELOAD => serde_json::to_vec(&control.reloads.ask())?,
        _ => return Err(io::ErrorKind::InvalidInput.into()),
    };
    let mut rest = answer.as_slice();
    // The client sees the end of the process.
    let ends = command == END;
    while !rest.is_empty() {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        stream.set_write_timeout(Some(left))?;
        let count = stream.write(rest)?;
        rest = rest.get(count..).unwrap_or_default();
    }
    if ends {
        tracing::info!("all devices end, as the command says");
        control.stop.give(Ending::End)?;
        loop {
            thread::park();
        }
    }
    Ok(())
}

/// Reads a command, which ends with a newline or with the client's half of the connection.
fn read_command(stream: &mut UnixStream, end: Instant) -> io::Result<String> {
    let (mut command, mut byte) = (String::new(), [0]);
    while command.len() < LONGEST_COMMAND {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        stream.set_read_timeout(Some(left))?;
        if stream.read(&mut byte)? == 0 || byte == *b"\n" {
            break;
        }
        command.extend(byte.map(char::from));
    }
    Ok(command)
}

/// Gets the report of the daemon that listens on `path`.
///
/// # Errors
/// [`ControlError::Ask`], [`ControlError::Answer`].
pub fn ask(path: &Path) -> Result<Report, ControlError> {
    send(path, STAT, PATIENCE)
}

/// Ends all devices and the daemon that listens on `path`, and waits for that; returns the report
/// from before.
///
/// # Errors
/// As for [`ask`].
pub fn end(path: &Path) -> Result<Report, ControlError> {
    send(path, END, END_LIMIT)
}

/// Has the daemon that listens on `path` reload its configuration; returns what changed.
///
/// # Errors
/// As for [`ask`], and [`ControlError::Reload`].
pub fn reload(path: &Path) -> Result<Vec<Change>, ControlError> {
    send::<Reloaded>(path, RELOAD, PATIENCE)?.map_err(ControlError::Reload)
}

/// Lets a paused disk of the daemon's that listens on `path` go on. Returns whether it has such a
/// device, and could tell it.
///
/// # Errors
/// As for [`ask`].
pub fn resume(path: &Path, domid: u16, device: &str) -> Result<bool, ControlError> {
    send(path, &format!("{RESUME}{domid} {device}"), PATIENCE)
}

fn send<T: DeserializeOwned>(
    path: &Path,
    command: &str,
    limit: Duration,
) -> Result<T, ControlError> {
    let failed = |source| ControlError::Ask { path: path.to_owned(), source };
    let mut stream = UnixStream::connect(path).map_err(failed)?;
    stream.set_read_timeout(Some(limit)).map_err(failed)?;
    stream.write_all(format!("{command}\n").as_bytes()).map_err(failed)?;
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
    fn command_to_end_gives_the_signal_and_any_other_does_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("control");
        let control = Control::for_test(Arc::default());
        let stop = Arc::clone(&control.stop);
        let _control = ControlSocket::listen(&path, control).unwrap();
        ask(&path).unwrap();
        for command in ["", "END", "end everything", &"end".repeat(50)] {
            assert!(send::<Report>(&path, command, PATIENCE).is_err(), "{command}");
        }
        assert_eq!(stop.ending(), Ending::Leave);
        // The test's process does not end.
        let limit = Duration::from_millis(100);
        assert!(matches!(send::<Report>(&path, END, limit), Err(ControlError::Ask { .. })));
        assert_eq!(stop.ending(), Ending::End);
    }

    #[test]
    fn silent_clients_do_not_delay_others() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("control");
        let registry = large_registry();
        let _control = ControlSocket::listen(&path, Control::for_test(registry)).unwrap();
        let silent: Vec<_> = (0..3).map(|_| UnixStream::connect(&path).unwrap()).collect();
        // Within the client's own limit, though the clients before it have not read a byte.
        assert_eq!(ask(&path).unwrap().devices.len(), 2000);
        drop(silent);
    }

    #[test]
    fn clients_beyond_the_limit_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("control");
        let _control = ControlSocket::listen(&path, Control::for_test(large_registry())).unwrap();
        let mut silent: Vec<_> =
            (0..2 * MOST_ANSWERS).map(|_| UnixStream::connect(&path).unwrap()).collect();
        let last = silent.last_mut().unwrap();
        last.set_read_timeout(Some(2 * PATIENCE)).unwrap();
        assert_eq!(last.read(&mut [0]).unwrap(), 0, "answered");
    }
}
