//! Implements [`DeviceMemory`] and vm-memory's `GuestMemory` over [`DmaMemory`], and
//! [`HeldBuffers`] over what it gave away.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use vm_memory::guest_memory::GuestMemorySliceIterator;
use vm_memory::{
    GuestAddress, GuestMemory, GuestMemoryError, GuestMemoryMmap, Permissions, VolatileSlice,
};

use super::held::HeldMemory;
use super::pool::Chunk;
use crate::device::{Buffer, BufferDirection, DeviceMemory, HeldBuffers, OneSlice, SharedRegion};
use crate::dma::{AccessFault, AccessPlatform, DmaMemory, DmaRange};
use xen::Access;
use xen::mapped::MappedRange;

impl<P: AccessPlatform> DeviceMemory for DmaMemory<P> {
    #[inline]
    fn is_shared(&self, buffer: Buffer) -> bool {
        Self::is_pool_address(buffer.address.0)
    }

    #[inline]
    fn slice(&self, buffer: Buffer) -> Result<VolatileSlice<'_>, GuestMemoryError> {
        self.bytes(range(buffer))
    }

    fn prepare(&self, buffers: impl Iterator<Item = Buffer>) {
        DmaMemory::prepare(self, buffers.map(range));
    }

    fn write_back(&mut self) -> Result<(), GuestMemoryError> {
        Ok(DmaMemory::write_back(self)?)
    }

    fn release(&mut self) {
        DmaMemory::release(self);
    }

    fn hold(&mut self) -> Box<dyn HeldBuffers> {
        Box::new(DmaMemory::hold(self))
    }

    fn has_mappings(&self) -> bool {
        DmaMemory::has_mappings(self)
    }

    fn copied(&self, bytes: u64) {
        self.stats().bytes_copied.fetch_add(bytes, Ordering::Relaxed);
    }

    fn count_shared(&self, buffers: u64) {
        self.stats().pool_addresses.fetch_add(buffers, Ordering::Relaxed);
    }

    fn last_fault(&self) -> Option<String> {
        DmaMemory::last_fault(self)
    }

    fn is_shortage(&self, error: &GuestMemoryError) -> bool {
        AccessFault::of(error).is_some_and(AccessFault::is_shortage)
    }
}

impl<P: AccessPlatform> GuestMemory for DmaMemory<P> {
    /// Never used: a device reaches only granted memory, never the guest's physical memory.
    type PhysicalMemory = GuestMemoryMmap<()>;
    type Bitmap = ();

    fn check_range(&self, address: GuestAddress, count: usize, access: Permissions) -> bool {
        count == 0 || self.get_slices(address, count, access).is_ok()
    }

    #[inline]
    fn get_slices<'a>(
        &'a self,
        address: GuestAddress,
        count: usize,
        access: Permissions,
    ) -> Result<impl GuestMemorySliceIterator<'a, ()>, GuestMemoryError> {
        if count == 0 {
            return Ok(OneSlice::default());
        }
        let access = if access.has_write() { Access::ReadWrite } else { Access::ReadOnly };
        let range = DmaRange { address: address.0, length: count as u64, access };
        Ok(OneSlice::new(self.bytes(range)?))
    }
}

impl<P: AccessPlatform> HeldBuffers for HeldMemory<P> {
    fn slice(&self, buffer: Buffer) -> Result<VolatileSlice<'_>, GuestMemoryError> {
        Ok(self.resolve(range(buffer))?)
    }

    fn region(&self, buffer: Buffer) -> Option<Arc<dyn SharedRegion>> {
        Some(HeldMemory::region(self, range(buffer))?)
    }

    fn has_copies(&self) -> bool {
        !self.copies.is_empty()
    }

    fn may_be_pinned(&self) -> bool {
        self.mapper.platform.may_be_pinned()
    }

    fn write_back(
        &self,
        buffers: &mut dyn Iterator<Item = Buffer>,
    ) -> Result<(), GuestMemoryError> {
        Ok(HeldMemory::write_back(self, buffers.map(range))?)
    }
}

impl<P: AsRef<MappedRange> + Send + Sync> SharedRegion for Chunk<P> {
    fn bytes(&self) -> Option<VolatileSlice<'_>> {
        Chunk::bytes(self)
    }
}

fn range(buffer: Buffer) -> DmaRange {
    let access = match buffer.direction {
        BufferDirection::Readable => Access::ReadOnly,
        BufferDirection::Writable => Access::ReadWrite,
    };
    DmaRange { address: buffer.address.0, length: buffer.length.into(), access }
}
