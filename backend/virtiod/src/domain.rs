//! The domain that the daemon runs in: its handles to Xen and its access platform.

use std::io;
use std::os::fd::OwnedFd;

use xen::{DomId, StoreError, Xen};

use crate::dma::AccessPlatform;
use crate::dma::grants::GrantPlatform;

/// A domain's handles to Xen, and the access platform of its devices.
pub trait Domain: Xen {
    /// Decodes the addresses that drivers pass to devices.
    type Platform: AccessPlatform;

    /// Opens the platform for a device of `guest`. The message page is granted in any case.
    ///
    /// # Errors
    /// As [`Xen::grants`].
    fn platform(&self, guest: DomId) -> io::Result<Self::Platform>;
}

/// A domain whose devices reach granted memory only.
#[derive(Clone, Copy, Debug, Default)]
pub struct ByGrants<X>(pub X);

impl<X: Xen> Xen for ByGrants<X> {
    type Grants = X::Grants;
    type Events = X::Events;
    type Store = X::Store;

    fn grants(&self, guest: DomId) -> io::Result<X::Grants> {
        self.0.grants(guest)
    }

    fn events(&self, guest: DomId) -> io::Result<X::Events> {
        self.0.events(guest)
    }

    fn events_for_process(&self, guest: DomId) -> io::Result<Option<OwnedFd>> {
        self.0.events_for_process(guest)
    }

    fn events_of(&self, guest: DomId, descriptor: Option<OwnedFd>) -> io::Result<X::Events> {
        self.0.events_of(guest, descriptor)
    }

    fn store(&self) -> Result<X::Store, StoreError> {
        self.0.store()
    }
}

impl<X: Xen> Domain for ByGrants<X> {
    type Platform = GrantPlatform<X::Grants>;

    fn platform(&self, guest: DomId) -> io::Result<GrantPlatform<X::Grants>> {
        self.0.grants(guest).map(GrantPlatform::new)
    }
}
