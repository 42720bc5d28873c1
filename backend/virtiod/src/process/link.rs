//! A device's socket to the supervisor.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Mutex;

use super::message::{Reply, Request};
use super::message_socket::{MessageError, MessageSocket};

/// A supervisor that does not answer.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The socket fails.
    #[error(transparent)]
    Message(#[from] MessageError),
    /// The supervisor has closed its end.
    #[error("the supervisor is gone")]
    Gone,
}

/// The process's end of a device's socket. All threads of the device use it, one at a time.
#[derive(Debug)]
pub struct DeviceLink {
    socket: MessageSocket,
    /// Locked from a request to its answer.
    turn: Mutex<()>,
}

impl DeviceLink {
    /// The link over a socket.
    pub fn new(socket: MessageSocket) -> Self {
        Self { socket, turn: Mutex::new(()) }
    }

    /// Sends a request, and waits for the answer and its descriptors.
    ///
    /// # Errors
    /// [`LinkError`].
    pub fn ask(&self, request: &Request) -> Result<(Reply, Vec<OwnedFd>), LinkError> {
        // A thread that panicked between request and answer leaves an answer to another question:
        // the device has ended then.
        let _turn = self.turn.lock().map_err(|_| LinkError::Gone)?;
        self.socket.send(request, &[])?;
        self.socket.receive()?.ok_or(LinkError::Gone)
    }

    /// As [`DeviceLink::ask`], for a request that is answered by [`Reply::Done`] and a descriptor.
    ///
    /// # Errors
    /// The supervisor's, or that of the socket.
    pub fn ask_for_file(&self, request: &Request) -> io::Result<OwnedFd> {
        match self.ask(request).map_err(io::Error::other)? {
            (Reply::Done, files) => files.into_iter().next().ok_or_else(too_many_files),
            (reply, _) => Err(reply.into_error()),
        }
    }

    /// Ends all requests, as the end of the process does.
    pub fn cut(&self) {
        self.socket.shut_down();
    }
}

/// The error of a descriptor that was sent and did not arrive: the kernel drops those for which the
/// process has no number left.
pub fn too_many_files() -> io::Error {
    io::Error::from_raw_os_error(libc::EMFILE)
}
