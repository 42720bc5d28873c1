//! Memory of this process's own, through which a transfer goes when the kernel must not hold the
//! pages of its own memory.
//!
//! Direct I/O holds pages until storage has answered, also when the process is dead. In a PV domain
//! Linux cannot cope with that for mapped grants: it takes the mappings out of page tables that no
//! longer exist, and counts their pages wrong from then on (Linux 6.12, `drivers/xen/gntdev.c`).
//! Ordinary memory stays until the last page of it is free.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, MutexGuard};

use vm_memory::VolatileSlice;

use crate::owned::OwnedVector;

/// The alignment: a page, which all direct I/O accepts.
const ALIGNMENT: usize = 4096;
/// Maximum bytes of buffers that the process keeps for the next transfers: new ones cost a fault
/// for each page.
const MOST_KEPT: usize = 32 << 20;

/// The buffers that wait for the next transfers, of all engines.
static KEPT: Mutex<Kept> = Mutex::new(Kept { buffers: Vec::new(), bytes: 0 });

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

/// A buffer in use.
struct Lent(Option<Buffer>);

impl Drop for Lent {
    fn drop(&mut self) {
        self.0.take().into_iter().for_each(|buffer| kept().keep(buffer));
    }
}

/// A vector of `length` bytes; `None` if there is no memory.
pub(crate) fn vector(length: usize) -> Option<OwnedVector> {
    // Powers of two, so that few sizes fit all transfers.
    let size = length.max(ALIGNMENT).checked_next_power_of_two()?;
    let used_before = kept().take(size);
    let lent = Arc::new(Lent(Some(used_before.or_else(|| Buffer::new(size))?)));
    let filled = OwnedVector::new(&lent, |lent: &Lent, pieces| {
        let bytes = lent.0.as_ref().map(Buffer::bytes);
        let part = bytes.and_then(|bytes| bytes.subslice(0, length).ok());
        if part.is_some_and(|part| pieces.push(&part)) { Ok(()) } else { Err(()) }
    });
    filled.ok()
}

/// The buffers of a panicked thread are as good as others.
fn kept() -> MutexGuard<'static, Kept> {
    KEPT.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start(vector: &OwnedVector) -> usize {
        vector.vectors()[0].iov_base as usize
    }

    #[test]
    fn buffers_are_aligned_and_used_again_up_to_a_limit() {
        // Of a size that no other test uses.
        let first = vector(300_000).unwrap();
        assert_eq!((first.length(), start(&first) % ALIGNMENT), (300_000, 0));
        let (address, other) = (start(&first), vector(1 << 19).unwrap());
        assert_ne!(address, start(&other));
        drop(first);
        assert_eq!(start(&vector(400_000).unwrap()), address);
        let many: Vec<_> = (0..40).map(|_| vector(1 << 20).unwrap()).collect();
        drop(many);
        assert!((MOST_KEPT / 2..=MOST_KEPT).contains(&kept().bytes));
        assert_eq!(vector(0).map(|empty| empty.length()), Some(0));
    }
}
