//! The handles of the domain that this process runs in.

use std::io;
use std::os::fd::OwnedFd;

use xen_sys::{evtchn, gntdev};

use crate::{DomId, Evtchn, Gntdev, StoreError, Xen, XenStoreConnection};

/// Opens `/dev/xen/gntdev`, `/dev/xen/evtchn` and `/dev/xen/xenbus`, and no other Xen device.
#[derive(Clone, Copy, Debug)]
pub struct DevXen;

impl Xen for DevXen {
    type Grants = Gntdev;
    type Events = Evtchn;
    type Store = XenStoreConnection;

    fn grants(&self, guest: DomId) -> io::Result<Gntdev> {
        Gntdev::open(guest)
    }

    fn events(&self, guest: DomId) -> io::Result<Evtchn> {
        Evtchn::open(guest)
    }

    fn events_for_process(&self, guest: DomId) -> io::Result<Option<OwnedFd>> {
        Ok(Some(Evtchn::open(guest)?.into_descriptor()))
    }

    fn store(&self) -> Result<XenStoreConnection, StoreError> {
        XenStoreConnection::open()
    }
}

/// The requests of `ioctl` that the handles of [`GuestXen`] need.
pub const GUEST_IOCTLS: [u64; 6] = [
    gntdev::MAP_GRANT_REF,
    gntdev::UNMAP_GRANT_REF,
    gntdev::GRANT_COPY,
    evtchn::BIND_INTERDOMAIN,
    evtchn::UNBIND,
    evtchn::NOTIFY,
];

/// The handles of a process that serves one guest and opens nothing later: the one to the guest's
/// grants is its own, since Linux ties a mapping to the process that opened the handle; those to
/// event channels come from another process.
#[derive(Clone, Debug)]
pub struct GuestXen {
    guest: DomId,
    grants: Gntdev,
}

impl GuestXen {
    /// Opens the handle to the grants of `guest`.
    ///
    /// # Errors
    /// As [`Xen::grants`].
    pub fn open(guest: DomId) -> io::Result<Self> {
        Ok(Self { guest, grants: Gntdev::open(guest)? })
    }

    fn check(&self, guest: DomId) -> io::Result<()> {
        let refused = || io::Error::other(format!("this process serves {}", self.guest));
        (guest == self.guest).then_some(()).ok_or_else(refused)
    }
}

impl Xen for GuestXen {
    type Grants = Gntdev;
    type Events = Evtchn;
    type Store = XenStoreConnection;

    fn grants(&self, guest: DomId) -> io::Result<Gntdev> {
        self.check(guest)?;
        Ok(self.grants.clone())
    }

    fn events(&self, _: DomId) -> io::Result<Evtchn> {
        Err(io::Error::other("another process opens event channels for this one"))
    }

    fn events_of(&self, guest: DomId, descriptor: Option<OwnedFd>) -> io::Result<Evtchn> {
        self.check(guest)?;
        let descriptor = descriptor.ok_or(io::ErrorKind::NotFound)?;
        Ok(Evtchn::of_descriptor(descriptor, guest))
    }

    fn store(&self) -> Result<XenStoreConnection, StoreError> {
        Err(StoreError::Protocol("another process has the connection to XenStore"))
    }
}
