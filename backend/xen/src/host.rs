//! The handles of the domain that this process runs in.

use std::io;

use crate::{Connection, DomId, Evtchn, Gntdev, StoreError, Xen};

/// Opens `/dev/xen/gntdev`, `/dev/xen/evtchn` and `/dev/xen/xenbus`, and nothing else of Xen's.
#[derive(Clone, Copy, Debug)]
pub struct Host;

impl Xen for Host {
    type Grants = Gntdev;
    type Events = Evtchn;
    type Store = Connection;

    fn grants(&self, guest: DomId) -> io::Result<Gntdev> {
        Gntdev::open(guest)
    }

    fn events(&self, guest: DomId) -> io::Result<Evtchn> {
        Evtchn::open(guest)
    }

    fn store(&self) -> Result<Connection, StoreError> {
        Connection::open()
    }
}
