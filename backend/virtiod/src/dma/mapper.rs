//! Maps pages within the budgets, and copies buffers back to the guest.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::copy_buffer::{self, CopiedBytes};
use super::mapping::Mapping;
use super::{AccessFault, AccessPlatform, AddressFault, DmaRange, Location, PageRange};
use crate::dma::budget::{GuestBudget, Purpose, Reservation};
use crate::stats::DeviceStats;
use xen::Access;

/// Maximum number of pages that one address range may touch.
pub const MAX_RANGE_PAGES: u32 = 4097;

/// A platform with the budget and the statistics of one device.
pub(super) struct Mapper<P: AccessPlatform> {
    pub(super) platform: Arc<P>,
    pub(super) stats: Arc<DeviceStats>,
    pub(super) budget: Arc<GuestBudget>,
}

impl<P: AccessPlatform> Clone for Mapper<P> {
    fn clone(&self) -> Self {
        Self {
            platform: Arc::clone(&self.platform),
            stats: Arc::clone(&self.stats),
            budget: Arc::clone(&self.budget),
        }
    }
}

impl<P: AccessPlatform> Mapper<P> {
    /// Decodes a range of guest addresses.
    pub(super) fn decode(&self, range: DmaRange) -> Result<Location, AccessFault> {
        let DmaRange { address, length, .. } = range;
        let location = self.platform.decode(address, length)?;
        if matches!(location, Location::Pages(range) if range.pages > MAX_RANGE_PAGES) {
            return Err(AccessFault::TooLong { address, length, limit: MAX_RANGE_PAGES });
        }
        Ok(location)
    }

    /// Maps the pages of ranges together.
    pub(super) fn map(
        &self,
        ranges: &[PageRange],
        access: Access,
        purpose: Purpose,
    ) -> Result<Mapping<P::Pages>, AccessFault> {
        let address = ranges.first().map_or(0, |range| range.address);
        let count = ranges.iter().map(|range| u64::from(range.pages)).sum();
        let room = self.reserve(address, count, purpose)?;
        let numbers: Vec<_> = ranges.iter().flat_map(|range| range.numbers()).collect();
        let pages = self.platform.map(&numbers, access);
        let pages = pages.map_err(|source| AccessFault::Map { address, source })?;
        DeviceStats::count(&self.stats.maps);
        self.stats.maps_pages.fetch_add(numbers.len() as u64, Ordering::Relaxed);
        self.stats.grant_addresses.fetch_add(ranges.len() as u64, Ordering::Relaxed);
        Ok(Mapping::new(pages, ranges, room, Arc::clone(&self.stats)))
    }

    fn reserve(
        &self,
        address: u64,
        pages: u64,
        purpose: Purpose,
    ) -> Result<Reservation, AccessFault> {
        // No budget has that many pages.
        let pages = u32::try_from(pages).unwrap_or(u32::MAX);
        let room = self.budget.reserve(pages, purpose);
        room.map_err(|source| AccessFault::Budget { address, source })
    }

    /// Counts a copy by the hypervisor.
    pub(super) fn count_copy(&self, ranges: impl Iterator<Item = PageRange>) {
        let pages = ranges.map(|range| u64::from(range.pages)).sum();
        DeviceStats::count(&self.stats.copies);
        self.stats.copies_pages.fetch_add(pages, Ordering::Relaxed);
    }

    /// Counts an access that was refused.
    pub(super) fn count_refusal(&self) {
        DeviceStats::count(&self.stats.refused_addresses);
    }

    /// Copies bytes to the guest's buffers that they are copies of: with one call, or each by
    /// itself if the hypervisor refuses that.
    ///
    /// # Errors
    /// [`AccessFault`] of the first buffer that the guest did not grant for writing.
    pub(super) fn write_back(&self, written: &[CopiedBytes<'_>]) -> Result<(), AccessFault> {
        if written.is_empty() {
            return Ok(());
        }
        if let Some(Ok(())) = copy_buffer::write_back(self.platform.as_ref(), written) {
            self.count_copy(written.iter().map(|copied| copied.range));
            return Ok(());
        }
        // A map of each buffer shows which one the hypervisor refuses, and why.
        for CopiedBytes { range, here } in written {
            let mapping = self.map(&[*range], Access::ReadWrite, Purpose::Requests)?;
            let (address, length) = (range.address, range.length);
            let there = mapping.find(DmaRange { address, length, access: Access::ReadWrite });
            let outside = AddressFault::Outside { address, length };
            here.copy_to_volatile_slice(there.ok_or(AccessFault::Address(outside))?);
        }
        Ok(())
    }
}
