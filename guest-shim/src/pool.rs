//! The shared pool: which buffers go by way of it, and which of its pages are taken (SPEC section 3).
//!
//! Pages are shared with the device in chunks of [`CHUNK_PAGES`], each a word with a bit for each page;
//! a buffer lies in consecutive pages of one chunk. There is no lock: pages are taken and given back by
//! compare and exchange, in any context, and each processor begins to look at another chunk.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use protocol::grant::PAGE_SIZE;
use protocol::pool::{DmaRange, MAX_POOL_PAGES, PoolPage, PoolRange};

/// Pages that are shared with one message, under consecutive references.
pub const CHUNK_PAGES: u32 = u64::BITS;

/// The most chunks of a pool.
pub const MAX_CHUNKS: u32 = MAX_POOL_PAGES / CHUNK_PAGES;

/// The longest buffer that goes by way of the pool, in bytes: what fits a chunk.
///
/// Copying costs the guest less than mapping and unmapping cost both sides, whatever the length; so
/// all go that can.
pub const MAX_POOLED_BYTES: u64 = CHUNK_PAGES as u64 * PAGE_SIZE;

/// One device takes no more than one in so many of the guest's grant references for its pool: rings,
/// buffers that do not go by way of it, and other devices need some.
const SHARE_OF_REFERENCES: u32 = 8;

/// How many chunks a pool may have, where the guest's administrator allows `pages` pages a device and
/// the guest has `references` grant references in all.
pub const fn chunk_limit(pages: u32, references: u32) -> u32 {
    let share = references / SHARE_OF_REFERENCES;
    let pages = if pages < share { pages } else { share };
    let chunks = pages / CHUNK_PAGES;
    if chunks < MAX_CHUNKS { chunks } else { MAX_CHUNKS }
}

/// Why a buffer does not go by way of the pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TakeError {
    /// It has no bytes, or more than [`MAX_POOLED_BYTES`].
    Unfit,
    /// No chunk has enough free pages in a row.
    Exhausted,
}

/// The pages were not taken, or are none of the pool's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotTaken;

/// Which pages of a pool are taken.
#[derive(Debug)]
pub struct Pool {
    /// A bit for each page: set while it is taken.
    taken: [AtomicU64; MAX_CHUNKS as usize],
    /// Chunks from the first on that pages may be taken from.
    open: AtomicU32,
}

impl Pool {
    /// A pool of no chunks.
    pub const fn new() -> Self {
        Self { taken: [const { AtomicU64::new(0) }; MAX_CHUNKS as usize], open: AtomicU32::new(0) }
    }

    /// From now on pages are taken from the first `chunks` chunks. What is taken of others stays so
    /// until it is given back.
    pub fn open(&self, chunks: u32) {
        self.open.store(chunks, Ordering::Release);
    }

    /// Chunks that pages may be taken from.
    pub fn chunks(&self) -> u32 {
        self.open.load(Ordering::Acquire)
    }

    /// Takes pages for a buffer of `length` bytes, looking first at the chunk that `processor` prefers.
    ///
    /// # Errors
    /// [`TakeError`]; nothing was taken.
    pub fn take(&self, length: u64, processor: u32) -> Result<PoolPage, TakeError> {
        if length == 0 || length > MAX_POOLED_BYTES {
            return Err(TakeError::Unfit);
        }
        let pages = length.div_ceil(PAGE_SIZE) as u32;
        let chunks = self.taken.get(..self.chunks() as usize).unwrap_or(&[]);
        let preferred = processor.checked_rem(chunks.len() as u32).unwrap_or(0);
        let (before, from) = chunks.split_at_checked(preferred as usize).unwrap_or((&[], chunks));
        let in_order = (preferred..).zip(from).chain((0..).zip(before));
        for (number, chunk) in in_order {
            if let Some(page) = claim(chunk, pages) {
                return Ok(PoolPage(number * CHUNK_PAGES + page));
            }
        }
        Err(TakeError::Exhausted)
    }

    /// Gives back what was taken for a buffer.
    ///
    /// # Errors
    /// [`NotTaken`], if it was not; the pool is as before.
    pub fn give_back(&self, first: PoolPage, pages: u32) -> Result<(), NotTaken> {
        let (chunk, page) = (first.0 / CHUNK_PAGES, first.0 % CHUNK_PAGES);
        let taken = self.taken.get(chunk as usize).ok_or(NotTaken)?;
        if pages == 0 || page + pages > CHUNK_PAGES {
            return Err(NotTaken);
        }
        let run = run_of(pages) << page;
        if taken.load(Ordering::Relaxed) & run != run {
            return Err(NotTaken);
        }
        taken.fetch_and(!run, Ordering::Release);
        Ok(())
    }

    /// How many pages are taken.
    pub fn in_use(&self) -> u32 {
        self.taken.iter().map(|chunk| chunk.load(Ordering::Relaxed).count_ones()).sum()
    }
}

impl Default for Pool {
    fn default() -> Self {
        Self::new()
    }
}

/// The pages that a buffer lies in, part of a mapped one or all of it; `None` if it is not in a pool.
pub fn find(address: u64, length: u64) -> Option<PoolRange> {
    match DmaRange::decode(address, length) {
        Ok(DmaRange::Pool(range)) => {
            (range.first.0 % CHUNK_PAGES + range.pages <= CHUNK_PAGES).then_some(range)
        }
        _ => None,
    }
}

/// `pages` bits in a row, from the lowest on; `pages` is 1 to 64.
const fn run_of(pages: u32) -> u64 {
    u64::MAX >> (CHUNK_PAGES - pages)
}

/// Sets `pages` clear bits in a row; gives the lowest one's number.
fn claim(chunk: &AtomicU64, pages: u32) -> Option<u32> {
    let mut taken = chunk.load(Ordering::Relaxed);
    loop {
        let page = first_run(!taken, pages)?;
        let with = taken | run_of(pages) << page;
        // Acquire: what was copied out of these pages was copied before they were given back.
        match chunk.compare_exchange_weak(taken, with, Ordering::Acquire, Ordering::Relaxed) {
            Ok(_) => return Some(page),
            Err(now) => taken = now,
        }
    }
}

/// The lowest place in `free` of `pages` set bits in a row.
fn first_run(free: u64, pages: u32) -> Option<u32> {
    // A bit that stays begins a run of `length`.
    let (mut starts, mut length) = (free, 1);
    while length < pages {
        let step = length.min(pages - length);
        starts &= starts >> step;
        length += step;
    }
    (starts != 0).then(|| starts.trailing_zeros())
}

#[cfg(test)]
mod tests;
