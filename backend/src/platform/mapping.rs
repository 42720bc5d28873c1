//! One mapping of a guest's pages.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use protocol::grant::PAGE_SIZE;
use vm_memory::VolatileSlice;

use super::{PageNumber, PageRange};
use crate::budget::Reservation;
use crate::stats::DeviceStats;
use crate::xen::Access;
use crate::xen::mapped::MappedRange;

/// Consecutive pages that are mapped, from `page` of a mapping on.
#[derive(Debug)]
pub(super) struct Run {
    pub(super) first: PageNumber,
    pub(super) pages: u32,
    pub(super) page: usize,
}

/// One mapping, of one or more runs. Counted as long as it is there.
pub(super) struct Mapping<P> {
    pages: P,
    runs: Vec<Run>,
    _room: Reservation,
    stats: Arc<DeviceStats>,
}

impl<P> Mapping<P> {
    pub(super) fn new(
        pages: P,
        runs: Vec<Run>,
        room: Reservation,
        stats: Arc<DeviceStats>,
    ) -> Self {
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
    /// Where `range` lies in the mapping, if it is there whole and `access` is allowed.
    pub(super) fn find(&self, range: PageRange, access: Access) -> Option<VolatileSlice<'_>> {
        let mapped = self.pages.as_ref();
        if access > mapped.access() {
            return None;
        }
        let wanted = range.first.0;
        let run = self.runs.iter().find(|run| {
            let skipped = wanted.checked_sub(run.first.0);
            let room = skipped.and_then(|skipped| u64::from(run.pages).checked_sub(skipped));
            room.is_some_and(|room| u64::from(range.pages) <= room)
        })?;
        let page = run.page + (wanted - run.first.0) as usize;
        let offset = page * PAGE_SIZE as usize + range.offset as usize;
        mapped.slice(offset, usize::try_from(range.length).ok()?)
    }

    /// Bytes of the mapping.
    pub(super) fn slice(&self, offset: usize, length: usize) -> Option<VolatileSlice<'_>> {
        self.pages.as_ref().slice(offset, length)
    }
}
