//! `DmaMemory`: vm-memory's `GuestMemory` over a platform's addresses.
//!
//! [`DmaMemory::prepare`] decides how a device reaches a buffer. A buffer in the pool costs
//! nothing. The hypervisor copies other buffers (`copy_buffer.rs` has the figures). A buffer is
//! mapped if the batch is too large for a copy, or if the device uses the buffer without having
//! prepared it. If there is no capacity for the mapping, the buffer is copied after all.
//!
//! Nothing is mapped before a device requests it. A mapping belongs to the pool until the device is
//! reset, or to the current requests until [`DmaMemory::release`]. These methods take `&mut self`:
//! no slice into the pages can be alive then, so a stale pointer cannot exist. A ring's mapping
//! belongs to its queue ([`RingMapping`]), and no buffer is looked up in it.
//!
//! Lookups use the guest's address: the platform decodes an address only if no mapping contains it.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use elsa::FrozenVec;
use protocol::binding::F_SHARED_POOL;
use protocol::grant::GrantRef;
use protocol::pool::PoolPage;
use vm_memory::{GuestMemoryError, VolatileSlice};

use super::copy_buffer::{self, CopyBuffer};
use super::held::HeldMemory;
use super::mapper::Mapper;
use super::mapping::Mapping;
use super::pool::SharedPool;
use super::ring_mapping::{RingArea, RingMapping};
use super::{
    AccessFault, AccessPlatform, AddressFault, Location, PageRange, ShareError, UnshareError,
};
use crate::Causes;
use crate::dma::budget::{GuestBudget, Purpose};
use crate::stats::DeviceStats;
use xen::Access;

/// A range of guest addresses and the access to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DmaRange {
    /// Guest address of the first byte.
    pub address: u64,
    /// Length in bytes.
    pub length: u64,
    /// Reading, or reading and writing.
    pub access: Access,
}

impl DmaRange {
    /// Offset of the range in the `length` bytes at address `start`, if they contain all of it.
    pub(super) fn offset_in(self, start: u64, length: u64) -> Option<usize> {
        let skipped = self.address.checked_sub(start)?;
        let inside = self.length <= length.checked_sub(skipped)?;
        usize::try_from(skipped).ok().filter(|_| inside)
    }
}

/// A guest's memory, as far as the platform lets a device reach it.
pub struct DmaMemory<P: AccessPlatform> {
    mapper: Mapper<P>,
    pool: SharedPool<P::Pages>,
    /// Copied buffers of the current requests. Append-only while shared, so that slices into it
    /// stay valid.
    copies: FrozenVec<Box<CopyBuffer>>,
    /// Mapped buffers of the current requests, append-only likewise.
    mappings: FrozenVec<Box<Mapping<P::Pages>>>,
    last_fault: RefCell<Option<String>>,
}

impl<P: AccessPlatform> DmaMemory<P> {
    /// Returns a view without mappings. Later mappings take their capacity from `budget`.
    pub fn new(platform: P, stats: Arc<DeviceStats>, budget: Arc<GuestBudget>) -> Self {
        Self {
            pool: SharedPool::new(Arc::clone(&stats)),
            copies: FrozenVec::new(),
            mappings: FrozenVec::new(),
            last_fault: RefCell::new(None),
            mapper: Mapper { platform: Arc::new(platform), stats, budget },
        }
    }

    /// A view of the same guest's memory for another thread: with the same pool, as it is now.
    pub fn beside(&self) -> Self {
        Self {
            pool: self.pool.beside(),
            copies: FrozenVec::new(),
            mappings: FrozenVec::new(),
            last_fault: RefCell::new(None),
            mapper: self.mapper.clone(),
        }
    }

    /// The device's statistics.
    pub fn stats(&self) -> &DeviceStats {
        &self.mapper.stats
    }

    /// The platform that decodes addresses.
    pub fn platform(&self) -> &P {
        &self.mapper.platform
    }

    /// Maps the areas of a ring; all of them, or none.
    ///
    /// # Errors
    /// [`AccessFault`] of the first area that cannot be mapped.
    pub fn map_ring(&self, areas: [DmaRange; 3]) -> Result<RingMapping<P::Pages>, AccessFault> {
        self.try_map_ring(areas).inspect_err(|fault| self.refuse(fault))
    }

    fn try_map_ring(&self, areas: [DmaRange; 3]) -> Result<RingMapping<P::Pages>, AccessFault> {
        let [descriptors, driver, device] = areas;
        // All areas are decoded before the first is mapped.
        let [descriptors, driver, device] =
            [self.decode_area(descriptors)?, self.decode_area(driver)?, self.decode_area(device)?];
        let areas = [self.map_area(descriptors)?, self.map_area(driver)?, self.map_area(device)?];
        Ok(RingMapping(areas))
    }

    fn decode_area(&self, area: DmaRange) -> Result<(PageRange, Access), AccessFault> {
        match self.mapper.decode(area)? {
            Location::Pages(pages) => Ok((pages, area.access)),
            Location::Pool(range) => Err(AddressFault::PooledRing(range).into()),
        }
    }

    fn map_area(
        &self,
        (pages, access): (PageRange, Access),
    ) -> Result<RingArea<P::Pages>, AccessFault> {
        let mapping = self.mapper.map(&[pages], access, Purpose::Rings)?;
        Ok(RingArea { offset: pages.offset as usize, length: pages.length as usize, mapping })
    }

    /// Maps pages into the pool until [`DmaMemory::unshare_all`]; all of them, or none.
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
        let Mapper { platform, budget, .. } = &self.mapper;
        self.pool
            .share(first, count, reference, budget, |pages, access| platform.map(pages, access))
    }

    /// What [`DmaMemory::share`] was called with for the pages of the pool.
    pub fn shares(&self) -> impl Iterator<Item = (PoolPage, u32, GrantRef)> {
        self.pool.shares()
    }

    /// Takes over the pool of `other`, as it is now, until [`DmaMemory::unshare`].
    pub fn share_with(&mut self, other: &Self) {
        self.pool = other.pool.beside();
    }

    /// Limits the pool to `pages` pages from now on.
    pub fn limit_pool(&mut self, pages: u32) {
        self.pool.limit(pages);
    }

    /// Raises the limit of the pool to `pages` pages, if it is lower.
    pub fn raise_pool_limit(&mut self, pages: u32) {
        self.pool.raise_limit(pages);
    }

    /// Unmaps the pages that one message shared [5.11].
    ///
    /// # Errors
    /// [`UnshareError`]; then the pages stay in the pool.
    pub fn unshare(&mut self, first: PoolPage, count: u32) -> Result<(), UnshareError> {
        self.pool.unshare(first, count)
    }

    /// Unmaps the pool.
    pub fn unshare_all(&mut self) {
        self.pool.clear();
    }

    /// Whether an address is in the pool, if the platform has one. An access finds out whether the
    /// driver shared the page.
    #[inline]
    pub(super) fn is_pool_address(address: u64) -> bool {
        P::BUS_FEATURES & F_SHARED_POOL != 0 && PoolPage::at(address).is_some()
    }

    /// Makes the buffers of the current requests reachable together: with one copy, or with one
    /// mapping for each kind of access. Written bytes reach the guest with
    /// [`DmaMemory::write_back`].
    ///
    /// This is a hint: an address that cannot be resolved now is resolved by the access itself,
    /// which names the fault.
    pub fn prepare(&self, buffers: impl Iterator<Item = DmaRange>) {
        let (mut read, mut write) = (Vec::new(), Vec::new());
        for buffer in buffers.filter(|buffer| !Self::is_pool_address(buffer.address)) {
            match self.mapper.decode(buffer) {
                Ok(Location::Pages(range)) if self.find(buffer).is_none() => match buffer.access {
                    Access::ReadOnly => read.push(range),
                    Access::ReadWrite => write.push(range),
                },
                Ok(_) | Err(_) => {}
            }
        }
        if self.copy(&read, &write) {
            return;
        }
        for (ranges, access) in [(read, Access::ReadOnly), (write, Access::ReadWrite)] {
            if ranges.is_empty() {
                continue;
            }
            if let Ok(mapping) = self.mapper.map(&ranges, access, Purpose::Requests) {
                self.mappings.push(Box::new(mapping));
            }
        }
    }

    /// Copies buffers; returns whether that was possible.
    fn copy(&self, read: &[PageRange], write: &[PageRange]) -> bool {
        let all = || read.iter().chain(write);
        let pages: u64 = all().map(|range| u64::from(range.pages)).sum();
        if pages == 0 || pages > copy_buffer::MOST_PAGES {
            return false;
        }
        let Some(copy) = CopyBuffer::new(self.mapper.platform.as_ref(), read, write) else {
            return false;
        };
        let addresses = (read.len() + write.len()) as u64;
        self.mapper.stats.grant_addresses.fetch_add(addresses, Ordering::Relaxed);
        if !read.is_empty() {
            self.mapper.count_copy(read.iter().copied());
        }
        self.copies.push(Box::new(copy));
        true
    }

    /// Copies written buffers back to the guest. Call it before the requests are returned.
    ///
    /// # Errors
    /// [`AccessFault`] of the first buffer that the guest did not grant for writing.
    pub fn write_back(&mut self) -> Result<(), AccessFault> {
        let all = (0..self.copies.len()).filter_map(|at| self.copies.get(at));
        let written: Vec<_> = all.flat_map(CopyBuffer::written).collect();
        self.mapper.write_back(&written).inspect_err(|fault| self.refuse(fault))
    }

    /// Whether something is mapped for the current requests.
    pub(super) fn has_mappings(&self) -> bool {
        !self.mappings.is_empty()
    }

    /// Takes over the copies and mappings of the current requests, with a share of the pool. The
    /// memory itself then has none of them any more.
    pub(super) fn hold(&mut self) -> HeldMemory<P> {
        HeldMemory {
            mapper: self.mapper.clone(),
            pool: self.pool.pages(),
            copies: unboxed(std::mem::take(&mut self.copies)),
            mappings: unboxed(std::mem::take(&mut self.mappings)),
        }
    }

    /// Unmaps everything but the pool. Call it before a request's buffers are returned
    /// [3.5].
    pub fn release(&mut self) {
        self.last_fault.replace(None);
        self.copies.as_mut().clear();
        self.mappings.as_mut().clear();
    }

    /// Returns the bytes of a range that is already mapped or copied.
    fn find(&self, range: DmaRange) -> Option<VolatileSlice<'_>> {
        // By index: an iterator over a FrozenVec would prevent its growth.
        let copies = (0..self.copies.len()).filter_map(|at| self.copies.get(at));
        let mappings = (0..self.mappings.len()).filter_map(|at| self.mappings.get(at));
        let copied = copies.filter_map(|copy| copy.find(range)).next();
        copied.or_else(|| mappings.filter_map(|mapping| mapping.find(range)).next())
    }

    /// Returns the bytes of a range; maps them if they are not reachable yet.
    ///
    /// # Errors
    /// With an [`AccessFault`] inside; the statistics count it.
    #[inline]
    pub(super) fn bytes(&self, range: DmaRange) -> Result<VolatileSlice<'_>, GuestMemoryError> {
        match self.pool.find(range.address, range.length) {
            Some(slice) => Ok(slice),
            None => self.granted_bytes(range.address, range.length, range.access),
        }
    }

    /// As [`DmaMemory::bytes`], for a range that is not in the pool. Its parts are passed alone, so
    /// that a look-up in the pool does not make a `DmaRange` in memory for this call.
    #[cold]
    #[inline(never)]
    fn granted_bytes(
        &self,
        address: u64,
        length: u64,
        access: Access,
    ) -> Result<VolatileSlice<'_>, GuestMemoryError> {
        let range = DmaRange { address, length, access };
        Ok(self.resolve(range).inspect_err(|fault| self.refuse(fault))?)
    }

    fn resolve(&self, range: DmaRange) -> Result<VolatileSlice<'_>, AccessFault> {
        if let Some(slice) = self.find(range) {
            return Ok(slice);
        }
        let pages = match self.mapper.decode(range)? {
            Location::Pages(pages) => pages,
            Location::Pool(pooled) => return Err(AddressFault::NotShared(pooled).into()),
        };
        let mapping = match self.mapper.map(&[pages], range.access, Purpose::Requests) {
            Err(fault) if fault.is_shortage() => {
                return self.resolve_by_copy(range, pages).ok_or(fault);
            }
            mapped => self.mappings.push_get(Box::new(mapped?)),
        };
        let outside = AddressFault::Outside { address: range.address, length: range.length };
        mapping.find(range).ok_or(AccessFault::Address(outside))
    }

    /// Copies a buffer that cannot be mapped for lack of capacity, so that a header, a descriptor
    /// table or a status does not fail a request or the device because others have used up the
    /// capacity.
    fn resolve_by_copy(&self, range: DmaRange, pages: PageRange) -> Option<VolatileSlice<'_>> {
        let (read, write): (&[_], &[_]) = match range.access {
            Access::ReadOnly => (&[pages], &[]),
            Access::ReadWrite => (&[], &[pages]),
        };
        if !self.copy(read, write) {
            return None;
        }
        self.find(range)
    }

    /// The reason of the latest failed access since the last [`DmaMemory::release`]. The ring's
    /// iterators end without an error if an access fails; this reports it.
    pub fn last_fault(&self) -> Option<String> {
        self.last_fault.borrow().clone()
    }

    fn refuse(&self, fault: &AccessFault) {
        self.mapper.count_refusal();
        *self.last_fault.borrow_mut() = Some(Causes(fault).to_string());
    }
}

fn unboxed<T>(list: FrozenVec<Box<T>>) -> Vec<T> {
    list.into_vec().into_iter().map(|boxed| *boxed).collect()
}
