//! Implements [`DeviceMemory`] over [`DmaMemory`].

use std::sync::atomic::Ordering;

use vm_memory::GuestMemoryError;

use crate::device::{Buffer, BufferDirection, DeviceMemory};
use crate::dma::{AccessFault, AccessPlatform, DmaMemory, DmaRange};
use xen::Access;

impl<P: AccessPlatform> DeviceMemory for DmaMemory<P> {
    fn prepare(&self, buffers: &mut dyn Iterator<Item = Buffer>) {
        DmaMemory::prepare(self, buffers.map(range));
    }

    fn write_back(&mut self) -> Result<(), GuestMemoryError> {
        Ok(DmaMemory::write_back(self)?)
    }

    fn release(&mut self) {
        DmaMemory::release(self);
    }

    fn copied(&self, bytes: u64) {
        self.stats().bytes_copied.fetch_add(bytes, Ordering::Relaxed);
    }

    fn last_fault(&self) -> Option<String> {
        DmaMemory::last_fault(self)
    }

    fn is_shortage(&self, error: &GuestMemoryError) -> bool {
        AccessFault::of(error).is_some_and(AccessFault::is_shortage)
    }
}

fn range(buffer: Buffer) -> DmaRange {
    let access = match buffer.direction {
        BufferDirection::Readable => Access::ReadOnly,
        BufferDirection::Writable => Access::ReadWrite,
    };
    DmaRange { address: buffer.address.0, length: buffer.length.into(), access }
}
