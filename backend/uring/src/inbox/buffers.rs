//! The buffers for a device's messages, and the ring in which the kernel finds those that it may
//! fill (io_uring_register_buf_ring(3)).

use std::ffi::c_void;
use std::io;
use std::num::NonZeroUsize;
use std::ptr::NonNull;
use std::slice;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::IoUring;
use io_uring::types::BufRingEntry;
use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous, munmap};

/// Maximum number of buffers: the bits of `provided`.
const MOST: u16 = 64;
/// The alignment of buffers.
const ALIGNMENT: usize = 64;

/// Memory of this process's own, from the begin of a page on. What was never touched takes no page.
struct Memory {
    start: NonNull<c_void>,
    size: NonZeroUsize,
    /// Somebody may keep using it: it is never freed.
    is_leaked: bool,
}

impl Memory {
    fn new(size: usize) -> Option<Self> {
        let size = NonZeroUsize::new(size)?;
        let (access, flags) = (ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, MapFlags::MAP_PRIVATE);
        // SAFETY: a new mapping, at an address of the kernel's choice, replaces none.
        let start = unsafe { mmap_anonymous(None, size, access, flags) }.ok()?;
        Some(Self { start, size, is_leaked: false })
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        if !self.is_leaked {
            // SAFETY: `new` mapped so many bytes there, and nothing refers to them any more.
            let unmapped = unsafe { munmap(self.start, self.size.get()) };
            debug_assert!(unmapped.is_ok());
        }
    }
}

/// Buffers of one length. Each is either provided to the kernel, or belongs to who took it.
pub(super) struct Buffers {
    memory: Memory,
    /// [`BufRingEntry`]s, as many as buffers.
    ring: Memory,
    count: u16,
    /// Length of a buffer in bytes.
    length: usize,
    /// Distance of two buffers in bytes.
    stride: usize,
    /// Entries that were added to the ring, in all.
    tail: u16,
    /// The buffers that the kernel may fill, a bit for each.
    provided: u64,
}

// SAFETY: the memory belongs to the buffers alone, in whatever thread; the kernel knows no threads.
unsafe impl Send for Buffers {}

impl Buffers {
    /// `count` buffers, a power of two up to [`MOST`], of `length` bytes each.
    pub(super) fn new(count: u16, length: usize) -> Option<Self> {
        let fits = count.is_power_of_two() && count <= MOST && u32::try_from(length).is_ok();
        let stride = Some(length).filter(|_| fits)?.checked_next_multiple_of(ALIGNMENT)?;
        let memory = Memory::new(stride.checked_mul(count.into())?)?;
        let ring = Memory::new(usize::from(count) * size_of::<BufRingEntry>())?;
        Some(Self { memory, ring, count, length, stride, tail: 0, provided: 0 })
    }

    /// Tells the kernel of the ring, as the group with this number.
    pub(super) fn register(&self, ring: &IoUring, group: u16) -> io::Result<()> {
        let address = self.ring.start.as_ptr() as u64;
        // SAFETY: range and alignment: `new` allocated so many entries, from the begin of a page
        // on. Lifetime: the memory is freed after `unregister`, or when the kernel holds its pages
        // by itself. Aliasing: the kernel only reads entries up to the tail.
        unsafe { ring.submitter().register_buf_ring_with_flags(address, self.count, group, 0) }
    }

    /// Has the kernel forget the ring.
    pub(super) fn unregister(&self, ring: &IoUring, group: u16) -> bool {
        ring.submitter().unregister_buf_ring(group).is_ok()
    }

    /// Provides all buffers.
    pub(super) fn provide_all(&mut self) {
        (0..self.count).for_each(|buffer| self.provide(buffer));
    }

    /// Number of buffers that the kernel may fill.
    pub(super) fn provided(&self) -> u32 {
        self.provided.count_ones()
    }

    /// The bit of a buffer in `provided`; `None` if there is no such buffer.
    fn bit(&self, buffer: u16) -> Option<u64> {
        (buffer < self.count).then(|| 1 << buffer)
    }

    /// Where a buffer begins that exists.
    fn start(&self, buffer: u16) -> *mut u8 {
        // SAFETY: range: the caller has checked the number, so that the buffer is in the memory.
        unsafe { self.memory.start.cast::<u8>().as_ptr().add(self.stride * usize::from(buffer)) }
    }

    /// Lets the kernel fill a buffer, unless it may.
    pub(super) fn provide(&mut self, buffer: u16) {
        let Some(bit) = self.bit(buffer).filter(|bit| self.provided & bit == 0) else { return };
        self.provided |= bit;
        let place = usize::from(self.tail & (self.count - 1));
        let entries = self.ring.start.cast::<BufRingEntry>().as_ptr();
        let address = self.start(buffer) as u64;
        // SAFETY: range and alignment: the place is below the number of entries, which `new`
        // allocated from the begin of a page on. Aliasing: the kernel does not read this entry
        // before the tail tells of it: no more buffers are provided than there are entries.
        let entry = unsafe { &mut *entries.add(place) };
        entry.set_addr(address);
        entry.set_len(self.length as u32);
        entry.set_bid(buffer);
        self.tail = self.tail.wrapping_add(1);
        // SAFETY: the first entry exists and is initialized.
        let tail = unsafe { BufRingEntry::tail(entries) };
        // SAFETY: range and alignment: the tail is two bytes in the first entry, at an even offset.
        // Lifetime: as of the ring. Aliasing: the kernel reads it, and nobody else has a reference.
        let tail = unsafe { AtomicU16::from_ptr(tail.cast_mut()) };
        // Release: pairs with the kernel's load of the tail with acquire, after which it reads the
        // entry.
        tail.store(self.tail, Ordering::Release);
    }

    /// Takes a buffer that the kernel has filled; `false` if it was not the kernel's.
    pub(super) fn take(&mut self, buffer: u16) -> bool {
        let Some(bit) = self.bit(buffer).filter(|bit| self.provided & bit != 0) else {
            return false;
        };
        self.provided &= !bit;
        true
    }

    /// The bytes of a buffer that was taken.
    pub(super) fn bytes(&mut self, buffer: u16) -> Option<&mut [u8]> {
        self.bit(buffer).filter(|bit| self.provided & bit == 0)?;
        // SAFETY: range: the buffer exists, so that so many bytes of it are in the memory, which is
        // initialized. Lifetime: that of `self`. Aliasing: the kernel has let go of the buffer, and
        // `self` is borrowed exclusively.
        Some(unsafe { slice::from_raw_parts_mut(self.start(buffer), self.length) })
    }

    /// Never frees the memory: the kernel may use it.
    pub(super) fn leak(&mut self) {
        self.memory.is_leaked = true;
        self.ring.is_leaked = true;
    }
}
