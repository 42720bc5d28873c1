//! The pool, as the glue asks for it. Its functions need no lock.

use core::ffi::c_int;

use super::EINVAL;
use crate::pool::{self, CHUNK_PAGES, Pool, PoolLocation, SLOTS, TakeError, Unit, chunk_limit};

const ENOSPC: c_int = -28;

/// `struct shim_location`: where a buffer, or a part of one, lies in the pool.
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
    /// Notes on pages come before notes on slots.
    fn new(place: PoolLocation) -> Self {
        let before = match place.unit {
            Unit::Page => 0,
            Unit::Slot => CHUNK_PAGES,
        };
        Self {
            address: place.address(),
            chunk: place.chunk,
            start: place.start(),
            note: before + place.first,
            notes: place.count,
            stride: place.unit.bytes(),
            offset: place.offset,
        }
    }
}

/// Bytes that a pool needs; aligned as the kernel allocates, to 8.
#[unsafe(no_mangle)]
pub(crate) extern "C" fn shim_pool_size() -> usize {
    const { assert!(align_of::<Pool>() <= 8) };
    size_of::<Pool>()
}

/// Sets a pool up, of no chunks.
///
/// # Safety
/// `pool` points to `shim_pool_size()` writable bytes, aligned to 8.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn shim_pool_init(pool: *mut Pool) {
    // SAFETY: the caller owes size, alignment and sole use; `write` drops nothing that stood there.
    unsafe { pool.write(Pool::new()) };
}

/// Notes to be kept on a chunk: one for each page, and each slot of the first.
#[unsafe(no_mangle)]
pub(crate) extern "C" fn shim_pool_notes(chunk: u32) -> u32 {
    if chunk == 0 { CHUNK_PAGES + SLOTS } else { CHUNK_PAGES }
}

/// How many chunks a pool may have.
#[unsafe(no_mangle)]
pub(crate) extern "C" fn shim_pool_chunk_limit(pages: u32, references: u32) -> u32 {
    chunk_limit(pages, references)
}

/// From now on pages are taken from the first `chunks` chunks.
///
/// # Safety
/// `pool` was set up by `shim_pool_init`.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn shim_pool_open(pool: *const Pool, chunks: u32) {
    // SAFETY: the caller owes a pool, which is only ever seen as atomics.
    unsafe { &*pool }.open(chunks);
}

/// Chunks that pages may be taken from.
///
/// # Safety
/// `pool` was set up by `shim_pool_init`.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn shim_pool_chunks(pool: *const Pool) -> u32 {
    // SAFETY: as in `shim_pool_open`.
    unsafe { &*pool }.chunks()
}

/// Takes a place for a buffer: 0, -EINVAL if the buffer is not one for the pool, -ENOSPC if the
/// pool has no room.
///
/// # Safety
/// `pool` was set up by `shim_pool_init`; `place` is a valid `struct shim_location`.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn shim_pool_take(
    pool: *const Pool,
    length: u64,
    processor: u32,
    place: *mut ShimLocation,
) -> c_int {
    // SAFETY: as in `shim_pool_open`.
    let taken = match unsafe { &*pool }.take(length, processor) {
        Ok(taken) => taken,
        Err(TakeError::Unfit) => return EINVAL,
        Err(TakeError::Exhausted) => return ENOSPC,
    };
    // SAFETY: the caller owes a valid place.
    unsafe { place.write(ShimLocation::new(taken)) };
    0
}

/// Gives back what was taken for a buffer; -EINVAL if it was not.
///
/// # Safety
/// `pool` was set up by `shim_pool_init`.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn shim_pool_give_back(
    pool: *const Pool,
    address: u64,
    length: u64,
) -> c_int {
    // SAFETY: as in `shim_pool_open`.
    let pool = unsafe { &*pool };
    let given = pool::find(address, length).and_then(|place| pool.give_back(place).ok());
    given.map_or(EINVAL, |()| 0)
}

/// How many pages are taken.
///
/// # Safety
/// `pool` was set up by `shim_pool_init`.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn shim_pool_in_use(pool: *const Pool) -> u32 {
    // SAFETY: as in `shim_pool_open`.
    unsafe { &*pool }.in_use()
}

/// Where a buffer lies, part of a mapped one or all of it; -EINVAL if it is not in a pool.
///
/// # Safety
/// `place` is a valid `struct shim_location`.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn shim_pool_find(
    address: u64,
    length: u64,
    place: *mut ShimLocation,
) -> c_int {
    let Some(found) = pool::find(address, length) else {
        return EINVAL;
    };
    // SAFETY: the caller owes a valid place.
    unsafe { place.write(ShimLocation::new(found)) };
    0
}
