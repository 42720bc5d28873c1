//! Granted memory for virtio-drivers.

use std::io;
use std::ptr::NonNull;
use std::sync::{Mutex, MutexGuard, OnceLock};

use protocol::grant::{GrantAddress, GrantRef, PAGE_SIZE, pages_spanned};
use virtio_drivers::{BufferDirection, Hal, PhysAddr};
use xen::{Access, DomId, Gntalloc, SharedPages};

use crate::pool::PagePool;

/// An address that is no grant: what stands for memory that is not to be had. A device refuses it.
const NOTHING: PhysAddr = 0;

/// The pool of this process. virtio-drivers asks a type for memory and not a value, so there is
/// one, for devices of one backend.
static MEMORY: OnceLock<Mutex<GrantedMemory>> = OnceLock::new();

/// The pages of the pool, by what the backend is granted [3.4].
struct GrantedMemory {
    read_only: GrantedArea,
    writable: GrantedArea,
}

/// Pages that are all granted alike.
struct GrantedArea {
    pages: SharedPages,
    pool: PagePool,
}

/// Memory that the backend is granted, and nothing else of this process's: queues lie in it, and
/// buffers are copied into it and out of it. Half of it is the backend's to read only.
#[derive(Clone, Copy, Debug)]
pub struct GrantHal;

impl GrantHal {
    /// GrantHal `count` pages to `backend`, for all devices that this process drives: one half
    /// read-only, for what devices only read, the other writable.
    ///
    /// # Errors
    /// The kernel's; or there is a pool already.
    pub fn init(backend: DomId, count: u16) -> io::Result<()> {
        let read_only = GrantedArea::new(backend, count / 2, Access::ReadOnly)?;
        let writable = GrantedArea::new(backend, count - count / 2, Access::ReadWrite)?;
        let taken = |_| io::Error::new(io::ErrorKind::AlreadyExists, "there is a pool already");
        MEMORY.set(Mutex::new(GrantedMemory { read_only, writable })).map_err(taken)
    }
}

fn memory() -> Option<MutexGuard<'static, GrantedMemory>> {
    // Poisoned by a panic elsewhere: the pool is whole after every step.
    MEMORY.get().map(|memory| memory.lock().unwrap_or_else(|poisoned| poisoned.into_inner()))
}

impl GrantedMemory {
    /// Where memory is taken from that data goes through in this direction.
    fn area(&mut self, direction: BufferDirection) -> &mut GrantedArea {
        match access(direction) {
            Access::ReadOnly => &mut self.read_only,
            Access::ReadWrite => &mut self.writable,
        }
    }

    /// The page that an address is of: where it is, its reference, and its position there.
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

    /// Takes zeroed pages: their address for the device, and their position.
    fn take(&mut self, count: usize) -> Option<(PhysAddr, usize)> {
        let run = self.pool.take(count)?;
        let (offset, length) = (run.first * PAGE, count * PAGE);
        self.pages.as_ref().slice(offset, length)?.copy_from(&vec![0u8; length]);
        Some((GrantAddress::page(run.reference).encode(), run.first))
    }
}

/// The least that a device needs to memory that data goes through in this direction.
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

// SAFETY: each method keeps what the trait demands of it, as said there.
unsafe impl Hal for GrantHal {
    /// Zeroed, page aligned, and given to nobody else until `dma_dealloc`: they are taken from the
    /// pool, whose pages stay mapped as long as the process lives, writable here in any case.
    fn dma_alloc(pages: usize, direction: BufferDirection) -> (PhysAddr, NonNull<u8>) {
        let taken = memory().and_then(|mut memory| {
            let area = memory.area(direction);
            let (address, first) = area.take(pages)?;
            // SAFETY: the page is inside the mapping, which starts at `address()` and is never
            // unmapped.
            let pointer = unsafe { area.pages.as_ref().address().add(first * PAGE) };
            Some((address, pointer))
        });
        // An address of 0 is virtio-drivers' word for no memory.
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

    /// Never called: there is no MMIO on this transport.
    unsafe fn mmio_phys_to_virt(_address: PhysAddr, _size: usize) -> NonNull<u8> {
        NonNull::dangling()
    }

    /// Where the pool has no room, the address is one that the device refuses: the request fails,
    /// and nothing is shared.
    unsafe fn share(buffer: NonNull<[u8]>, direction: BufferDirection) -> PhysAddr {
        let shared = memory().and_then(|mut memory| {
            let area = memory.area(direction);
            let (address, first) = area.take(page_count(buffer.len()))?;
            if direction != BufferDirection::DeviceToDriver {
                // SAFETY: the caller owes a valid buffer that nothing else uses during the call.
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
            // SAFETY: the caller owes a valid buffer that nothing else uses during the call.
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
    fn spec_3_4_what_a_device_only_reads_is_granted_read_only() {
        assert_eq!(access(BufferDirection::DriverToDevice), Access::ReadOnly);
        assert_eq!(access(BufferDirection::DeviceToDriver), Access::ReadWrite);
        assert_eq!(access(BufferDirection::Both), Access::ReadWrite);
    }
}
