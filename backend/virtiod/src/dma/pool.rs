//! The pool: pages that the driver shared once, mapped until the device is reset [3.10].

use std::sync::Arc;
use std::sync::atomic::Ordering;

use protocol::grant::{GrantRef, PAGE_SIZE, TOOLSTACK_REFERENCES};
use protocol::pool::{MAX_POOL_PAGES, PoolPage, PoolRange};
use vm_memory::VolatileSlice;

use super::PageNumber;
use crate::dma::budget::{BudgetError, GuestBudget, Purpose, Reservation};
use crate::stats::DeviceStats;
use xen::mapped::MappedRange;
use xen::{Access, MapError};

/// Why pages are not taken into the pool [5.8].
#[derive(Debug, thiserror::Error)]
pub enum ShareError {
    /// The platform has no pool.
    #[error("a pool was not offered")]
    NotOffered,
    /// No page.
    #[error("no page is shared")]
    Empty,
    /// Pages, or references, that there cannot be.
    #[error("{count} page(s) from {first}, granted from {reference} on, leave the pool")]
    Beyond {
        /// The first page's number.
        first: PoolPage,
        /// How many.
        count: u32,
        /// The first page's grant.
        reference: GrantRef,
    },
    /// More than the driver may share.
    #[error("{pages} page(s) with these are more than the configured {limit}")]
    Full {
        /// All pages then.
        pages: u32,
        /// As many as there may be.
        limit: u32,
    },
    /// A page by that number is there.
    #[error("{0} was shared before")]
    Again(PoolPage),
    /// A page that the toolstack granted [3.13].
    #[error("{0} is the toolstack's, not a driver's")]
    Toolstack(GrantRef),
    /// They cannot be mapped.
    #[error(transparent)]
    Map(#[from] MapError),
    /// There is no room to map them.
    #[error(transparent)]
    Budget(#[from] BudgetError),
}

/// Pages that were shared with one message, contiguous here.
struct Chunk<P> {
    first: u32,
    count: u32,
    pages: P,
    _room: Reservation,
}

/// All that one driver shared.
pub(super) struct SharedPool<P> {
    chunks: Vec<Chunk<P>>,
    /// By page number, the position of its chunk; as long as the highest page needs.
    table: Vec<Option<u16>>,
    /// Pages in all, and the most there may be.
    pages: u32,
    limit: u32,
    stats: Arc<DeviceStats>,
}

impl<P: AsRef<MappedRange>> SharedPool<P> {
    pub(super) fn new(stats: Arc<DeviceStats>) -> Self {
        Self { chunks: Vec::new(), table: Vec::new(), pages: 0, limit: MAX_POOL_PAGES, stats }
    }

    /// Takes no more than `pages` pages from now on.
    pub(super) fn limit(&mut self, pages: u32) {
        self.limit = pages;
    }

    /// Takes pages in, mapped by `map`: all of them, or none.
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
        // Both are bounded by the pool's size.
        let all = self.pages + count;
        if all > self.limit {
            return Err(ShareError::Full { pages: all, limit: self.limit });
        }
        let (start, end) = (first.0 as usize, end as usize);
        let known = self.table.iter().enumerate().take(end).skip(start);
        let again = known.filter(|(_, chunk)| chunk.is_some()).map(|(page, _)| page).next();
        if let Some(page) = again {
            return Err(ShareError::Again(PoolPage(page as u32)));
        }
        let room = budget.reserve(count, Purpose::SharedPool)?;
        let references = u64::from(reference.0)..u64::from(reference.0) + u64::from(count);
        let pages = map(&references.map(PageNumber).collect::<Vec<_>>(), Access::ReadWrite)?;
        // A chunk has a page at least, so there are no more of them than there may be pages.
        let position = self.chunks.len() as u16;
        self.pages = all;
        self.chunks.push(Chunk { first: first.0, count, pages, _room: room });
        self.table.resize(self.table.len().max(end), None);
        self.table.iter_mut().take(end).skip(start).for_each(|entry| *entry = Some(position));
        DeviceStats::count(&self.stats.maps);
        self.stats.maps_pages.fetch_add(count.into(), Ordering::Relaxed);
        self.stats.grants_mapped.fetch_add(count.into(), Ordering::Relaxed);
        self.stats.pool_pages.fetch_add(count.into(), Ordering::Relaxed);
        Ok(())
    }

    /// Where a buffer lies, if its pages were shared, with one message.
    pub(super) fn find(&self, range: PoolRange) -> Option<VolatileSlice<'_>> {
        let position = *self.table.get(range.first.0 as usize)?;
        let chunk = self.chunks.get(usize::from(position?))?;
        let skipped = range.first.0.checked_sub(chunk.first)?;
        let offset = u64::from(skipped) * PAGE_SIZE + range.offset;
        // Its end is in the chunk, or `slice` refuses it: the chunk's pages are the mapping.
        chunk.pages.as_ref().slice(offset as usize, usize::try_from(range.length).ok()?)
    }
}

impl<P> SharedPool<P> {
    /// Unmaps everything.
    pub(super) fn clear(&mut self) {
        let count: u64 = self.chunks.drain(..).map(|chunk| u64::from(chunk.count)).sum();
        self.table.clear();
        self.pages = 0;
        self.stats.grants_mapped.fetch_sub(count, Ordering::Relaxed);
        self.stats.pool_pages.fetch_sub(count, Ordering::Relaxed);
    }
}

impl<P> Drop for SharedPool<P> {
    fn drop(&mut self) {
        self.clear();
    }
}
