//! The shared pool: which buffers go by way of it, and what of it is taken (SPEC section 3).
//!
//! Pages are shared with the device in chunks of [`CHUNK_PAGES`]; a buffer lies in consecutive
//! pages of one chunk. The first pages are divided into slots for what is small, as the headers and
//! descriptors of requests are: these then lie together. A word has a bit for each page of a chunk,
//! or for each slot of a page. There is no lock: units are taken and given back by compare and
//! exchange, in any context, and each processor begins to look at another word.

mod location;
#[cfg(test)]
mod tests;
mod units;

use core::sync::atomic::{self, AtomicU32, AtomicU64, Ordering};

use protocol::pool::MAX_POOL_PAGES;

pub use location::{PoolLocation, Unit, find};

/// Pages that are shared with one message, under consecutive references.
pub const CHUNK_PAGES: u32 = u64::BITS;

/// The most chunks of a pool.
pub const MAX_CHUNKS: u32 = MAX_POOL_PAGES / CHUNK_PAGES;

/// Pages of the first chunk that are divided into slots.
const SLOT_PAGES: u32 = 8;

/// Slots of a pool.
pub const SLOTS: u32 = SLOT_PAGES * u64::BITS;

/// The longest buffer that goes by way of the pool, in bytes: what fits a chunk.
///
/// To copy it costs the guest less than to map and to unmap it costs both sides, whatever its
/// length; so all go that can.
pub const MAX_POOLED_BYTES: u64 = (CHUNK_PAGES * Unit::Page.bytes()) as u64;

/// The longest buffer that is put into slots.
const MAX_SLOT_BYTES: u64 = 512;

/// One device takes no more than one in so many of the guest's grant references for its pool:
/// rings, buffers that do not go by way of it, and other devices need some.
const SHARE_OF_REFERENCES: u32 = 8;

/// How many chunks a pool may have, where the guest's administrator allows `pages` pages a device
/// and the guest has `references` grant references in all.
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

/// It was not taken, or is not in the pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotTaken;

/// What of a pool is taken.
#[derive(Debug)]
pub struct Pool {
    /// Chunks from the first on that may be taken from.
    open: AtomicU32,
    /// The slots of each page that has some.
    slots: [AtomicU64; SLOT_PAGES as usize],
    /// The pages of each chunk; those that are divided are never free.
    pages: [AtomicU64; MAX_CHUNKS as usize],
}

impl Pool {
    /// A pool of no chunks.
    pub const fn new() -> Self {
        let mut pages = [const { AtomicU64::new(0) }; MAX_CHUNKS as usize];
        pages[0] = AtomicU64::new(units::run(SLOT_PAGES));
        Self {
            open: AtomicU32::new(0),
            slots: [const { AtomicU64::new(0) }; SLOT_PAGES as usize],
            pages,
        }
    }

    /// From now on the first `chunks` chunks are taken from. What is taken of others stays so until
    /// it is given back.
    pub fn open(&self, chunks: u32) {
        self.open.store(chunks, Ordering::Release);
    }

    /// Chunks that are taken from.
    pub fn chunks(&self) -> u32 {
        self.open.load(Ordering::Acquire)
    }

    /// Takes a place for a buffer of `length` bytes, looking first where `processor` prefers.
    ///
    /// # Errors
    /// [`TakeError`]; nothing was taken.
    pub fn take(&self, length: u64, processor: u32) -> Result<PoolLocation, TakeError> {
        if length == 0 || length > MAX_POOLED_BYTES {
            return Err(TakeError::Unfit);
        }
        let small =
            if length <= MAX_SLOT_BYTES { self.claim(Unit::Slot, length, processor) } else { None };
        small.or_else(|| self.claim(Unit::Page, length, processor)).ok_or(TakeError::Exhausted)
    }

    /// Gives back what was taken for a buffer.
    ///
    /// # Errors
    /// [`NotTaken`], if it was not; the pool is as before.
    pub fn give_back(&self, place: PoolLocation) -> Result<(), NotTaken> {
        let (word, first) = place.bits();
        let words: &[AtomicU64] = match place.unit {
            Unit::Page => &self.pages,
            Unit::Slot => &self.slots,
        };
        let taken = words.get(word as usize).ok_or(NotTaken)?;
        if units::free(taken, first, place.count) { Ok(()) } else { Err(NotTaken) }
    }

    /// How many pages are taken, or have slots that are.
    pub fn in_use(&self) -> u32 {
        let pages: u32 = self.pages.iter().map(units::count).sum();
        let slots = self.slots.iter().filter(|page| units::count(page) != 0).count();
        pages - SLOT_PAGES + slots as u32
    }

    fn claim(&self, unit: Unit, length: u64, processor: u32) -> Option<PoolLocation> {
        let count = length.div_ceil(unit.bytes().into()) as u32;
        let chunks = self.pages.get(..self.chunks() as usize)?;
        let words = match unit {
            Unit::Page => chunks,
            // They are of the first chunk.
            Unit::Slot if chunks.is_empty() => return None,
            Unit::Slot => &self.slots,
        };
        let (word, first) = units::claim(words, processor, count)?;
        Some(PoolLocation::of_bits(unit, word, first, count))
    }
}

impl Default for Pool {
    fn default() -> Self {
        Self::new()
    }
}
