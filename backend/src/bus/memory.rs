//! Devices speak of buffers, grants of references: this is where the two meet.

use vm_memory::GuestMemoryError;

use crate::device::{Buffer, DeviceMemory, Direction, Room};
use crate::grant::{GrantFault, GrantMemory, Reach};
use crate::xen::{Access, GrantTable};

impl<G: GrantTable> DeviceMemory for GrantMemory<G> {
    fn prepare(&self, buffers: &mut dyn Iterator<Item = Buffer>) -> Room {
        let wanted: Vec<_> = buffers.map(reach).collect();
        match GrantMemory::prepare(self, &wanted) {
            Ok(()) => Room::Enough,
            Err(_) => Room::Short,
        }
    }

    fn release(&mut self) {
        GrantMemory::release(self);
    }

    fn last_fault(&self) -> Option<String> {
        GrantMemory::last_fault(self)
    }

    fn is_shortage(&self, error: &GuestMemoryError) -> bool {
        GrantFault::of(error).is_some_and(GrantFault::is_shortage)
    }
}

fn reach(buffer: Buffer) -> Reach {
    let access = match buffer.direction {
        Direction::Readable => Access::ReadOnly,
        Direction::Writable => Access::ReadWrite,
    };
    Reach { address: buffer.address.0, length: buffer.length.into(), access }
}
