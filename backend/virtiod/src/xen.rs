//! The doors to Xen, as a device uses them.
//!
//! [`host`] opens the real ones of the domain that the daemon runs in; [`sim`] is a simulated hypervisor
//! behind the same traits, on which the whole backend runs inside `cargo test`.

pub mod host;
#[cfg(any(test, feature = "simulated"))]
#[allow(unsafe_code, reason = "guests' memory is real shared memory")]
#[allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "it is for tests and benchmarks"
)]
pub mod sim;

use std::io;

pub use xen::{
    Access, CopyError, CopySegment, CopyWay, DomId, EventChannels, EventError, GrantTable,
    LocalPort, MapError, RemotePort, StoreError, XenStore, mapped,
};

use crate::platform::Platform;

/// Opens the doors. One set a device, so that no device waits for another.
pub trait Xen: Clone + Send + 'static {
    /// Maps grants.
    type Grants: GrantTable;
    /// What the addresses are that a driver gives its device.
    type Platform: Platform;
    /// Signals.
    type Events: EventChannels;
    /// Reads and writes XenStore.
    type Store: XenStore;

    /// A door to what `guest` granted.
    ///
    /// # Errors
    /// The device could not be opened; the message names it and the kernel module that is missing.
    fn grants(&self, guest: DomId) -> io::Result<Self::Grants>;

    /// How a device of `guest`'s reaches its memory. The message page is granted in any case.
    ///
    /// # Errors
    /// As [`Xen::grants`].
    fn platform(&self, guest: DomId) -> io::Result<Self::Platform>;

    /// A door to event channels with `guest`.
    ///
    /// # Errors
    /// As [`Xen::grants`].
    fn events(&self, guest: DomId) -> io::Result<Self::Events>;

    /// A XenStore connection of its own.
    ///
    /// # Errors
    /// [`StoreError::Connection`].
    fn store(&self) -> Result<Self::Store, StoreError>;
}
