//! The sockets of a device in its guest's process. Those that listen stay when the process dies,
//! and with systemd when the daemon does.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::{Path, PathBuf};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

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
            if !accepts(&socket) {
                continue;
            }
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
        if let Some(sockets) = all.get_mut(&name)
            && sockets.remove(path).is_some()
        {
            self.0.forget(&name);
            sockets.values().for_each(|socket| self.0.store(&name, SOCKET, socket.as_fd()));
        }
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

/// Whether a socket still listens. One that was shut down hangs up.
fn accepts(socket: &UnixListener) -> bool {
    let mut fds = [PollFd::new(socket.as_fd(), PollFlags::empty())];
    let polled = poll(&mut fds, PollTimeout::ZERO);
    let hung_up = PollFlags::POLLHUP | PollFlags::POLLERR;
    polled.is_ok()
        && !fds.iter().any(|fd| fd.revents().is_none_or(|found| found.intersects(hung_up)))
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

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;
    use std::sync::{Mutex, PoisonError};

    use rustix::net::{Shutdown, shutdown};
    use tempfile::tempdir;

    use super::*;
    use crate::daemon::descriptor_store::DescriptorStore;
    use xen::DomId;

    /// A store in this process.
    #[derive(Default)]
    struct TestStore(Mutex<Vec<(String, OwnedFd)>>);

    impl TestStore {
        fn all(&self) -> std::sync::MutexGuard<'_, Vec<(String, OwnedFd)>> {
            self.0.lock().unwrap_or_else(PoisonError::into_inner)
        }
    }

    impl DescriptorStore for TestStore {
        fn keep(&self, name: &str, descriptor: std::os::fd::BorrowedFd<'_>) {
            self.all().push((name.to_owned(), descriptor.try_clone_to_owned().unwrap()));
        }

        fn forget(&self, name: &str) {
            self.all().retain(|(known, _)| known != name);
        }
    }

    #[test]
    fn socket_that_a_process_shut_down_is_replaced_and_not_stored_any_more() {
        let (files, store) = (tempdir().unwrap(), std::sync::Arc::new(TestStore::default()));
        let restored =
            |left| KeptSockets::restore(&mut StoredDescriptors::new(store.clone(), left));
        let device = DevicePath { class: "virtio".to_owned(), guest: DomId(7), number: 0 };
        let [first, second] = ["first", "second"].map(|name| files.path().join(name));
        let kept = restored(Vec::new());
        let listen = |path: &Path| kept.listen(&device, path, SocketDirectory::Own).unwrap();
        let (hostile, _) = (listen(&first), listen(&second));
        UnixStream::connect(&first).unwrap();
        shutdown(&hostile, Shutdown::Both).unwrap();
        UnixStream::connect(&first).unwrap_err();

        // A daemon that starts now has only the other one.
        let copy = |(name, fd): &(String, OwnedFd)| (name.clone(), fd.try_clone().unwrap());
        let copies = store.all().iter().map(copy).collect();
        let next = restored(copies);
        let paths = |kept: &KeptSockets| kept.0.lock().values().next().unwrap().len();
        assert_eq!((paths(&kept), paths(&next)), (2, 1));

        listen(&first);
        for path in [&first, &second] {
            UnixStream::connect(path).unwrap();
        }
        assert_eq!(store.all().len(), 2, "the one that was shut down is forgotten");
        kept.close(&device);
        assert!(store.all().is_empty());
        assert!(!first.exists() && !second.exists());
    }
}
