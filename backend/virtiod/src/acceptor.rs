//! A Unix socket on which a device accepts programs, as long as this process can open descriptors.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::backoff::Backoff;
use crate::device::Source;
use crate::listener::{self, Listener};

/// Delays after a failed accept. The kernel does not notify a process when a descriptor is free
/// again.
const PAUSE: Backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));

/// A listening socket. If accept fails, as without a free file descriptor, the acceptor pauses: the
/// device continues, and programs wait in the socket's queue.
#[derive(Debug)]
pub struct Acceptor {
    listener: Listener,
    pauses: Backoff,
    paused_until: Option<Instant>,
}

impl Acceptor {
    /// Accepts programs on this socket.
    pub fn new(listener: Listener) -> Self {
        Self { listener, pauses: PAUSE, paused_until: None }
    }

    /// The socket's path.
    pub fn path(&self) -> &Path {
        &self.listener.path
    }

    /// A source that is ready when a program connects; `None` during a pause.
    pub fn source(&self) -> Option<Source<'_>> {
        self.deadline().is_none().then(|| Source::readable(self.listener.socket.as_fd()))
    }

    /// The end of the current pause, if any.
    pub fn deadline(&self) -> Option<Instant> {
        self.paused_until.filter(|until| *until > Instant::now())
    }

    /// Accepts a program, if one has connected, as a non-blocking socket. Begins a pause if accept
    /// fails.
    pub fn accept(&mut self) -> Option<UnixStream> {
        if self.deadline().is_some() {
            return None;
        }
        self.paused_until = None;
        match self.try_accept() {
            Ok(socket) => {
                self.pauses.reset();
                Some(socket)
            }
            Err(error) if is_nothing(&error) => None,
            Err(error) => {
                let pause = self.pauses.take();
                tracing::debug!(%error, ?pause, "cannot accept on {:?}", self.path());
                self.paused_until = Some(Instant::now() + pause);
                None
            }
        }
    }

    fn try_accept(&self) -> io::Result<UnixStream> {
        let (socket, _) = self.listener.socket.accept()?;
        socket.set_nonblocking(true)?;
        Ok(socket)
    }
}

/// Whether no program waits, or the one that did has closed its socket.
fn is_nothing(error: &io::Error) -> bool {
    listener::would_wait(error) || error.kind() == io::ErrorKind::ConnectionAborted
}
