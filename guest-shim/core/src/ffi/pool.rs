//! C interface of the module `pool`. Its functions need no lock.

use core::ffi::c_int;

use super::EINVAL;
use crate::pool::{self, Admission, CHUNK_PAGES, Pool, PoolLocation, SLOTS, TakeError, Unit};

const ENOSPC: c_int = -28;

/// `struct shim_location`: the location of a buffer, or of a part of one, in the pool. The glue
/// keeps a note for each unit of a chunk, which says where the unit's bytes come from.
#[repr(C)]
pub(crate) struct ShimLocation {
    address: u64,
    chunk: u32,
    start: u32,
    note: u32,
    notes: u32,
    stride: u32,
    offset: u32,
}

impl ShimLocation {
    /// The notes of a chunk's pages come before the notes of its slots.
    fn new(location: PoolLocation) -> Self {
        let before = match location.unit {
            Unit::Page => 0,
            Unit::Slot => CHUNK_PAGES,
        };
        Self {
            address: location.address(),
            chunk: location.chunk,
            start: location.start(),
            note: before + location.first,
            notes: location.count,
            stride: location.unit.bytes(),
            offset: location.offset,
        }
    }
}

/// Size of a pool in bytes. Its alignment is at most 8, as of the kernel's allocations.
#[unsafe(no_mangle)]
pub(crate) extern "C" fn shim_pool_size() -> usize {
    const { assert!(align_of::<Pool>() <= 8) };
    size_of::<Pool>()
}

/// Sets up a pool without an open chunk.
///
/// # Safety
/// `pool` points to `shim_pool_size()` writable bytes, aligned to 8, that nothing else uses during
/// the call.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn shim_pool_init(pool: *mut Pool) {
    // SAFETY: the caller guarantees size, alignment and sole use; `write` does not drop the old
    // bytes.
    unsafe { pool.write(Pool::new()) };
}

/// The number of notes for a chunk: one for each page, and in chunk 0 one for each slot.
#[unsafe(no_mangle)]
pub(crate) extern "C" fn shim_pool_notes(chunk: u32) -> u32 {
    if chunk == 0 { CHUNK_PAGES + SLOTS } else { CHUNK_PAGES }
}

/// The maximum number of chunks in a pool; see `chunk_limit`.
#[unsafe(no_mangle)]
pub(crate) extern "C" fn shim_pool_chunk_limit(pages: u32, references: u32) -> u32 {
    pool::chunk_limit(pages, references)
}

/// The maximum number of chunks of all pools of the guest; see `guest_limit`.
#[unsafe(no_mangle)]
pub(crate) extern "C" fn shim_pool_guest_limit(number: u32, references: u32) -> u32 {
    pool::guest_limit(number, references)
}

/// The number of chunks to which a pool grows; see `grown`.
#[unsafe(no_mangle)]
pub(crate) extern "C" fn shim_pool_grown(chunks: u32, missing: u32, limit: u32) -> u32 {
    pool::grown(chunks, missing, limit)
}

/// Returns 1 if a request waits, of which a buffer does not fit, else 0; see `Admission::waits`.
///
/// # Safety
/// `admission` points to a valid `struct shim_admission`.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn shim_pressure_waits(
    admission: *const Admission,
    device_id: u32,
    in_flight: u32,
    added: u16,
    now: u32,
) -> u32 {
    // SAFETY: valid by the function's contract. It is an atomic, so that concurrent calls may share
    // it.
    unsafe { &*admission }.waits(device_id, in_flight, added, now).into()
}

/// Opens the first `chunks` chunks for `shim_pool_take`, and closes the others.
///
/// # Safety
/// `shim_pool_init` set `pool` up.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn shim_pool_set_chunks(pool: *const Pool, chunks: u32) {
    // SAFETY: the caller guarantees a pool that `shim_pool_init` set up. All of its fields are
    // atomics, so that concurrent calls may share it.
    unsafe { &*pool }.open(chunks);
}

/// The chunks of which pages were taken since the last call, a bit each.
///
/// # Safety
/// `shim_pool_init` set `pool` up.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn shim_pool_take_touched(pool: *const Pool) -> u64 {
    // SAFETY: as in `shim_pool_set_chunks`.
    unsafe { &*pool }.take_touched()
}

/// The number of chunks that a pool keeps; see `kept`.
#[unsafe(no_mangle)]
pub(crate) extern "C" fn shim_pool_kept(touched: u64, least: u32) -> u32 {
    pool::kept(touched, least)
}

/// Closes the last open chunk, if no buffer is in it; returns 1 if it did, else 0.
///
/// # Safety
/// `shim_pool_init` set `pool` up.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn shim_pool_retire_last(pool: *const Pool) -> u32 {
    // SAFETY: as in `shim_pool_set_chunks`.
    unsafe { &*pool }.retire_last().into()
}

/// Makes a chunk ready to be opened, whether or not it was retired.
///
/// # Safety
/// `shim_pool_init` set `pool` up.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn shim_pool_restore(pool: *const Pool, number: u32) {
    // SAFETY: as in `shim_pool_set_chunks`.
    unsafe { &*pool }.restore(number);
}

/// The number of open chunks.
///
/// # Safety
/// `shim_pool_init` set `pool` up.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn shim_pool_chunks(pool: *const Pool) -> u32 {
    // SAFETY: as in `shim_pool_set_chunks`.
    unsafe { &*pool }.chunks()
}

/// Takes space for a buffer. Returns 0, -EINVAL if the pool does not take buffers of this length,
/// or -ENOSPC if the pool has no free space for it.
///
/// # Safety
/// `shim_pool_init` set `pool` up; `location` points to a writable `struct shim_location`.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn shim_pool_take(
    pool: *const Pool,
    length: u64,
    processor: u32,
    location: *mut ShimLocation,
) -> c_int {
    // SAFETY: as in `shim_pool_set_chunks`.
    let taken = match unsafe { &*pool }.take(length, processor) {
        Ok(taken) => taken,
        Err(TakeError::Unfit) => return EINVAL,
        Err(TakeError::Exhausted) => return ENOSPC,
    };
    // SAFETY: the caller guarantees a writable `struct shim_location`.
    unsafe { location.write(ShimLocation::new(taken)) };
    0
}

/// Returns a buffer's space to the pool; -EINVAL if it is not taken.
///
/// # Safety
/// `shim_pool_init` set `pool` up.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn shim_pool_give_back(
    pool: *const Pool,
    address: u64,
    length: u64,
) -> c_int {
    // SAFETY: as in `shim_pool_set_chunks`.
    let pool = unsafe { &*pool };
    let returned = pool::find(address, length).and_then(|location| pool.give_back(location).ok());
    returned.map_or(EINVAL, |()| 0)
}

/// The number of pages that are taken or have taken slots.
///
/// # Safety
/// `shim_pool_init` set `pool` up.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn shim_pool_in_use(pool: *const Pool) -> u32 {
    // SAFETY: as in `shim_pool_set_chunks`.
    unsafe { &*pool }.in_use()
}

/// Returns the location of a mapped buffer, or of a part of one; -EINVAL if it is not in a pool.
///
/// # Safety
/// `location` points to a writable `struct shim_location`.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn shim_pool_find(
    address: u64,
    length: u64,
    location: *mut ShimLocation,
) -> c_int {
    let Some(found) = pool::find(address, length) else {
        return EINVAL;
    };
    // SAFETY: the caller guarantees a writable `struct shim_location`.
    unsafe { location.write(ShimLocation::new(found)) };
    0
}
