//! The sockets of a device in its guest's process. Those that listen stay when the process dies.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use super::device_service::descriptor;
use super::image_service::Answer;
use crate::Causes;
use crate::bus::DevicePath;
use crate::listener::{Listener, LocalSockets, SocketDirectory, Sockets};
use crate::process::message::Reply;
use crate::setup::DeviceSockets;

type ListenersOf = BTreeMap<PathBuf, Listener>;

/// The sockets on which devices listen.
#[derive(Clone, Debug, Default)]
pub(super) struct KeptSockets(Arc<Mutex<BTreeMap<DevicePath, ListenersOf>>>);

impl KeptSockets {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<DevicePath, ListenersOf>> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Listens on a socket of a device, unless it does; returns a copy.
    fn listen(
        &self,
        device: &DevicePath,
        path: &Path,
        directory: SocketDirectory,
    ) -> io::Result<OwnedFd> {
        let mut all = self.lock();
        if let Some(known) = all.get(device).and_then(|sockets| sockets.get(path)) {
            return known.socket.as_fd().try_clone_to_owned();
        }
        let new = LocalSockets.listen(path, directory);
        let new = new.map_err(|error| io::Error::other(Causes(&error).to_string()))?;
        let copy = new.socket.as_fd().try_clone_to_owned()?;
        all.entry(device.clone()).or_default().insert(path.to_owned(), new);
        Ok(copy)
    }

    /// Closes the sockets of a device that has ended.
    pub(super) fn close(&self, device: &DevicePath) {
        let closed = self.lock().remove(device);
        drop(closed);
    }
}

/// The sockets of one device.
pub(super) struct SocketService {
    device: DevicePath,
    kept: KeptSockets,
    /// The socket beside which programs listen for ports of the guest.
    beside: Option<PathBuf>,
}

impl SocketService {
    /// The sockets of the device at `path`, of which an earlier process may have left some.
    pub(super) fn new(path: &DevicePath, kept: KeptSockets) -> Self {
        Self { device: path.clone(), kept, beside: None }
    }

    /// Listens on a socket, if it is one of the device's `own`.
    pub(super) fn listen(&mut self, own: &DeviceSockets, path: &Path) -> Answer {
        let Some((path, directory)) = own.all.iter().find(|(own, _)| own == path) else {
            return (Reply::Forbidden, Vec::new());
        };
        self.beside = own.may_connect.then(|| path.clone());
        descriptor(self.kept.listen(&self.device, path, *directory).map(Some))
    }

    /// Connects to the program that listens for a port of the guest.
    ///
    /// # Errors
    /// The kernel's; the device has no such ports.
    pub(super) fn connect(&self, port: u32) -> io::Result<OwnedFd> {
        let beside = self.beside.as_ref().ok_or(io::ErrorKind::PermissionDenied)?;
        Ok(LocalSockets.connect(beside, port)?.into())
    }
}
