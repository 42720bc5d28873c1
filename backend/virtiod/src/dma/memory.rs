//! `DmaMemory`: vm-memory's `GuestMemory` over a platform's addresses.
//!
//! How a buffer is reached is decided here, by [`DmaMemory::prepare`]: in the pool if it lies there, which costs
//! nothing; else by a copy of the hypervisor's (`copy_buffer.rs` has the figures); mapped if that is too much to be
//! copied, or was not asked for before it is used. Where there is no room to map it, it is copied after all.
//!
//! Nothing is mapped before it is asked for. What is mapped is either *pinned*, for a ring, until it
//! is unpinned, or in the pool, until the device is reset, or belongs to the requests at hand and is
//! unmapped by [`DmaMemory::release`]. These take `&mut self`: no slice into the pages can be alive
//! then, which is what keeps a stale pointer from being a value one could have.

use std::cell::RefCell;
use std::iter::FusedIterator;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use elsa::FrozenVec;
use protocol::binding::F_SHARED_POOL;
use protocol::grant::GrantRef;
use protocol::pool::PoolPage;
use vm_memory::guest_memory::GuestMemorySliceIterator;
use vm_memory::{
    GuestAddress, GuestMemory, GuestMemoryError, GuestMemoryMmap, Permissions, VolatileSlice,
};

use super::copy_buffer::{self, CopyBuffer};
use super::mapping::{Mapping, PageRun};
use super::pool::Pool;
use super::ring_mapping::{MappingId, Region, RingMappings};
use super::{AccessFault, AccessPlatform, AddressFault, Location, PageRange, ShareError};
use crate::dma::budget::{GuestBudget, Purpose, Reservation};
use crate::stats::DeviceStats;
use xen::Access;

/// Most pages that one address range may touch.
pub const MAX_RANGE_PAGES: u32 = 4097;

/// A buffer to be reached, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DmaRange {
    /// Guest address of its first byte.
    pub address: u64,
    /// Bytes.
    pub length: u64,
    /// What will be done with it.
    pub access: Access,
}

/// A guest's memory, as far as the platform lets a device reach it.
pub struct DmaMemory<P: AccessPlatform> {
    platform: P,
    pinned: RingMappings<P::Pages>,
    pool: Pool<P::Pages>,
    /// Of the requests at hand, what is copied. Append-only while shared, so that slices into it stay good.
    staged: FrozenVec<Box<CopyBuffer>>,
    /// What is mapped, likewise.
    current: FrozenVec<Box<Mapping<P::Pages>>>,
    last_fault: RefCell<Option<String>>,
    stats: Arc<DeviceStats>,
    budget: Arc<GuestBudget>,
}

impl<P: AccessPlatform> DmaMemory<P> {
    /// A view in which nothing is mapped yet. What will be takes its room from `budget`.
    pub fn new(platform: P, stats: Arc<DeviceStats>, budget: Arc<GuestBudget>) -> Self {
        Self {
            platform,
            pinned: RingMappings::default(),
            pool: Pool::new(Arc::clone(&stats)),
            staged: FrozenVec::new(),
            current: FrozenVec::new(),
            last_fault: RefCell::new(None),
            stats,
            budget,
        }
    }

    /// Where the device is counted.
    pub fn stats(&self) -> &DeviceStats {
        &self.stats
    }

    /// What translates addresses.
    pub fn platform(&self) -> &P {
        &self.platform
    }

    /// As [`DmaMemory::platform`], to tell it of a driver.
    pub fn platform_mut(&mut self) -> &mut P {
        &mut self.platform
    }

    /// Maps ranges until [`DmaMemory::unpin`]; all of them, or none.
    ///
    /// # Errors
    /// [`AccessFault`] for the first that cannot be mapped.
    pub fn pin(&mut self, wanted: &[DmaRange]) -> Result<MappingId, AccessFault> {
        self.try_pin(wanted).inspect_err(|fault| self.refuse(fault))
    }

    fn try_pin(&mut self, wanted: &[DmaRange]) -> Result<MappingId, AccessFault> {
        let decoded =
            wanted.iter().map(|reach| match self.decode(reach.address, reach.length)? {
                Location::Pages(range) => Ok(range),
                Location::Pool(range) => Err(AddressFault::PooledRing(range).into()),
            });
        let decoded = decoded.collect::<Result<Vec<_>, AccessFault>>()?;
        let areas = wanted.iter().zip(decoded).map(|(reach, range)| {
            let mapping = self.map(&[range], reach.access, Purpose::Rings)?;
            Ok(Region { reach: *reach, offset: range.offset as usize, mapping })
        });
        let areas = areas.collect::<Result<Vec<_>, AccessFault>>()?;
        Ok(self.pinned.add(areas))
    }

    /// Unmaps what was pinned under `id`.
    pub fn unpin(&mut self, id: MappingId) {
        self.pinned.remove(id);
    }

    /// Takes pages into the pool, mapped until [`DmaMemory::unshare`]: all of them, or none.
    ///
    /// # Errors
    /// [`ShareError`].
    pub fn share(
        &mut self,
        first: PoolPage,
        count: u32,
        reference: GrantRef,
    ) -> Result<(), ShareError> {
        if P::BUS_FEATURES & F_SHARED_POOL == 0 {
            return Err(ShareError::NotOffered);
        }
        let platform = &self.platform;
        self.pool.share(first, count, reference, &self.budget, |pages, access| {
            platform.map(pages, access)
        })
    }

    /// Takes no more than `pages` pages into the pool from now on.
    pub fn limit_pool(&mut self, pages: u32) {
        self.pool.limit(pages);
    }

    /// Unmaps the pool.
    pub fn unshare(&mut self) {
        self.pool.clear();
    }

    /// Makes the buffers of the requests at hand reachable together: by one copy, or by one mapping for each kind of
    /// access. What is written into them reaches the guest with [`DmaMemory::write_back`].
    ///
    /// A hint: what it cannot do is left for the access itself to find and name.
    pub fn prepare(&self, wanted: impl Iterator<Item = DmaRange>) {
        let (mut read, mut write) = (Vec::new(), Vec::new());
        let mut pooled = 0;
        for reach in wanted {
            let range = match self.decode(reach.address, reach.length) {
                Ok(Location::Pages(range)) => range,
                Ok(Location::Pool(_)) => {
                    pooled += 1;
                    continue;
                }
                Err(_) => continue,
            };
            if self.pinned.find(reach).is_none() && self.find(range, reach.access).is_none() {
                match reach.access {
                    Access::ReadOnly => read.push(range),
                    Access::ReadWrite => write.push(range),
                }
            }
        }
        self.stats.pool_addresses.fetch_add(pooled, Ordering::Relaxed);
        if self.stage(&read, &write) {
            return;
        }
        for (ranges, access) in [(read, Access::ReadOnly), (write, Access::ReadWrite)] {
            if ranges.is_empty() {
                continue;
            }
            if let Ok(mapping) = self.map(&ranges, access, Purpose::Requests) {
                self.current.push(Box::new(mapping));
            }
        }
    }

    /// Has buffers copied; whether that was possible.
    fn stage(&self, read: &[PageRange], write: &[PageRange]) -> bool {
        let all = || read.iter().chain(write);
        let pages: u64 = all().map(|range| u64::from(range.pages)).sum();
        if pages == 0 || pages > copy_buffer::MOST_PAGES {
            return false;
        }
        let Some(staged) = CopyBuffer::new(&self.platform, read, write) else { return false };
        let addresses = (read.len() + write.len()) as u64;
        self.stats.grant_addresses.fetch_add(addresses, Ordering::Relaxed);
        if !read.is_empty() {
            self.count_copy(read.iter().copied());
        }
        self.staged.push(Box::new(staged));
        true
    }

    fn count_copy(&self, ranges: impl Iterator<Item = PageRange>) {
        let pages = ranges.map(|range| u64::from(range.pages)).sum();
        DeviceStats::count(&self.stats.copies);
        self.stats.copies_pages.fetch_add(pages, Ordering::Relaxed);
    }

    /// Brings what was written into copies of buffers to the guest. To be called before requests are given back.
    ///
    /// # Errors
    /// [`AccessFault`], of the first that the guest did not grant for writing.
    pub fn write_back(&mut self) -> Result<(), AccessFault> {
        let all = (0..self.staged.len()).filter_map(|at| self.staged.get(at));
        all.filter(|staged| staged.written().next().is_some())
            .try_for_each(|staged| self.write_one_back(staged))
            .inspect_err(|fault| self.refuse(fault))
    }

    fn write_one_back(&self, staged: &CopyBuffer) -> Result<(), AccessFault> {
        if let Some(Ok(())) = staged.write_back(&self.platform) {
            self.count_copy(staged.written().map(|(range, _)| range));
            return Ok(());
        }
        // To map them says of which the hypervisor refuses what.
        for (range, here) in staged.written() {
            let mapping = self.map(&[range], Access::ReadWrite, Purpose::Requests)?;
            let there = mapping.find(range, Access::ReadWrite);
            let outside = AddressFault::Outside { address: range.address, length: range.length };
            here.copy_to_volatile_slice(there.ok_or(AccessFault::Address(outside))?);
        }
        Ok(())
    }

    /// Unmaps everything that is not pinned. To be called before a request's buffers are given back
    /// [3.5].
    pub fn release(&mut self) {
        self.last_fault.replace(None);
        self.staged.as_mut().clear();
        self.current.as_mut().clear();
    }

    fn decode(&self, address: u64, length: u64) -> Result<Location, AccessFault> {
        let place = self.platform.decode(address, length)?;
        if matches!(place, Location::Pages(range) if range.pages > MAX_RANGE_PAGES) {
            return Err(AccessFault::TooLong { address, length, limit: MAX_RANGE_PAGES });
        }
        Ok(place)
    }

    fn map(
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
        let mut page = 0;
        let runs = ranges.iter().map(|range| {
            let run = PageRun { first: range.first, pages: range.pages, page };
            page += range.pages as usize;
            run
        });
        let runs = runs.collect();
        DeviceStats::count(&self.stats.maps);
        self.stats.maps_pages.fetch_add(numbers.len() as u64, Ordering::Relaxed);
        self.stats.grant_addresses.fetch_add(ranges.len() as u64, Ordering::Relaxed);
        Ok(Mapping::new(pages, runs, room, Arc::clone(&self.stats)))
    }

    fn reserve(
        &self,
        address: u64,
        pages: u64,
        purpose: Purpose,
    ) -> Result<Reservation, AccessFault> {
        // As many as there are do not fit into any budget.
        let pages = u32::try_from(pages).unwrap_or(u32::MAX);
        let room = self.budget.reserve(pages, purpose);
        room.map_err(|source| AccessFault::Budget { address, source })
    }

    fn find(&self, range: PageRange, access: Access) -> Option<VolatileSlice<'_>> {
        // By index: iterating a FrozenVec would keep it from growing.
        let current = (0..self.current.len()).filter_map(|at| self.current.get(at));
        let staged = (0..self.staged.len()).filter_map(|at| self.staged.get(at));
        let staged = staged.filter_map(|staged| staged.find(range, access)).next();
        staged.or_else(|| current.filter_map(|mapping| mapping.find(range, access)).next())
    }

    /// The bytes at an address, mapped now if they are not yet.
    fn reach(&self, reach: DmaRange) -> Result<VolatileSlice<'_>, AccessFault> {
        if let Some(slice) = self.pinned.find(reach) {
            return Ok(slice);
        }
        let range = match self.decode(reach.address, reach.length)? {
            Location::Pages(range) => range,
            Location::Pool(range) => {
                let slice = self.pool.find(range);
                return slice.ok_or(AccessFault::Address(AddressFault::NotShared(range)));
            }
        };
        if let Some(slice) = self.find(range, reach.access) {
            return Ok(slice);
        }
        let mapping = match self.map(&[range], reach.access, Purpose::Requests) {
            Err(fault) if fault.is_shortage() => {
                return self.reach_copy(range, reach.access).ok_or(fault);
            }
            mapped => self.current.push_get(Box::new(mapped?)),
        };
        let outside = AddressFault::Outside { address: reach.address, length: reach.length };
        mapping.find(range, reach.access).ok_or(AccessFault::Address(outside))
    }

    /// A copy of a buffer that there is no room to map: a header, a table of descriptors or a status costs no
    /// request and no device because others have taken the room.
    fn reach_copy(&self, range: PageRange, access: Access) -> Option<VolatileSlice<'_>> {
        let (read, write): (&[_], &[_]) = match access {
            Access::ReadOnly => (&[range], &[]),
            Access::ReadWrite => (&[], &[range]),
        };
        if !self.stage(read, write) {
            return None;
        }
        self.find(range, access)
    }

    /// Why the latest access failed, if one did since the last [`DmaMemory::release`]. The ring's
    /// iterators end without a word where an access fails; this is the word.
    pub fn last_fault(&self) -> Option<String> {
        self.last_fault.borrow().clone()
    }

    fn refuse(&self, fault: &AccessFault) {
        DeviceStats::count(&self.stats.refused_addresses);
        *self.last_fault.borrow_mut() = Some(fault.to_string());
    }
}

/// A range is one slice, since its pages are mapped together.
pub struct OneSlice<'a>(Option<VolatileSlice<'a>>);

impl<'a> Iterator for OneSlice<'a> {
    type Item = Result<VolatileSlice<'a>, GuestMemoryError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.0.take().map(Ok)
    }
}

impl FusedIterator for OneSlice<'_> {}
impl<'a> GuestMemorySliceIterator<'a, ()> for OneSlice<'a> {}

impl<P: AccessPlatform> GuestMemory for DmaMemory<P> {
    /// Never there: no physical memory of the guest's can be reached, only what it granted.
    type PhysicalMemory = GuestMemoryMmap<()>;
    type Bitmap = ();

    fn check_range(&self, address: GuestAddress, count: usize, access: Permissions) -> bool {
        count == 0 || self.get_slices(address, count, access).is_ok()
    }

    fn get_slices<'a>(
        &'a self,
        address: GuestAddress,
        count: usize,
        access: Permissions,
    ) -> Result<impl GuestMemorySliceIterator<'a, ()>, GuestMemoryError> {
        if count == 0 {
            return Ok(OneSlice(None));
        }
        let access = if access.has_write() { Access::ReadWrite } else { Access::ReadOnly };
        let reached = self.reach(DmaRange { address: address.0, length: count as u64, access });
        Ok(OneSlice(Some(reached.inspect_err(|fault| self.refuse(fault))?)))
    }
}
