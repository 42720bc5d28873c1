//! C interface of the module `unfinished`.

use core::ffi::c_int;
use core::slice;
use core::sync::atomic::{AtomicU16, AtomicU32, AtomicU64};

use super::{EINVAL, EIO};
use crate::unfinished::{MOST_ENTRIES, Ring, Unfinished};

/// `struct shim_split_ring`: a split ring in the driver's memory.
#[repr(C)]
pub(crate) struct ShimSplitRing {
    descriptors: *const AtomicU64,
    available: *const AtomicU16,
    used: *const AtomicU32,
    entries: u32,
}

impl ShimSplitRing {
    /// The ring as slices.
    ///
    /// # Safety
    /// As `shim_unfinished_unmapped`.
    unsafe fn ring<'a>(&self) -> Option<Ring<'a>> {
        let entries = usize::try_from(self.entries).ok().filter(|it| *it <= MOST_ENTRIES)?;
        // SAFETY: the areas of a ring of so many entries (virtio 1.2, section 2.7) are aligned to
        // these words, hold at least so many of them, are valid during the call, and are accessed
        // only as such words meanwhile: by the driver, the device, and here by atomics.
        Some(unsafe {
            Ring {
                descriptors: slice::from_raw_parts(self.descriptors, 2 * entries),
                available: slice::from_raw_parts(self.available, 2 + entries),
                used: slice::from_raw_parts(self.used, 1 + 2 * entries),
            }
        })
    }
}

/// Size in bytes of what is noted of a queue. Its alignment is at most 8, as of the kernel's
/// allocations.
#[unsafe(no_mangle)]
pub(crate) extern "C" fn shim_unfinished_size() -> usize {
    const { assert!(align_of::<Unfinished>() <= 8) };
    size_of::<Unfinished>()
}

/// Begins to note the requests of a queue that was just made. Returns 0, or -EINVAL if it has too
/// many entries.
///
/// # Safety
/// `unfinished` points to `shim_unfinished_size()` writable bytes, aligned to 8, that nothing else
/// uses during the call.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn shim_unfinished_init(
    unfinished: *mut Unfinished,
    entries: u32,
) -> c_int {
    let Some(new) = Unfinished::new(entries) else { return EINVAL };
    // SAFETY: the caller guarantees size, alignment and sole use; `write` does not drop the old
    // bytes.
    unsafe { unfinished.write(new) };
    0
}

/// Notes that the driver unmaps the buffer at an address. Returns 1 if it is the first of a request
/// of this queue, else 0.
///
/// # Safety
/// `unfinished` was initialized, and nothing else uses it during the call; `ring` points to a valid
/// `struct shim_split_ring` of a ring that stays during the call.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn shim_unfinished_unmapped(
    unfinished: *mut Unfinished,
    ring: *const ShimSplitRing,
    address: u64,
) -> u32 {
    // SAFETY: by the function's contract.
    let (unfinished, ring) = unsafe { (&mut *unfinished, (*ring).ring()) };
    ring.is_some_and(|ring| unfinished.unmapped(ring, address)).into()
}

/// Lists the unfinished requests in the ring for the next device. Returns their number, or -EIO if
/// the device has written the ring wrongly.
///
/// # Safety
/// As `shim_unfinished_unmapped`.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn shim_unfinished_list_again(
    unfinished: *mut Unfinished,
    ring: *const ShimSplitRing,
) -> c_int {
    // SAFETY: by the function's contract.
    let (unfinished, ring) = unsafe { (&mut *unfinished, (*ring).ring()) };
    let Some(ring) = ring else { return EIO };
    unfinished.list_again(ring).map_or(EIO, c_int::from)
}
