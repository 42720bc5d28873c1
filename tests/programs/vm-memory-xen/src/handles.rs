//! xen-virtiod's Xen handles, with another platform for the guest's memory.

use std::io;
use std::marker::PhantomData;

use xen::{DevXen, DomId, Evtchn, Gntdev, StoreError, Xen, XenStoreConnection};
use xen_virtiod::dma::AccessPlatform;
use xen_virtiod::domain::Domain;

/// A platform that can be opened for one guest.
pub(crate) trait Open: AccessPlatform + Sized {
    /// Opens the platform through which devices reach the memory of `guest`.
    ///
    /// # Errors
    /// The error of a device in `/dev/xen` that cannot be opened.
    fn open(guest: DomId) -> io::Result<Self>;
}

/// xen-virtiod's handles, with the platform `P`.
pub(crate) struct Handles<P>(PhantomData<fn() -> P>);

impl<P> Handles<P> {
    pub(crate) fn new() -> Self {
        Self(PhantomData)
    }
}

impl<P> Clone for Handles<P> {
    fn clone(&self) -> Self {
        Self::new()
    }
}

impl<P: Open> Xen for Handles<P> {
    type Grants = Gntdev;
    type Events = Evtchn;
    type Store = XenStoreConnection;

    fn grants(&self, guest: DomId) -> io::Result<Gntdev> {
        DevXen.grants(guest)
    }

    fn events(&self, guest: DomId) -> io::Result<Evtchn> {
        DevXen.events(guest)
    }

    fn store(&self) -> Result<XenStoreConnection, StoreError> {
        DevXen.store()
    }
}

impl<P: Open> Domain for Handles<P> {
    type Platform = P;

    fn platform(&self, guest: DomId) -> io::Result<P> {
        P::open(guest)
    }
}
