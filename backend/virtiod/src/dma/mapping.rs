//! One mapping of a guest's pages.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use protocol::grant::PAGE_SIZE;
use vm_memory::VolatileSlice;

use super::{PageNumber, PageRange};
use crate::dma::budget::Reservation;
use crate::stats::DeviceStats;
use xen::Access;
use xen::mapped::MappedRange;

/// Consecutive pages that are mapped, from `page` of a mapping on.
#[derive(Debug)]
pub(super) struct PageRun {
    pub(super) first: PageNumber,
    pub(super) pages: u32,
    pub(super) page: usize,
}

/// One mapping, of one or more runs in the order of their first pages and then their lengths. Counted
/// as long as it is there.
pub(super) struct Mapping<P> {
    pages: P,
    runs: Vec<PageRun>,
    _room: Reservation,
    stats: Arc<DeviceStats>,
}

impl<P> Mapping<P> {
    pub(super) fn new(
        pages: P,
        mut runs: Vec<PageRun>,
        room: Reservation,
        stats: Arc<DeviceStats>,
    ) -> Self {
        runs.sort_unstable_by_key(|run| (run.first, run.pages));
        let mapping = Self { pages, runs, _room: room, stats };
        mapping.stats.grants_mapped.fetch_add(mapping.count(), Ordering::Relaxed);
        mapping
    }

    fn count(&self) -> u64 {
        self.runs.iter().map(|run| u64::from(run.pages)).sum()
    }
}

impl<P> Drop for Mapping<P> {
    fn drop(&mut self) {
        self.stats.grants_mapped.fetch_sub(self.count(), Ordering::Relaxed);
    }
}

impl<P: AsRef<MappedRange>> Mapping<P> {
    /// Where `range` lies in the mapping, if it is there whole and `access` is allowed. Of runs that
    /// overlap the last that begins before the range is looked at: what is not found is mapped again.
    pub(super) fn find(&self, range: PageRange, access: Access) -> Option<VolatileSlice<'_>> {
        let mapped = self.pages.as_ref();
        if access > mapped.access() {
            return None;
        }
        let position = self.runs.partition_point(|run| run.first <= range.first).checked_sub(1)?;
        let run = self.runs.get(position)?;
        let skipped = range.first.0.checked_sub(run.first.0)?;
        let room = u64::from(run.pages).checked_sub(skipped)?;
        if u64::from(range.pages) > room {
            return None;
        }
        let page = run.page + skipped as usize;
        let offset = page * PAGE_SIZE as usize + range.offset as usize;
        mapped.slice(offset, usize::try_from(range.length).ok()?)
    }

    /// Bytes of the mapping.
    pub(super) fn slice(&self, offset: usize, length: usize) -> Option<VolatileSlice<'_>> {
        self.pages.as_ref().slice(offset, length)
    }
}
