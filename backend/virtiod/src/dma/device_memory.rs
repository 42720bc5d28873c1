//! Devices speak of buffers, grants of references: this is where the two meet.

use std::sync::atomic::Ordering;

use vm_memory::GuestMemoryError;

use crate::device::{Buffer, DeviceMemory, Direction};
use crate::dma::{AccessFault, Platform, PlatformMemory, Reach};
use xen::Access;

impl<P: Platform> DeviceMemory for PlatformMemory<P> {
    fn prepare(&self, buffers: &mut dyn Iterator<Item = Buffer>) {
        PlatformMemory::prepare(self, buffers.map(reach));
    }

    fn write_back(&mut self) -> Result<(), GuestMemoryError> {
        Ok(PlatformMemory::write_back(self)?)
    }

    fn release(&mut self) {
        PlatformMemory::release(self);
    }

    fn copied(&self, bytes: u64) {
        self.stats().bytes_copied.fetch_add(bytes, Ordering::Relaxed);
    }

    fn last_fault(&self) -> Option<String> {
        PlatformMemory::last_fault(self)
    }

    fn is_shortage(&self, error: &GuestMemoryError) -> bool {
        AccessFault::of(error).is_some_and(AccessFault::is_shortage)
    }
}

fn reach(buffer: Buffer) -> Reach {
    let access = match buffer.direction {
        Direction::Readable => Access::ReadOnly,
        Direction::Writable => Access::ReadWrite,
    };
    Reach { address: buffer.address.0, length: buffer.length.into(), access }
}
