//! The doors of the domain this process runs in.

use std::io;

use xen::{Connection, Evtchn, Gntdev};

use super::{DomId, StoreError, Xen};
use crate::grant::Grants;

/// Opens `/dev/xen/gntdev`, `/dev/xen/evtchn` and `/dev/xen/xenbus`, and nothing else of Xen's.
#[derive(Clone, Copy, Debug)]
pub struct Host;

impl Xen for Host {
    type Grants = Gntdev;
    type Platform = Grants<Gntdev>;
    type Events = Evtchn;
    type Store = Connection;

    fn grants(&self, guest: DomId) -> io::Result<Gntdev> {
        Gntdev::open(guest)
    }

    fn platform(&self, guest: DomId) -> io::Result<Grants<Gntdev>> {
        self.grants(guest).map(Grants::new)
    }

    fn events(&self, guest: DomId) -> io::Result<Evtchn> {
        Evtchn::open(guest)
    }

    fn store(&self) -> Result<Connection, StoreError> {
        Connection::open()
    }
}
