//! The pool, as the glue asks for it. Its functions need no lock.

use core::ffi::c_int;

use super::EINVAL;
use crate::pool::{self, Pool, TakeError, chunk_limit};
use protocol::pool::PoolPage;

const ENOSPC: c_int = -28;

/// `struct shim_pages`: a buffer in the pool.
#[repr(C)]
pub(crate) struct ShimPages {
    first: u32,
    pages: u32,
    offset: u32,
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

/// Takes pages for a buffer: the first one's number, -EINVAL if the buffer is not one for the pool,
/// -ENOSPC if the pool has no room.
///
/// # Safety
/// `pool` was set up by `shim_pool_init`.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn shim_pool_take(
    pool: *const Pool,
    length: u64,
    processor: u32,
) -> c_int {
    // SAFETY: as in `shim_pool_open`.
    match unsafe { &*pool }.take(length, processor) {
        Ok(page) => page.0 as c_int,
        Err(TakeError::Unfit) => EINVAL,
        Err(TakeError::Exhausted) => ENOSPC,
    }
}

/// Gives pages back; -EINVAL if they were not taken.
///
/// # Safety
/// `pool` was set up by `shim_pool_init`.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn shim_pool_give_back(
    pool: *const Pool,
    first: u32,
    pages: u32,
) -> c_int {
    // SAFETY: as in `shim_pool_open`.
    let given = unsafe { &*pool }.give_back(PoolPage(first), pages);
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

/// The DMA address of the first byte of a page.
#[unsafe(no_mangle)]
pub(crate) extern "C" fn shim_pool_address(page: u32) -> u64 {
    PoolPage(page).address(0)
}

/// The pages of a buffer, part of a mapped one or all of it; -EINVAL if it is not in a pool.
///
/// # Safety
/// `found` is a valid `struct shim_pages`.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn shim_pool_find(
    address: u64,
    length: u64,
    found: *mut ShimPages,
) -> c_int {
    let Some(range) = pool::find(address, length) else {
        return EINVAL;
    };
    // SAFETY: the caller owes a valid place.
    unsafe {
        found.write(ShimPages {
            first: range.first.0,
            pages: range.pages,
            offset: range.offset as u32,
        });
    }
    0
}
