//! The platform's mechanism between a device and its driver's memory: what an address means, and
//! how the pages behind it are reached.
//!
//! Whether a device is behind that mechanism is a property of the platform, not of the device and
//! not of the driver: the same devices run over any [`AccessPlatform`]. xen-virtiod only ever makes
//! one, [`crate::dma::grants::GrantPlatform`]. This folder knows pages and mappings; it knows no
//! virtqueue and no device.

pub mod budget;
mod copy_buffer;
mod device_memory;
mod fault;
pub mod grants;
mod mapping;
mod memory;
mod pool;
mod ring_mapping;
#[cfg(test)]
mod tests;
#[cfg(test)]
pub mod window;

use protocol::grant::AddressError;
use protocol::pool::PoolRange;
use vm_memory::VolatileSlice;

pub use self::fault::AccessFault;
pub use self::memory::{DmaMemory, DmaRange};
pub use self::pool::ShareError;
pub use self::ring_mapping::MappingId;
use xen::mapped::MappedRange;
use xen::{Access, CopyDirection, CopyError, MapError};

/// A page as the platform names it: a grant reference, or a frame of the guest's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PageNumber(pub u64);

/// Consecutive pages, and the bytes in them that an address and a length mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageRange {
    /// What it was decoded from.
    pub address: u64,
    /// The first page.
    pub first: PageNumber,
    /// How many there are, at least 1.
    pub pages: u32,
    /// Where in the first page the bytes start.
    pub offset: u64,
    /// How many bytes, at least 1.
    pub length: u64,
}

impl PageRange {
    /// Its pages, in order.
    pub fn numbers(self) -> impl Iterator<Item = PageNumber> {
        // `AccessPlatform::decode` sees to it that the last one is a number.
        (0..u64::from(self.pages)).map(move |page| PageNumber(self.first.0.wrapping_add(page)))
    }
}

/// A part of a page, and the bytes here that are copied from it or to it.
#[derive(Clone, Copy, Debug)]
pub struct PagePart<'a> {
    /// The page.
    pub page: PageNumber,
    /// Where in the page.
    pub offset: u16,
    /// As many bytes.
    pub here: VolatileSlice<'a>,
}

/// What an address and a length mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Location {
    /// Bytes in pages that are to be mapped for them.
    Pages(PageRange),
    /// Bytes in pages that the driver shared before, if it did.
    Pool(PoolRange),
}

/// An address that means nothing on the platform.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddressFault {
    /// No granted memory.
    #[error("not granted memory")]
    Grant(#[from] AddressError),
    /// In the pool, where nothing was shared.
    #[error("{length} bytes at {first} were not shared with one message", length = .0.length, first = .0.first)]
    NotShared(PoolRange),
    /// In the pool, where no ring may be.
    #[error("a ring in the pool, from {first} on", first = .0.first)]
    PooledRing(PoolRange),
    /// Outside what the platform translates.
    #[error("{length} bytes at {address:#x} are not in the platform's window")]
    Outside {
        /// The address.
        address: u64,
        /// The number of bytes.
        length: u64,
    },
}

/// How a device reaches the memory of one guest.
pub trait AccessPlatform: Send + 'static {
    /// Mapped pages; dropping it unmaps them.
    type Pages: AsRef<MappedRange> + Send;

    /// Bus features that are offered (SPEC clause 2.3): with [`protocol::binding::F_SHARED_POOL`],
    /// page numbers are grant references.
    const BUS_FEATURES: u32 = 0;

    /// What `length` bytes at `address` are. The pages need not be there.
    ///
    /// # Errors
    /// [`AddressFault`]; for no bytes, too.
    fn decode(&self, address: u64, length: u64) -> Result<Location, AddressFault>;

    /// Maps pages, one after another in this domain's address space.
    ///
    /// # Errors
    /// [`MapError`]; nothing is mapped then, not even a part.
    fn map(&self, pages: &[PageNumber], access: Access) -> Result<Self::Pages, MapError>;

    /// Has bytes copied between pages and memory of ours, all by one call; nothing is mapped for
    /// it. `None` where the platform has no such call.
    ///
    /// # Errors
    /// [`CopyError`]; some may have been copied then.
    fn copy(
        &self,
        way: CopyDirection,
        parts: &mut dyn Iterator<Item = PagePart<'_>>,
    ) -> Option<Result<(), CopyError>> {
        let _ = (way, parts);
        None
    }

    /// Of the feature bits that say how a device reaches memory (`VIRTIO_F_ACCESS_PLATFORM`), those
    /// that are offered.
    fn offered(&self) -> u64;

    /// Whether the device works with a driver that accepted `features`. Asked for each driver,
    /// before any address of its is looked at.
    fn accepts(&mut self, features: u64) -> bool;
}
