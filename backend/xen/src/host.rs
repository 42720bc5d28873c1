//! The handles of the domain that this process runs in.

use std::io;

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

    fn store(&self) -> Result<XenStoreConnection, StoreError> {
        XenStoreConnection::open()
    }
}
