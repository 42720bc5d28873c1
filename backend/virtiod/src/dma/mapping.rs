//! A mapping of a guest's pages.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use protocol::grant::PAGE_SIZE;
use vm_memory::VolatileSlice;

use super::{DmaRange, PageRange};
use crate::dma::budget::Reservation;
use crate::stats::DeviceStats;
use xen::mapped::MappedRange;

/// Consecutive pages of a mapping.
#[derive(Debug)]
struct PageRun {
    /// Guest address of the first page.
    address: u64,
    /// Length in bytes.
    length: u64,
    /// Offset of the first byte in the mapping.
    offset: usize,
}

/// A mapping of one or more runs, sorted by address and then by length. Statistics and budget count
/// it as long as it exists.
pub(super) struct Mapping<P> {
    pages: P,
    count: u64,
    runs: Vec<PageRun>,
    _reservation: Reservation,
    stats: Arc<DeviceStats>,
}

impl<P> Mapping<P> {
    /// Wraps `pages`, which map the pages of `ranges` in their order.
    pub(super) fn new(
        pages: P,
        ranges: &[PageRange],
        reservation: Reservation,
        stats: Arc<DeviceStats>,
    ) -> Self {
        let mut offset = 0;
        let runs = ranges.iter().map(|range| {
            let length = u64::from(range.pages) * PAGE_SIZE;
            let address = range.address.wrapping_sub(range.offset);
            let run = PageRun { address, length, offset };
            offset += length as usize;
            run
        });
        let mut runs: Vec<_> = runs.collect();
        runs.sort_unstable_by_key(|run| (run.address, run.length));
        let count = ranges.iter().map(|range| u64::from(range.pages)).sum();
        stats.grants_mapped.fetch_add(count, Ordering::Relaxed);
        Self { pages, count, runs, _reservation: reservation, stats }
    }
}

impl<P> Drop for Mapping<P> {
    fn drop(&mut self) {
        self.stats.grants_mapped.fetch_sub(self.count, Ordering::Relaxed);
    }
}

impl<P: AsRef<MappedRange>> Mapping<P> {
    /// Returns the bytes of `range` if one run contains all of them and permits the access.
    /// Consecutive addresses of a run are consecutive bytes. If runs overlap, the search checks
    /// only the last one that begins at or before the range; the caller maps a range that it does
    /// not find.
    pub(super) fn find(&self, range: DmaRange) -> Option<VolatileSlice<'_>> {
        if range.access > self.pages.as_ref().access() {
            return None;
        }
        let position = self.runs.partition_point(|run| run.address <= range.address);
        let run = self.runs.get(position.checked_sub(1)?)?;
        let skipped = range.offset_in(run.address, run.length)?;
        self.slice(run.offset + skipped, usize::try_from(range.length).ok()?)
    }

    /// Bytes of the mapping.
    pub(super) fn slice(&self, offset: usize, length: usize) -> Option<VolatileSlice<'_>> {
        self.pages.as_ref().slice(offset, length)
    }
}
