//! The pool: pages that the driver shared, mapped until the device is reset [3.10].

use std::sync::Arc;
use std::sync::atomic::Ordering;

use protocol::grant::{GrantRef, TOOLSTACK_REFERENCES};
use protocol::pool::{MAX_POOL_PAGES, PoolPage};
use vm_memory::VolatileSlice;

use super::PageNumber;
use crate::dma::budget::{BudgetError, GuestBudget, Purpose, Reservation};
use crate::stats::DeviceStats;
use xen::mapped::MappedRange;
use xen::{Access, MapError};

/// A refused share of pages [5.8].
#[derive(Debug, thiserror::Error)]
pub enum ShareError {
    /// The platform does not offer a pool.
    #[error("the device did not offer a pool")]
    NotOffered,
    /// The message shares no page.
    #[error("the message shares no page")]
    Empty,
    /// Page numbers beyond the pool's end, or references beyond 32 bits.
    #[error("{count} page(s) from {first}, granted from {reference} on, are beyond the pool's end")]
    Beyond {
        /// Number of the first page in the pool.
        first: PoolPage,
        /// Number of pages.
        count: u32,
        /// Grant of the first page.
        reference: GrantRef,
    },
    /// The pool would exceed its limit.
    #[error("the pool would have {pages} page(s), more than the configured {limit}")]
    Full {
        /// Pages of the pool including the new ones.
        pages: u32,
        /// Maximum number of pages.
        limit: u32,
    },
    /// The driver has already shared this page.
    #[error("{0} is already shared")]
    Again(PoolPage),
    /// The page belongs to the toolstack [3.13].
    #[error("{0} belongs to the toolstack, not to a driver")]
    Toolstack(GrantRef),
    /// The hypervisor or the kernel did not map the pages.
    #[error(transparent)]
    Map(#[from] MapError),
    /// The mapping would exceed a budget.
    #[error(transparent)]
    Budget(#[from] BudgetError),
}

/// A refused request to unmap pages [5.11].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnshareError {
    /// No message shared these pages and no others.
    #[error("no message shared {count} page(s) from {first}")]
    NotShared {
        /// Number of the first page in the pool.
        first: PoolPage,
        /// Number of pages.
        count: u32,
    },
    /// Storage uses pages of the pool.
    #[error("storage uses pages of the pool")]
    InUse,
}

/// Pages shared with one message, mapped to consecutive addresses.
#[derive(Debug)]
pub(super) struct Chunk<P> {
    first: u32,
    count: u32,
    /// Grant of the first page.
    reference: GrantRef,
    /// DMA address of the first byte.
    start: u64,
    pages: P,
    _reservation: Reservation,
}

impl<P: AsRef<MappedRange>> Chunk<P> {
    /// The bytes of all its pages.
    pub(super) fn bytes(&self) -> Option<VolatileSlice<'_>> {
        let pages = self.pages.as_ref();
        pages.slice(0, pages.length())
    }
}

/// The position of the chunk of a page that was not shared: there are at most [`MAX_POOL_PAGES`].
const NO_CHUNK: u16 = u16::MAX;

/// The pages of a pool. They stay mapped as long as a share of them exists.
#[derive(Debug)]
pub(super) struct PoolPages<P> {
    chunks: Vec<Arc<Chunk<P>>>,
    /// The position of each page's chunk, by page number; as long as the highest page needs.
    table: Vec<u16>,
}

impl<P> Default for PoolPages<P> {
    fn default() -> Self {
        Self { chunks: Vec::new(), table: Vec::new() }
    }
}

impl<P> Clone for PoolPages<P> {
    fn clone(&self) -> Self {
        Self { chunks: self.chunks.clone(), table: self.table.clone() }
    }
}

impl<P> PoolPages<P> {
    /// Enters the position of the chunk of `count` pages from `first` on.
    fn enter(&mut self, first: u32, count: u32, position: u16) {
        let (first, count) = (first as usize, count as usize);
        self.table.iter_mut().skip(first).take(count).for_each(|entry| *entry = position);
    }

    fn add(&mut self, chunk: Chunk<P>) {
        let (first, count) = (chunk.first, chunk.count);
        // Each chunk has at least one page, so MAX_POOL_PAGES bounds the number of chunks.
        let position = self.chunks.len() as u16;
        self.chunks.push(Arc::new(chunk));
        let end = (first + count) as usize;
        self.table.resize(self.table.len().max(end), NO_CHUNK);
        self.enter(first, count, position);
    }

    /// Removes the chunk of these pages, which nothing else uses.
    fn remove(&mut self, first: PoolPage, count: u32) -> Result<(), UnshareError> {
        let not_shared = UnshareError::NotShared { first, count };
        let position = *self.table.get(first.0 as usize).ok_or(not_shared)?;
        let index = usize::from(position);
        let chunk = self.chunks.get_mut(index).ok_or(not_shared)?;
        if (chunk.first, chunk.count) != (first.0, count) {
            return Err(not_shared);
        }
        Arc::get_mut(chunk).ok_or(UnshareError::InUse)?;
        self.chunks.swap_remove(index);
        self.enter(first.0, count, NO_CHUNK);
        if let Some(moved) = self.chunks.get(index) {
            self.enter(moved.first, moved.count, position);
        }
        Ok(())
    }
}

impl<P: AsRef<MappedRange>> PoolPages<P> {
    /// Returns the bytes of an address in the pool, if the driver shared all their pages with one
    /// message.
    #[inline]
    pub(super) fn find(&self, address: u64, length: u64) -> Option<VolatileSlice<'_>> {
        let chunk = self.chunk(address)?;
        // An offset or an end outside the chunk is refused: its pages are the mapping.
        let offset = address.wrapping_sub(chunk.start);
        chunk.pages.as_ref().slice(usize::try_from(offset).ok()?, usize::try_from(length).ok()?)
    }

    /// The chunk of an address in the pool.
    #[inline]
    pub(super) fn chunk(&self, address: u64) -> Option<&Arc<Chunk<P>>> {
        let (page, _) = PoolPage::at(address)?;
        let position = *self.table.get(page.0 as usize)?;
        self.chunks.get(usize::from(position))
    }
}

/// All pages that one driver shared.
pub(super) struct SharedPool<P> {
    shared: Arc<PoolPages<P>>,
    /// Total number of pages, and its limit.
    pages: u32,
    limit: u32,
    stats: Arc<DeviceStats>,
}

impl<P: AsRef<MappedRange>> SharedPool<P> {
    pub(super) fn new(stats: Arc<DeviceStats>) -> Self {
        Self { shared: Arc::default(), pages: 0, limit: MAX_POOL_PAGES, stats }
    }

    /// A share of the present pages, which keeps them mapped; they count for `self`.
    pub(super) fn beside(&self) -> Self {
        Self {
            shared: Arc::clone(&self.shared),
            pages: 0,
            limit: self.limit,
            stats: Arc::clone(&self.stats),
        }
    }

    /// Limits the pool to `pages` pages from now on.
    pub(super) fn limit(&mut self, pages: u32) {
        self.limit = pages;
    }

    /// Raises the limit to `pages` pages, if it is lower.
    pub(super) fn raise_limit(&mut self, pages: u32) {
        self.limit = self.limit.max(pages);
    }

    /// Adds pages, which `map` maps: all of them, or none.
    pub(super) fn share(
        &mut self,
        first: PoolPage,
        count: u32,
        reference: GrantRef,
        budget: &Arc<GuestBudget>,
        map: impl FnOnce(&[PageNumber], Access) -> Result<P, MapError>,
    ) -> Result<(), ShareError> {
        if count == 0 {
            return Err(ShareError::Empty);
        }
        if reference.0 < TOOLSTACK_REFERENCES {
            return Err(ShareError::Toolstack(reference));
        }
        let beyond = || ShareError::Beyond { first, count, reference };
        let end = first.0.checked_add(count).filter(|end| *end <= MAX_POOL_PAGES);
        let end = end.ok_or_else(beyond)?;
        reference.0.checked_add(count - 1).ok_or_else(beyond)?;
        // The sum cannot overflow: the pool's size bounds both.
        let all = self.pages + count;
        if all > self.limit {
            return Err(ShareError::Full { pages: all, limit: self.limit });
        }
        let (start, end) = (first.0 as usize, end as usize);
        let known = self.shared.table.iter().enumerate().take(end).skip(start);
        let again = known.filter(|(_, chunk)| **chunk != NO_CHUNK).map(|(page, _)| page).next();
        if let Some(page) = again {
            return Err(ShareError::Again(PoolPage(page as u32)));
        }
        let room = budget.reserve(count, Purpose::SharedPool)?;
        let references = u64::from(reference.0)..u64::from(reference.0) + u64::from(count);
        let pages = map(&references.map(PageNumber).collect::<Vec<_>>(), Access::ReadWrite)?;
        let start = first.address(0);
        let chunk = Chunk { first: first.0, count, reference, start, pages, _reservation: room };
        Arc::make_mut(&mut self.shared).add(chunk);
        self.pages = all;
        DeviceStats::count(&self.stats.maps);
        self.stats.maps_pages.fetch_add(count.into(), Ordering::Relaxed);
        self.stats.grants_mapped.fetch_add(count.into(), Ordering::Relaxed);
        self.stats.pool_pages.fetch_add(count.into(), Ordering::Relaxed);
        Ok(())
    }

    /// Returns the bytes of an address in the pool, if the driver shared all their pages with one
    /// message.
    #[inline]
    pub(super) fn find(&self, address: u64, length: u64) -> Option<VolatileSlice<'_>> {
        self.shared.find(address, length)
    }

    /// The first page, the number of pages and the first grant of each message that shared pages.
    pub(super) fn shares(&self) -> impl Iterator<Item = (PoolPage, u32, GrantRef)> {
        let share = |chunk: &Arc<Chunk<P>>| (PoolPage(chunk.first), chunk.count, chunk.reference);
        self.shared.chunks.iter().map(share)
    }

    /// A share of the present pages, which keeps them mapped.
    pub(super) fn pages(&self) -> Arc<PoolPages<P>> {
        Arc::clone(&self.shared)
    }
}

impl<P> SharedPool<P> {
    /// Unmaps the pages of one message, unless an operation uses the pool.
    pub(super) fn unshare(&mut self, first: PoolPage, count: u32) -> Result<(), UnshareError> {
        let shared = Arc::get_mut(&mut self.shared).ok_or(UnshareError::InUse)?;
        shared.remove(first, count)?;
        self.count_unmapped(count);
        Ok(())
    }

    /// Unmaps all pages, as soon as no operation uses them.
    pub(super) fn clear(&mut self) {
        self.shared = Arc::default();
        self.count_unmapped(self.pages);
    }

    fn count_unmapped(&mut self, pages: u32) {
        self.pages -= pages;
        self.stats.grants_mapped.fetch_sub(pages.into(), Ordering::Relaxed);
        self.stats.pool_pages.fetch_sub(pages.into(), Ordering::Relaxed);
    }
}

impl<P> Drop for SharedPool<P> {
    fn drop(&mut self) {
        self.clear();
    }
}
