//! The access platform between a device and its driver's memory: it decodes addresses and reaches
//! the pages behind them.
//!
//! Whether an access platform is in between is a property of the platform, not of the device or of
//! the driver: the same devices run over any [`AccessPlatform`]. xen-virtiod only makes one,
//! [`crate::dma::grants::GrantPlatform`]. This folder knows pages and mappings; it knows neither
//! virtqueues nor devices.

pub mod budget;
mod copy_buffer;
mod device_memory;
mod fault;
pub mod grants;
mod held;
mod mapper;
mod mapping;
mod memory;
mod pool;
mod ring_mapping;
pub mod shared_count;
#[cfg(test)]
mod tests;
#[cfg(test)]
pub mod window;

use protocol::grant::{AddressError, PAGE_SIZE, pages_spanned};
use protocol::pool::PoolRange;
use vm_memory::VolatileSlice;

pub use self::fault::AccessFault;
pub use self::memory::{DmaMemory, DmaRange};
pub use self::pool::{ShareError, UnshareError};
pub use self::ring_mapping::RingMapping;
use xen::mapped::MappedRange;
use xen::{Access, CopyDirection, CopyError, MapError};

/// A page number on the platform: a grant reference, or a guest's frame number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PageNumber(pub u64);

/// Consecutive pages, and the bytes in them that an address and a length describe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageRange {
    /// The address that this was decoded from.
    pub address: u64,
    /// The page that holds the first byte.
    pub first: PageNumber,
    /// Number of pages, at least 1.
    pub pages: u32,
    /// Offset of the first byte in the first page.
    pub offset: u64,
    /// Length in bytes, at least 1.
    pub length: u64,
}

impl PageRange {
    /// The part of the range that `inner` describes, if the range contains all of it.
    fn part(self, inner: DmaRange) -> Option<Self> {
        let skipped = inner.offset_in(self.address, self.length)? as u64;
        let start = self.offset + skipped;
        let (first, offset) = (self.first.0 + start / PAGE_SIZE, start % PAGE_SIZE);
        let pages = u32::try_from(pages_spanned(offset, inner.length)).ok()?;
        let (address, length) = (inner.address, inner.length);
        Some(Self { address, first: PageNumber(first), pages, offset, length })
    }

    /// Iterates over the page numbers, in order.
    pub fn numbers(self) -> impl Iterator<Item = PageNumber> {
        // `AccessPlatform::decode` ensures that the last page has a number.
        (0..u64::from(self.pages)).map(move |page| PageNumber(self.first.0.wrapping_add(page)))
    }
}

/// A part of one page, and the memory of this process to copy to or from.
#[derive(Clone, Copy, Debug)]
pub struct PagePart<'a> {
    /// The guest's page.
    pub page: PageNumber,
    /// Offset in the page, in bytes.
    pub offset: u16,
    /// The local memory; its length is the part's.
    pub here: VolatileSlice<'a>,
}

/// The memory that an address and a length describe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Location {
    /// Bytes in pages that the device has to map or copy.
    Pages(PageRange),
    /// Bytes in the pool, whose pages the driver must have shared before.
    Pool(PoolRange),
}

/// An address that is invalid on the platform.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddressFault {
    /// The address is not a grant address.
    #[error("not granted memory")]
    Grant(#[from] AddressError),
    /// The address is in the pool, but the driver did not share these pages with one message.
    #[error(
        "{length} bytes at {first} are not in pages shared with one message",
        length = .0.length, first = .0.first
    )]
    NotShared(PoolRange),
    /// A ring has an address in the pool, where only buffers may be.
    #[error("ring at {first} is in the pool; use granted pages", first = .0.first)]
    PooledRing(PoolRange),
    /// The range is outside the addresses that the platform translates.
    #[error("{length} bytes at {address:#x} are not in the platform's window")]
    Outside {
        /// First address of the range.
        address: u64,
        /// Length of the range in bytes.
        length: u64,
    },
}

/// Decodes addresses of one guest and reaches the pages behind them.
pub trait AccessPlatform: Send + Sync + 'static {
    /// Mapped pages; dropping the value unmaps them.
    type Pages: AsRef<MappedRange> + Send + Sync;

    /// Bus features that the platform offers (SPEC clause 2.3): with
    /// [`protocol::binding::F_SHARED_POOL`], page numbers are grant references.
    const BUS_FEATURES: u32 = 0;

    /// Decodes `length` bytes at `address`. The pages need not exist.
    ///
    /// # Errors
    /// [`AddressFault`], also if `length` is 0.
    fn decode(&self, address: u64, length: u64) -> Result<Location, AddressFault>;

    /// Maps pages to consecutive addresses.
    ///
    /// # Errors
    /// [`MapError`]; then no page is mapped.
    fn map(&self, pages: &[PageNumber], access: Access) -> Result<Self::Pages, MapError>;

    /// Whether the kernel may hold mapped pages for longer than this process lives, as direct I/O
    /// and registered memory do.
    fn may_be_pinned(&self) -> bool {
        true
    }

    /// Copies between pages and memory of this process with one call, without a mapping. `None` if
    /// the platform has no such call.
    ///
    /// # Errors
    /// [`CopyError`]; then some parts may have been copied.
    fn copy(
        &self,
        direction: CopyDirection,
        parts: &mut dyn Iterator<Item = PagePart<'_>>,
    ) -> Option<Result<(), CopyError>> {
        let _ = (direction, parts);
        None
    }

    /// The feature bits about access to memory (`VIRTIO_F_ACCESS_PLATFORM`) that the platform
    /// offers.
    fn offered(&self) -> u64;

    /// Whether the device works with a driver that accepted `features`. The transport asks for each
    /// driver before it decodes any of its addresses.
    fn accepts(&self, features: u64) -> bool;
}
