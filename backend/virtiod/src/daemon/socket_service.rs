//! The sockets of a device in its guest's process. Those that listen stay when the process dies,
//! and with systemd when the daemon does.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::{Path, PathBuf};

use rustix::net::sockopt::socket_acceptconn;

use super::descriptor_store::StoredDescriptors;
use super::device_service::descriptor;
use super::image_service::Answer;
use super::kept::Kept;
use crate::Causes;
use crate::bus::DevicePath;
use crate::listener::{LocalSockets, SocketDirectory, SocketFile, Sockets};
use crate::process::message::Reply;
use crate::setup::DeviceSockets;

/// By path. The files stay when the daemon ends.
type ListenersOf = BTreeMap<PathBuf, UnixListener>;

/// End of the names of sockets in the store; the name of the device's record is in front.
const SOCKET: &str = ".socket";

/// The sockets on which devices listen.
#[derive(Clone)]
pub(super) struct KeptSockets(Kept<ListenersOf>);

impl KeptSockets {
    /// The sockets that an earlier daemon left.
    pub(super) fn restore(stored: &mut StoredDescriptors) -> Self {
        let mut all: BTreeMap<_, ListenersOf> = BTreeMap::new();
        for (device, socket) in stored.take_with(SOCKET) {
            let socket = UnixListener::from(socket);
            let address = socket.local_addr().ok();
            let Some(path) = address.as_ref().and_then(SocketAddr::as_pathname) else { continue };
            all.entry(device).or_default().insert(path.to_owned(), socket);
        }
        Self(Kept::new(all, stored.store(), &[SOCKET]))
    }

    /// Listens on a socket of a device, unless it does; returns a copy.
    fn listen(
        &self,
        device: &DevicePath,
        path: &Path,
        directory: SocketDirectory,
    ) -> io::Result<OwnedFd> {
        let (name, mut all) = (device.record_name(), self.0.lock());
        let known = all.get(&name).and_then(|sockets| sockets.get(path));
        if let Some(known) = known.filter(|known| accepts(known)) {
            // An earlier process may have changed the flags of the open file.
            known.set_nonblocking(true)?;
            return known.as_fd().try_clone_to_owned();
        }
        // Nobody connects any more to one that a process shut down.
        let dead = all.get_mut(&name).and_then(|sockets| sockets.remove(path));
        drop(dead);
        let listener = LocalSockets.listen(path, directory);
        let listener = listener.map_err(|error| io::Error::other(Causes(&error).to_string()))?;
        listener.file.into_iter().for_each(SocketFile::leave);
        let copy = listener.socket.as_fd().try_clone_to_owned()?;
        self.0.store(&name, SOCKET, copy.as_fd());
        all.entry(name).or_default().insert(path.to_owned(), listener.socket);
        Ok(copy)
    }

    /// Closes the sockets of a device that has ended.
    pub(super) fn close(&self, device: &DevicePath) {
        close(self.0.take(device));
    }

    /// Closes the sockets of all devices but these.
    pub(super) fn retain(&self, devices: &BTreeSet<String>) {
        close(self.0.take_others(devices));
    }
}

/// Closes sockets, and removes their files.
fn close(sockets: impl IntoIterator<Item = ListenersOf>) {
    let paths = sockets.into_iter().flat_map(ListenersOf::into_keys);
    paths.for_each(|path| drop(SocketFile::of(&path)));
}

/// Whether a socket still listens.
fn accepts(socket: &UnixListener) -> bool {
    socket_acceptconn(socket).unwrap_or(false)
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
