//! Handles to Xen: traits for grants, event channels and XenStore, and their implementations over
//! Linux' devices.
//!
//! Each module with unsafe code uses one device. The crate has no call that maps memory that was
//! not granted.
//!
//! The traits have two implementations: [`DevXen`], and the simulated hypervisor of the crate
//! `xen-sim`.
//!
//! ```
//! use xen::{Access, DomId, EventChannels, GrantTable, Xen};
//! use xen_sim::Hypervisor;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let hypervisor = Hypervisor::default();
//! let mut guest = hypervisor.guest(1, 16);
//!
//! // The guest grants a page; this domain maps it.
//! let page = guest.allocate();
//! let reference = guest.grant(&[page], Access::ReadOnly);
//! let mapped = hypervisor.grants(DomId(1))?.map(&[reference], Access::ReadOnly)?;
//! assert!(mapped.as_ref().slice(0, 4096).is_some());
//!
//! // The guest allocates an event channel; this domain binds it and notifies the guest.
//! let port = guest.port();
//! let mut events = hypervisor.events(DomId(1))?;
//! let local = events.bind(port.port)?;
//! events.notify(local)?;
//! port.wait("an event");
//! # Ok(())
//! # }
//! ```

mod causes;
mod device_file;
mod evtchn;
mod fired;
mod gntalloc;
mod gntdev;
mod host;
pub mod mapped;
pub mod staging;
mod xenstore;

use std::fmt;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

pub use protocol::grant::Access;
use protocol::grant::GrantRef;
use vm_memory::VolatileSlice;

pub use self::causes::Causes;
pub use self::evtchn::Evtchn;
pub use self::fired::Fired;
pub use self::gntalloc::{Gntalloc, SharedPages};
pub use self::gntdev::{Gntdev, GntdevPages};
pub use self::host::{DevXen, GUEST_IOCTLS, GuestXen};
use self::mapped::MappedRange;
pub use self::xenstore::XenStoreConnection;

/// Opens handles. Each device opens its own set, so that no device waits for another.
pub trait Xen: Clone + Send + Sync + 'static {
    /// Maps and copies granted pages.
    type Grants: GrantTable;
    /// Event channels.
    type Events: EventChannels;
    /// Reads and writes XenStore.
    type Store: XenStore;

    /// Opens a handle to the grants of `guest`.
    ///
    /// # Errors
    /// The device could not be opened; the message names it and the kernel module that may be
    /// missing.
    fn grants(&self, guest: DomId) -> io::Result<Self::Grants>;

    /// Opens a handle to event channels with `guest`.
    ///
    /// # Errors
    /// As [`Xen::grants`].
    fn events(&self, guest: DomId) -> io::Result<Self::Events>;

    /// Opens a handle to event channels with `guest` for another process, which passes it to
    /// [`Xen::events_of`]; `None` if that process opens its own.
    ///
    /// # Errors
    /// As [`Xen::grants`].
    fn events_for_process(&self, guest: DomId) -> io::Result<Option<OwnedFd>> {
        let _ = guest;
        Ok(None)
    }

    /// The handle that another process opened by [`Xen::events_for_process`].
    ///
    /// # Errors
    /// As [`Xen::grants`].
    fn events_of(&self, guest: DomId, descriptor: Option<OwnedFd>) -> io::Result<Self::Events> {
        drop(descriptor);
        self.events(guest)
    }

    /// Opens a XenStore connection.
    ///
    /// # Errors
    /// [`StoreError::Connection`].
    fn store(&self) -> Result<Self::Store, StoreError>;
}

/// A domain id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DomId(pub u16);

impl fmt::Display for DomId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "domain {}", self.0)
    }
}

/// An event channel's port in the guest, as the guest numbers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RemotePort(pub u32);

/// An event channel's port in this domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LocalPort(pub u32);

/// A failed map of granted pages.
#[derive(Debug, thiserror::Error)]
pub enum MapError {
    /// The hypervisor refuses: the grant does not exist, is for another domain, or is read-only.
    #[error("the hypervisor refuses {access:?} access to {count} page(s) from {first}")]
    Refused {
        /// The first reference that may be refused.
        first: GrantRef,
        /// The number of references from `first` on that may be refused.
        count: usize,
        /// The requested access.
        access: Access,
        /// The kernel's error.
        source: io::Error,
    },
    /// This domain lacks memory, mapping slots or map tracking entries.
    #[error("this domain lacks resources to map {count} granted page(s)")]
    NoRoom {
        /// The number of pages requested.
        count: usize,
        /// The kernel's error.
        source: io::Error,
    },
}

/// The direction of a copy by the hypervisor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CopyDirection {
    /// From granted pages into memory of this process.
    FromGuest,
    /// From memory of this process into pages granted for writing.
    ToGuest,
}

/// A part of one granted page, and the memory of this process to copy to or from.
#[derive(Clone, Copy, Debug)]
pub struct CopySegment<'a> {
    /// The grant of the page.
    pub reference: GrantRef,
    /// Offset in the page, in bytes.
    pub offset: u16,
    /// The local memory. Its length is the segment's; the segment must not cross the page's end.
    pub here: VolatileSlice<'a>,
}

/// A failed copy by the hypervisor.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// The hypervisor refuses: the grant does not exist, is for another domain, or is read-only.
    #[error("the hypervisor refuses to copy from or to {reference} (status {status})")]
    Refused {
        /// The reference of the first refused segment.
        reference: GrantRef,
        /// The segment's status, `GNTST_…`.
        status: i16,
    },
    /// A segment crosses the end of its page, or there are too many segments.
    #[error("a copy segment crosses the end of its page, or there are too many segments")]
    Beyond,
    /// The kernel did not pass the request to the hypervisor.
    #[error("cannot copy granted pages")]
    Failed(#[source] io::Error),
}

/// Maps and copies pages that one guest granted to this domain.
pub trait GrantTable: Send + Sync + 'static {
    /// Mapped pages; dropping the value unmaps them.
    type Pages: AsRef<MappedRange> + Send + Sync + 'static;

    /// Maps the pages behind `references` to consecutive addresses.
    ///
    /// # Errors
    /// [`MapError`]; then no page is mapped.
    fn map(&self, references: &[GrantRef], access: Access) -> Result<Self::Pages, MapError>;

    /// Whether the kernel may hold mapped pages for longer than this process lives, as direct I/O
    /// and registered memory do.
    fn may_be_pinned(&self) -> bool {
        true
    }

    /// Copies all segments with one hypercall, without a mapping.
    ///
    /// # Errors
    /// [`CopyError`]; then some segments may have been copied.
    fn copy(&self, direction: CopyDirection, segments: &[CopySegment<'_>])
    -> Result<(), CopyError>;
}

/// A failed operation on an event channel.
#[derive(Debug, thiserror::Error)]
#[error("cannot {operation} event channel {port}")]
pub struct EventError {
    /// The operation that failed, an infinitive.
    pub operation: &'static str,
    /// The port: the guest's number for `bind`, the local one otherwise; 0 if none is known.
    pub port: u32,
    /// The kernel's error.
    pub source: io::Error,
}

/// Event channels between this domain and one guest. The descriptor is readable (poll) while events
/// are pending.
pub trait EventChannels: AsFd + Send + 'static {
    /// Binds the guest's unbound `port`.
    ///
    /// # Errors
    /// [`EventError`] if the guest has no such port for this domain.
    fn bind(&mut self, port: RemotePort) -> Result<LocalPort, EventError>;

    /// Closes a port; [`EventChannels::pending`] does not return it again.
    fn unbind(&mut self, port: LocalPort);

    /// Sends an event to the guest through `port`.
    ///
    /// # Errors
    /// [`EventError`] if the port is not bound.
    fn notify(&mut self, port: LocalPort) -> Result<(), EventError>;

    /// Returns a pending port, without waiting. The port stays masked until
    /// [`EventChannels::unmask`], so that a storm of events costs one wake-up (XSA-332).
    ///
    /// # Errors
    /// [`EventError`] if the kernel fails to read the pending ports.
    fn pending(&mut self) -> Result<Option<LocalPort>, EventError>;

    /// Unmasks a port after its events were handled, so that it can become pending again.
    ///
    /// # Errors
    /// [`EventError`] if the port is not bound.
    fn unmask(&mut self, port: LocalPort) -> Result<(), EventError>;
}

/// A failed XenStore operation.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// xenstored answers with an error.
    #[error("XenStore refuses to {operation} {path}: {errno}")]
    Refused {
        /// The operation that failed, an infinitive.
        operation: &'static str,
        /// The node's path.
        path: String,
        /// The error's name, as in `ENOENT`.
        errno: String,
    },
    /// The connection failed or could not be opened.
    #[error("cannot {operation} XenStore at {path}")]
    Connection {
        /// The operation that failed, an infinitive.
        operation: &'static str,
        /// The path of the XenStore device.
        path: String,
        /// The kernel's error.
        source: io::Error,
    },
    /// xenstored sent a message that violates the protocol.
    #[error("XenStore violated its protocol: {0}")]
    Protocol(&'static str),
    /// A node has more children than one answer holds, and xenstored has no `XS_DIRECTORY_PART`.
    #[error(
        "{0} has more entries than one answer of XenStore's holds, and this xenstored cannot list \
         them in parts: use the C xenstored of Xen 4.9 or later"
    )]
    ListTooLong(String),
    /// The request exceeds the device's limit, or its path contains NUL.
    #[error("request is too long for XenStore, or its path contains NUL: {0}")]
    TooLong(String),
}

impl StoreError {
    /// Whether the connection is unusable, so that a new one is needed. Otherwise only the current
    /// operation failed.
    pub fn is_lost(&self) -> bool {
        match self {
            Self::Connection { .. } | Self::Protocol(_) => true,
            Self::Refused { .. } | Self::TooLong(_) | Self::ListTooLong(_) => false,
        }
    }
}

/// A connection to XenStore. Relative paths start at this domain's own directory. The descriptor is
/// readable (poll) when a watch may have fired.
pub trait XenStore: AsFd + Send + 'static {
    /// Reads a node's value; `None` if the node does not exist or this domain may not read it.
    ///
    /// # Errors
    /// [`StoreError`] for anything but a missing node.
    fn read(&mut self, path: &str) -> Result<Option<String>, StoreError>;

    /// Lists the names of a node's children; none if the node does not exist or this domain may not
    /// read it.
    ///
    /// # Errors
    /// [`StoreError`] for anything but a missing node.
    fn list(&mut self, path: &str) -> Result<Vec<String>, StoreError>;

    /// Writes a node and creates it if it does not exist.
    ///
    /// # Errors
    /// [`StoreError`].
    fn write(&mut self, path: &str, value: &str) -> Result<(), StoreError>;

    /// Writes `path` if the node `existing`, which may be `path` itself, exists at that moment, so
    /// that a write does not recreate a directory that somebody removed.
    ///
    /// # Errors
    /// [`StoreError`].
    fn write_beside(&mut self, existing: &str, path: &str, value: &str) -> Result<(), StoreError>;

    /// Removes a node and all nodes below it. The node may be missing.
    ///
    /// # Errors
    /// [`StoreError`] for anything but a missing node.
    fn remove(&mut self, path: &str) -> Result<(), StoreError>;

    /// Registers a watch: it fires for every change at or below `path`, and once at once.
    ///
    /// # Errors
    /// [`StoreError`].
    fn watch(&mut self, path: &str) -> Result<(), StoreError>;

    /// Takes all watch events that have arrived, without waiting, and returns their paths. Call it
    /// before every wait: an event that arrived together with an answer no longer makes the
    /// descriptor readable.
    ///
    /// # Errors
    /// [`StoreError`] if the connection failed.
    fn take_fired(&mut self) -> Result<Fired, StoreError>;

    /// As [`XenStore::take_fired`], for a caller that checks everything that it depends on; returns
    /// whether a watch fired.
    ///
    /// # Errors
    /// As there.
    fn take_events(&mut self) -> Result<bool, StoreError> {
        Ok(self.take_fired()?.is_any())
    }
}

/// A connection of a toolstack's to XenStore, which changes several nodes at once.
pub trait ToolstackStore: XenStore {
    /// Carries `change` out in a transaction: all of what it does, or, after an error, nothing. It
    /// is carried out again, for at most 10 s, if others changed meanwhile what it has read.
    /// Watches do not belong in it.
    ///
    /// # Errors
    /// Those of `change`, and [`StoreError`].
    fn transact<T, E: From<StoreError>>(
        &mut self,
        change: impl FnMut(&mut Self) -> Result<T, E>,
    ) -> Result<T, E>;

    /// Creates a node that belongs to `owner` and that `reader` may read. New nodes below it are
    /// the same.
    ///
    /// # Errors
    /// [`StoreError`].
    fn create(&mut self, path: &str, owner: DomId, reader: DomId) -> Result<(), StoreError>;

    /// Gives a node that is there to `owner`, and lets `reader` read it. Those below it stay as
    /// they are.
    ///
    /// # Errors
    /// [`StoreError`].
    fn share(&mut self, path: &str, owner: DomId, reader: DomId) -> Result<(), StoreError>;
}
