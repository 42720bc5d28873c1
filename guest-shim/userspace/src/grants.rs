//! Granted memory for virtio-drivers: the implementation of its trait [`Hal`].

use std::io;
use std::ptr::NonNull;
use std::sync::{Mutex, MutexGuard, OnceLock};

use protocol::grant::{GrantAddress, GrantRef, PAGE_SIZE, pages_spanned};
use virtio_drivers::{BufferDirection, Hal, PhysAddr};
use xen::{Access, DomId, Gntalloc, SharedPages};

use crate::pool::PagePool;

/// The address that stands for an allocation failure. It is no grant, so that a device refuses it.
const NOTHING: PhysAddr = 0;

/// The pool of this process. virtio-drivers calls functions of a type, not of a value, for memory;
/// so the process has one pool, for devices of one backend.
static MEMORY: OnceLock<Mutex<GrantedMemory>> = OnceLock::new();

/// The pages of the pool, by the access that the backend gets [3.4].
struct GrantedMemory {
    read_only: GrantedArea,
    writable: GrantedArea,
}

/// Pages that are granted with the same access.
struct GrantedArea {
    pages: SharedPages,
    pool: PagePool,
}

/// The only memory of this process that is granted to the backend, beside message pages. Queues lie
/// in it; the driver's buffers are copied into it and out of it. Half of it is granted read-only.
#[derive(Clone, Copy, Debug)]
pub struct GrantHal;

impl GrantHal {
    /// Grants `count` pages to `backend`, for all devices that this process drives: one half
    /// read-only, for buffers that devices only read, the other half writable.
    ///
    /// # Errors
    /// The kernel's error if it cannot grant the pages, or [`io::ErrorKind::AlreadyExists`] after
    /// an earlier call that succeeded.
    pub fn init(backend: DomId, count: u16) -> io::Result<()> {
        let read_only = GrantedArea::new(backend, count / 2, Access::ReadOnly)?;
        let writable = GrantedArea::new(backend, count - count / 2, Access::ReadWrite)?;
        let taken = |_| io::Error::new(io::ErrorKind::AlreadyExists, "the pool exists already");
        MEMORY.set(Mutex::new(GrantedMemory { read_only, writable })).map_err(taken)
    }
}

fn memory() -> Option<MutexGuard<'static, GrantedMemory>> {
    // A panic elsewhere may have poisoned the lock; the pool is consistent after every step.
    MEMORY.get().map(|memory| memory.lock().unwrap_or_else(|poisoned| poisoned.into_inner()))
}

impl GrantedMemory {
    /// The area for buffers of this direction.
    fn area(&mut self, direction: BufferDirection) -> &mut GrantedArea {
        match access(direction) {
            Access::ReadOnly => &mut self.read_only,
            Access::ReadWrite => &mut self.writable,
        }
    }

    /// The page of an address: its area, its reference, and its position in the area.
    fn find(&mut self, address: PhysAddr) -> Option<(&mut GrantedArea, GrantRef, usize)> {
        let reference = GrantAddress::decode(address).ok()?.reference;
        [&mut self.read_only, &mut self.writable].into_iter().find_map(|area| {
            let position = area.pool.position(reference)?;
            Some((area, reference, position))
        })
    }
}

impl GrantedArea {
    fn new(backend: DomId, count: u16, access: Access) -> io::Result<Self> {
        let pages = Gntalloc::new(backend).share(count, access)?;
        let pool = PagePool::new(pages.references());
        Ok(Self { pages, pool })
    }

    /// Takes `count` pages and zeroes them; returns their DMA address and the first one's position.
    fn take(&mut self, count: usize) -> Option<(PhysAddr, usize)> {
        let run = self.pool.take(count)?;
        let (offset, length) = (run.first * PAGE, count * PAGE);
        self.pages.as_ref().slice(offset, length)?.copy_from(&vec![0u8; length]);
        Some((GrantAddress::page(run.reference).encode(), run.first))
    }
}

/// The least access that a device needs for a buffer of this direction.
fn access(direction: BufferDirection) -> Access {
    match direction {
        BufferDirection::DriverToDevice => Access::ReadOnly,
        BufferDirection::DeviceToDriver | BufferDirection::Both => Access::ReadWrite,
    }
}

const PAGE: usize = PAGE_SIZE as usize;

fn page_count(length: usize) -> usize {
    pages_spanned(0, length as u64) as usize
}

// SAFETY: each method meets the trait's requirements, as the comment on it explains.
unsafe impl Hal for GrantHal {
    /// The pages are zeroed, page aligned, and not used for anything else until `dma_dealloc`: they
    /// come from the pool, whose pages stay mapped, writable for this process, as long as it lives.
    fn dma_alloc(pages: usize, direction: BufferDirection) -> (PhysAddr, NonNull<u8>) {
        let taken = memory().and_then(|mut memory| {
            let area = memory.area(direction);
            let (address, first) = area.take(pages)?;
            // SAFETY: `take` checked that the pages are within the mapping, which starts at
            // `address()` and is never unmapped, because `MEMORY` owns it.
            let pointer = unsafe { area.pages.as_ref().address().add(first * PAGE) };
            Some((address, pointer))
        });
        // In virtio-drivers an address of 0 means that no memory is available.
        taken.unwrap_or((NOTHING, NonNull::dangling()))
    }

    unsafe fn dma_dealloc(address: PhysAddr, _pointer: NonNull<u8>, pages: usize) -> i32 {
        if let Some(mut memory) = memory()
            && let Some((area, reference, _)) = memory.find(address)
        {
            area.pool.give_back(reference, pages);
        }
        0
    }

    /// virtio-drivers does not call this: the transport has no MMIO.
    unsafe fn mmio_phys_to_virt(_address: PhysAddr, _size: usize) -> NonNull<u8> {
        NonNull::dangling()
    }

    /// If the pool has no free pages, this shares nothing and returns an address that the device
    /// refuses, so that the request fails.
    unsafe fn share(buffer: NonNull<[u8]>, direction: BufferDirection) -> PhysAddr {
        let shared = memory().and_then(|mut memory| {
            let area = memory.area(direction);
            let (address, first) = area.take(page_count(buffer.len()))?;
            if direction != BufferDirection::DeviceToDriver {
                // SAFETY: the caller guarantees a valid buffer that nothing else uses during the
                // call.
                let bytes = unsafe { buffer.as_ref() };
                area.pages.as_ref().slice(first * PAGE, bytes.len())?.copy_from(bytes);
            }
            Some(address)
        });
        shared.unwrap_or(NOTHING)
    }

    unsafe fn unshare(address: PhysAddr, mut buffer: NonNull<[u8]>, direction: BufferDirection) {
        let Some(mut memory) = memory() else { return };
        let Some((area, reference, first)) = memory.find(address) else { return };
        if direction != BufferDirection::DriverToDevice {
            // SAFETY: the caller guarantees a valid buffer that nothing else uses during the call.
            let bytes = unsafe { buffer.as_mut() };
            if let Some(shared) = area.pages.as_ref().slice(first * PAGE, bytes.len()) {
                shared.copy_to(bytes);
            }
        }
        area.pool.give_back(reference, page_count(buffer.len()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spec_3_4_buffers_that_a_device_only_reads_are_granted_read_only() {
        assert_eq!(access(BufferDirection::DriverToDevice), Access::ReadOnly);
        assert_eq!(access(BufferDirection::DeviceToDriver), Access::ReadWrite);
        assert_eq!(access(BufferDirection::Both), Access::ReadWrite);
    }
}
