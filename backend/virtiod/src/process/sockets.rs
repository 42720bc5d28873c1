//! The sockets of a device as a guest's process has them: the supervisor binds and connects them,
//! and keeps those that listen for the next process.

use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;

use super::link::DeviceLink;
use super::message::Request;
use crate::listener::{ListenError, Listener, SocketDirectory, Sockets};

/// The sockets of one device, by the supervisor.
pub struct SupervisedSockets {
    link: Arc<DeviceLink>,
}

impl SupervisedSockets {
    /// Sockets by `link`.
    pub fn new(link: Arc<DeviceLink>) -> Self {
        Self { link }
    }
}

impl Sockets for SupervisedSockets {
    fn listen(&self, path: &Path, _: SocketDirectory) -> Result<Listener, ListenError> {
        let path = path.to_owned();
        match self.link.ask_for_file(&Request::Listen { path: path.clone() }) {
            Ok(socket) => Ok(Listener { socket: UnixListener::from(socket), path, file: None }),
            Err(error) => Err(ListenError::Supervisor(error.to_string())),
        }
    }

    fn connect(&self, _: &Path, port: u32) -> io::Result<UnixStream> {
        self.link.ask_for_file(&Request::Connect { port }).map(UnixStream::from)
    }
}
