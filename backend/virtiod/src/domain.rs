//! The domain that devices are served from: its handles to Xen, and how a device reaches a guest's
//! memory.

use std::io;

use xen::{DomId, StoreError, Xen};

use crate::dma::AccessPlatform;
use crate::dma::grants::GrantPlatform;

/// A domain, and the platform that its devices are behind.
pub trait Domain: Xen {
    /// What the addresses are that a driver gives its device.
    type Platform: AccessPlatform;

    /// How a device of `guest`'s reaches its memory. The message page is granted in any case.
    ///
    /// # Errors
    /// As of [`Xen::grants`].
    fn platform(&self, guest: DomId) -> io::Result<Self::Platform>;
}

/// A domain whose devices reach what was granted to it, and nothing else.
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
