//! The handles to Xen: grants, event channels and XenStore, as traits, and the devices of Linux
//! that open them.
//!
//! Each module with unsafe code is for one device. Nothing here can map memory that was not
//! granted: there is no call for it.

mod causes;
mod evtchn;
mod gntalloc;
mod gntdev;
mod host;
pub mod mapped;
pub mod staging;
mod xenstore;

use std::fmt;
use std::io;
use std::os::fd::AsFd;

pub use protocol::grant::Access;
use protocol::grant::GrantRef;
use vm_memory::VolatileSlice;

pub use self::causes::Causes;
pub use self::evtchn::Evtchn;
pub use self::gntalloc::{Gntalloc, SharedPages};
pub use self::gntdev::{Gntdev, GntdevPages};
pub use self::host::DevXen;
use self::mapped::MappedRange;
pub use self::xenstore::XenStoreConnection;

/// Opens handles. One set a device, so that no device waits for another.
pub trait Xen: Clone + Send + 'static {
    /// Maps grants.
    type Grants: GrantTable;
    /// Event channels.
    type Events: EventChannels;
    /// Reads and writes XenStore.
    type Store: XenStore;

    /// A handle to what `guest` granted.
    ///
    /// # Errors
    /// The device could not be opened; the message names it and the kernel module that is missing.
    fn grants(&self, guest: DomId) -> io::Result<Self::Grants>;

    /// A handle to event channels with `guest`.
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

/// A domain's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DomId(pub u16);

impl fmt::Display for DomId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "domain {}", self.0)
    }
}

/// An event channel's end in the guest, as the guest names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RemotePort(pub u32);

/// An event channel's end in this domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LocalPort(pub u32);

/// Why granted pages could not be mapped.
#[derive(Debug, thiserror::Error)]
pub enum MapError {
    /// The hypervisor refuses: no such grant, not for this domain, or not for writing.
    #[error("the hypervisor refuses {access:?} access to {count} page(s) from {first}")]
    Refused {
        /// First reference of the mapping.
        first: GrantRef,
        /// Its pages.
        count: usize,
        /// The access asked for.
        access: Access,
        /// What the kernel said.
        source: io::Error,
    },
    /// This domain is short of something: memory, mapping slots, grant frames.
    #[error("this domain has no room to map {count} granted page(s)")]
    NoRoom {
        /// Pages asked for.
        count: usize,
        /// What the kernel said.
        source: io::Error,
    },
}

/// Which way the hypervisor copies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CopyDirection {
    /// Out of granted pages.
    FromGuest,
    /// Into pages that were granted for writing.
    ToGuest,
}

/// A part of a granted page, and the bytes here that are copied from it or to it.
#[derive(Clone, Copy, Debug)]
pub struct CopySegment<'a> {
    /// The page.
    pub reference: GrantRef,
    /// Where in the page.
    pub offset: u16,
    /// As many bytes, at most up to the page's end.
    pub here: VolatileSlice<'a>,
}

/// Why bytes were not copied.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// The hypervisor refuses: no such grant, not for this domain, or not for writing.
    #[error("the hypervisor refuses to copy from or to {reference} (status {status})")]
    Refused {
        /// The first that is refused.
        reference: GrantRef,
        /// `GNTST_…`.
        status: i16,
    },
    /// A segment leaves its page, or there are too many.
    #[error("a part to be copied leaves its page")]
    Beyond,
    /// The hypervisor was not asked.
    #[error("cannot have granted pages copied")]
    Failed(#[source] io::Error),
}

/// Maps what one guest granted to this domain.
pub trait GrantTable: Send + 'static {
    /// Mapped pages; dropping it unmaps them.
    type Pages: AsRef<MappedRange> + Send;

    /// Maps the pages behind `references`, one after another in this domain's address space.
    ///
    /// # Errors
    /// [`MapError`]; nothing is mapped then, not even a part.
    fn map(&self, references: &[GrantRef], access: Access) -> Result<Self::Pages, MapError>;

    /// Has the hypervisor copy bytes, all by one call. Nothing is mapped for it.
    ///
    /// # Errors
    /// [`CopyError`]; some may have been copied then.
    fn copy(&self, way: CopyDirection, segments: &[CopySegment<'_>]) -> Result<(), CopyError>;
}

/// Why an event channel operation failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {operation} event channel {port}")]
pub struct EventError {
    /// What was tried, an infinitive.
    pub operation: &'static str,
    /// The port as its owner names it.
    pub port: u32,
    /// What the kernel said.
    pub source: io::Error,
}

/// Event channels between this domain and one guest. Readable (poll) while events are pending.
pub trait EventChannels: AsFd + Send + 'static {
    /// Binds the guest's unbound `port`.
    ///
    /// # Errors
    /// [`EventError`] if the guest has no such port for this domain.
    fn bind(&mut self, port: RemotePort) -> Result<LocalPort, EventError>;

    /// Closes a port; it never comes up in [`EventChannels::pending`] again.
    fn unbind(&mut self, port: LocalPort);

    /// Signals the guest.
    ///
    /// # Errors
    /// [`EventError`] if the port is not bound.
    fn notify(&mut self, port: LocalPort) -> Result<(), EventError>;

    /// A port that was signalled, without waiting. It stays masked until
    /// [`EventChannels::unmask`], so that a storm of events costs one wake-up (XSA-332).
    ///
    /// # Errors
    /// [`EventError`] if the handle is broken.
    fn pending(&mut self) -> Result<Option<LocalPort>, EventError>;

    /// Lets a port signal again: its events have been dealt with.
    ///
    /// # Errors
    /// [`EventError`] if the port is not bound.
    fn unmask(&mut self, port: LocalPort) -> Result<(), EventError>;
}

/// Why a XenStore operation failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// XenStore's own answer.
    #[error("XenStore refuses to {operation} {path}: {errno}")]
    Refused {
        /// What was tried, an infinitive.
        operation: &'static str,
        /// On which path.
        path: String,
        /// The error's name, as in `ENOENT`.
        errno: String,
    },
    /// The connection is gone or was never there.
    #[error("cannot {operation} XenStore at {path}")]
    Connection {
        /// What was tried.
        operation: &'static str,
        /// The device.
        path: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// An answer that is none.
    #[error("XenStore answered out of turn: {0}")]
    Protocol(&'static str),
    /// A request longer than XenStore takes.
    #[error("too long for XenStore: {0}")]
    TooLong(String),
}

impl StoreError {
    /// Whether the connection is of no more use, so that a new one is needed. Otherwise only the
    /// operation at hand failed.
    pub fn is_lost(&self) -> bool {
        match self {
            Self::Connection { .. } | Self::Protocol(_) => true,
            Self::Refused { .. } | Self::TooLong(_) => false,
        }
    }
}

/// XenStore, as this domain sees it. Relative paths start at the domain's own directory. Readable
/// (poll) when a watch may have fired.
pub trait XenStore: AsFd + Send + 'static {
    /// A node's value; `None` where there is no node that this domain may read.
    ///
    /// # Errors
    /// [`StoreError`] for anything but a missing node.
    fn read(&mut self, path: &str) -> Result<Option<String>, StoreError>;

    /// Names of a node's children; none where there is no node that this domain may read.
    ///
    /// # Errors
    /// [`StoreError`] for anything but a missing node.
    fn list(&mut self, path: &str) -> Result<Vec<String>, StoreError>;

    /// Writes a node.
    ///
    /// # Errors
    /// [`StoreError`].
    fn write(&mut self, path: &str, value: &str) -> Result<(), StoreError>;

    /// Writes a node if `existing`, another or the same, is there at that moment: what was removed
    /// is not brought back.
    ///
    /// # Errors
    /// [`StoreError`].
    fn write_beside(&mut self, existing: &str, path: &str, value: &str) -> Result<(), StoreError>;

    /// Removes a node and what is below; it may be missing.
    ///
    /// # Errors
    /// [`StoreError`] for anything but a missing node.
    fn remove(&mut self, path: &str) -> Result<(), StoreError>;

    /// Tells of every change at or below `path` from now on, and once right away.
    ///
    /// # Errors
    /// [`StoreError`].
    fn watch(&mut self, path: &str) -> Result<(), StoreError>;

    /// Takes all watch events that have arrived, without waiting, and says whether there were any.
    /// To be asked before every wait: an event that came with an answer is not on the descriptor
    /// any more. Which path changed is not told: whoever watches looks at everything it depends on,
    /// so events that pile up cost one look (XSA-349).
    ///
    /// # Errors
    /// [`StoreError`] if the connection is gone.
    fn take_events(&mut self) -> Result<bool, StoreError>;
}
