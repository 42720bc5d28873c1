//! The buffers for a device's messages, and the ring in which the kernel finds those that it may
//! fill (io_uring_register_buf_ring(3)).

use std::ffi::c_void;
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;
use std::slice;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::IoUring;
use io_uring::types::BufRingEntry;
use nix::sys::mman::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};

/// Maximum number of buffers: the bits of `provided`.
const MOST: u16 = 64;
/// The alignment of buffers.
const ALIGNMENT: usize = 64;
const ACCESS: ProtFlags = ProtFlags::PROT_READ.union(ProtFlags::PROT_WRITE);
/// `IOU_PBUF_RING_MMAP`, and where the memory of groups is in a ring's file
/// (`IORING_OFF_PBUF_RING`, `IORING_OFF_PBUF_SHIFT`; Linux `include/uapi/linux/io_uring.h`).
const KERNELS_MEMORY: u16 = 1;
const GROUPS: i64 = 0x8000_0000;
const GROUP_SHIFT: u32 = 16;

/// Mapped memory, from the begin of a page on.
struct Memory {
    start: NonNull<c_void>,
    size: NonZeroUsize,
    /// Somebody may keep using it: it is never freed.
    is_leaked: bool,
}

impl Memory {
    /// Memory of this process's own. What was never touched takes no page.
    fn new(size: usize) -> io::Result<Self> {
        let size = NonZeroUsize::new(size).ok_or(io::ErrorKind::InvalidInput)?;
        // SAFETY: a new mapping, at an address of the kernel's choice, replaces none.
        let start = unsafe { mmap_anonymous(None, size, ACCESS, MapFlags::MAP_PRIVATE) }?;
        Ok(Self { start, size, is_leaked: false })
    }

    /// The memory that the kernel has for a group of buffers.
    fn of_group(size: usize, ring: &IoUring, group: u16) -> io::Result<Self> {
        let size = NonZeroUsize::new(size).ok_or(io::ErrorKind::InvalidInput)?;
        let offset = GROUPS + (i64::from(group) << GROUP_SHIFT);
        // SAFETY: the descriptor is open as long as the ring, which is borrowed.
        let fd = unsafe { BorrowedFd::borrow_raw(ring.as_raw_fd()) };
        // SAFETY: a new mapping, at an address of the kernel's choice, replaces none. Nobody
        // shortens the file below it.
        let start = unsafe { mmap(None, size, ACCESS, MapFlags::MAP_SHARED, fd, offset) }?;
        Ok(Self { start, size, is_leaked: false })
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
    /// `count` buffers, a power of two up to [`MOST`], of `length` bytes each, as the group with
    /// this number.
    ///
    /// The kernel has the memory of the group's ring. If that were the process's, the kernel would
    /// map it a second time (Linux 6.10), and would free it before it unmaps that, when the process
    /// is dead: Xen then refuses a page for page tables of a PV domain, since it is writable.
    pub(super) fn new(ring: &IoUring, group: u16, count: u16, length: usize) -> io::Result<Self> {
        let fits = count.is_power_of_two() && count <= MOST && u32::try_from(length).is_ok();
        let stride =
            Some(length).filter(|_| fits).and_then(|it| it.checked_next_multiple_of(ALIGNMENT));
        let stride = stride.ok_or(io::ErrorKind::InvalidInput)?;
        let size = stride.checked_mul(count.into()).ok_or(io::ErrorKind::InvalidInput)?;
        let memory = Memory::new(size)?;
        // SAFETY: the kernel is given no memory.
        unsafe { ring.submitter().register_buf_ring_with_flags(0, count, group, KERNELS_MEMORY) }?;
        let size = usize::from(count) * size_of::<BufRingEntry>();
        let entries = Memory::of_group(size, ring, group).inspect_err(|_| {
            // Nothing is lost but the number if that fails too.
            drop(ring.submitter().unregister_buf_ring(group));
        })?;
        Ok(Self { memory, ring: entries, count, length, stride, tail: 0, provided: 0 })
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
        // SAFETY: range and alignment: the place is below the number of entries, which `new` mapped
        // from the begin of a page on. Aliasing: the kernel only reads, and does not read this
        // entry before the tail tells of it: no more buffers are provided than there are entries.
        // The tail, which it reads at any time, is in a field of the first entry that nobody writes
        // here.
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
