//! Memory of this process's own, through which a transfer goes when the kernel must not hold the
//! pages of its own memory.
//!
//! Direct I/O holds pages until storage has answered, also when the process is dead. In a PV domain
//! Linux cannot cope with that for mapped grants: it takes the mappings out of page tables that no
//! longer exist, and counts their pages wrong from then on (Linux 6.12, `drivers/xen/gntdev.c`).
//! Ordinary memory stays until the last page of it is free.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, MutexGuard, Weak};

use vm_memory::VolatileSlice;

use crate::owned::OwnedVector;

/// The alignment: a page, which all direct I/O accepts.
const ALIGNMENT: usize = 4096;
/// Maximum bytes of buffers that are kept for the next transfers: new ones cost a fault for each
/// page.
const MOST_KEPT: usize = 2 << 20;

/// Aligned memory.
struct Buffer {
    start: NonNull<u8>,
    layout: Layout,
}

// SAFETY: the memory belongs to the buffer alone, in whatever thread. Access to it is volatile, or
// the kernel's.
unsafe impl Send for Buffer {}
// SAFETY: as for Send; a shared reference only gives out volatile slices.
unsafe impl Sync for Buffer {}

impl Buffer {
    /// `size` bytes, not 0; `None` if there is no memory.
    fn new(size: usize) -> Option<Self> {
        let layout = Layout::from_size_align(size, ALIGNMENT).ok().filter(|it| it.size() > 0)?;
        // SAFETY: the layout has a size that is not 0.
        let start = NonNull::new(unsafe { alloc_zeroed(layout) })?;
        Some(Self { start, layout })
    }

    fn bytes(&self) -> VolatileSlice<'_> {
        // SAFETY: range and alignment: `new` allocated so many bytes there. Lifetime: they are
        // freed when `self` is dropped, which the slice borrows. Aliasing: no reference to the
        // bytes exists; all access is volatile, or the kernel's.
        unsafe { VolatileSlice::new(self.start.as_ptr(), self.layout.size()) }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: `new` allocated this with this layout, and nothing refers to it any more.
        unsafe { dealloc(self.start.as_ptr(), self.layout) };
    }
}

/// Buffers that wait for the next transfers.
#[derive(Default)]
struct Kept {
    buffers: Vec<Buffer>,
    bytes: usize,
}

impl Kept {
    fn take(&mut self, size: usize) -> Option<Buffer> {
        let found = self.buffers.iter().rposition(|buffer| buffer.layout.size() == size)?;
        self.bytes -= size;
        Some(self.buffers.swap_remove(found))
    }

    fn keep(&mut self, buffer: Buffer) {
        let size = buffer.layout.size();
        if self.bytes + size <= MOST_KEPT {
            self.bytes += size;
            self.buffers.push(buffer);
        }
    }
}

/// The buffers of one engine.
#[derive(Default)]
pub(crate) struct BounceBuffers(Arc<Mutex<Kept>>);

/// A buffer in use.
struct Lent {
    buffer: Option<Buffer>,
    owner: Weak<Mutex<Kept>>,
}

impl Drop for Lent {
    fn drop(&mut self) {
        if let (Some(buffer), Some(owner)) = (self.buffer.take(), self.owner.upgrade()) {
            lock(&owner).keep(buffer);
        }
    }
}

impl BounceBuffers {
    /// A vector of `length` bytes; `None` if there is no memory.
    pub(crate) fn vector(&self, length: usize) -> Option<OwnedVector> {
        // Powers of two, so that few sizes fit all transfers.
        let size = length.max(ALIGNMENT).checked_next_power_of_two()?;
        let kept = lock(&self.0).take(size);
        let buffer = kept.or_else(|| Buffer::new(size));
        let lent = Arc::new(Lent { buffer: Some(buffer?), owner: Arc::downgrade(&self.0) });
        let filled = OwnedVector::new(&lent, |lent: &Lent, pieces| {
            let bytes = lent.buffer.as_ref().map(Buffer::bytes);
            let part = bytes.and_then(|bytes| bytes.subslice(0, length).ok());
            if part.is_some_and(|part| pieces.push(&part)) { Ok(()) } else { Err(()) }
        });
        filled.ok()
    }

    /// Frees the buffers that no transfer uses.
    pub(crate) fn clear(&mut self) {
        *lock(&self.0) = Kept::default();
    }
}

/// The buffers of a panicked thread are as good as others.
fn lock(kept: &Mutex<Kept>) -> MutexGuard<'_, Kept> {
    kept.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start(vector: &OwnedVector) -> usize {
        vector.vectors()[0].iov_base as usize
    }

    #[test]
    fn buffers_are_aligned_and_used_again_up_to_a_limit() {
        let mut buffers = BounceBuffers::default();
        let first = buffers.vector(5000).unwrap();
        assert_eq!((first.length(), start(&first) % ALIGNMENT), (5000, 0));
        let (address, other) = (start(&first), buffers.vector(8192).unwrap());
        assert_ne!(address, start(&other));
        drop(first);
        assert_eq!(start(&buffers.vector(4097).unwrap()), address);
        let many: Vec<_> = (0..8).map(|_| buffers.vector(1 << 20).unwrap()).collect();
        drop(many);
        assert!(lock(&buffers.0).bytes <= MOST_KEPT);
        assert!(lock(&buffers.0).bytes > MOST_KEPT / 2);
        buffers.clear();
        assert_eq!(lock(&buffers.0).bytes, 0);
        drop(other);
        drop(buffers);
    }
}
