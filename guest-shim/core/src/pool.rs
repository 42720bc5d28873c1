//! The allocator of the shared pool [3.10].
//!
//! The driver shares pages with the device in chunks of [`CHUNK_PAGES`]; a buffer lies in
//! consecutive pages of one chunk. The first [`SLOT_PAGES`] pages are divided into slots for small
//! buffers, such as the headers and descriptors of requests, which then lie together. A word has a
//! bit for each page of a chunk, or for each slot of a page. There is no lock: callers take and
//! return units with atomic operations, in any context. Each processor starts its search at another
//! word.

mod growth;
mod location;
mod pressure;
#[cfg(test)]
mod tests;
mod units;

use core::sync::atomic::{self, AtomicU32, AtomicU64, Ordering};

use protocol::pool::MAX_POOL_PAGES;

pub use growth::{chunk_limit, grown, guest_limit, kept};
pub use location::{PoolLocation, Unit, find};
pub use pressure::Admission;

/// Number of pages in a chunk, which the driver shares with one message under consecutive
/// references [5.8].
pub const CHUNK_PAGES: u32 = u64::BITS;

/// The maximum number of chunks in a pool.
pub const MAX_CHUNKS: u32 = MAX_POOL_PAGES / CHUNK_PAGES;

/// Number of pages, from the start of the first chunk, that are divided into slots.
const SLOT_PAGES: u32 = 8;

/// Number of slots in a pool.
pub const SLOTS: u32 = SLOT_PAGES * u64::BITS;

/// The longest buffer that the pool takes, in bytes: one chunk.
///
/// The copy costs the guest less than mapping and unmapping cost both sides, whatever the buffer's
/// length; so every buffer that fits goes through the pool.
pub const MAX_POOLED_BYTES: u64 = (CHUNK_PAGES * Unit::Page.bytes()) as u64;

/// The longest buffer that the pool puts into slots, in bytes.
const MAX_SLOT_BYTES: u64 = 512;

/// The reason why the pool does not take a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TakeError {
    /// The buffer has no bytes, or more than [`MAX_POOLED_BYTES`].
    Unfit,
    /// No open chunk has enough consecutive free pages.
    Exhausted,
}

/// The error of [`Pool::give_back`]: the units are not taken, or not in the pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotTaken;

/// The units of a pool, each taken or free.
#[derive(Debug)]
pub struct Pool {
    /// Number of open chunks, from the first on. [`Pool::take`] uses no others.
    open: AtomicU32,
    /// The chunks, a bit each, of which pages were taken since [`Pool::take_touched`].
    touched: AtomicU64,
    /// The retired chunks, a bit each. All their pages are taken, so that nobody takes one who has
    /// read `open` before.
    retired: AtomicU64,
    /// The slots of each page that is divided into slots.
    slots: [AtomicU64; SLOT_PAGES as usize],
    /// The pages of each chunk; pages that are divided into slots are never free.
    pages: [AtomicU64; MAX_CHUNKS as usize],
}

impl Pool {
    /// Creates a pool without an open chunk.
    pub const fn new() -> Self {
        let mut pages = [const { AtomicU64::new(0) }; MAX_CHUNKS as usize];
        pages[0] = AtomicU64::new(units::run(SLOT_PAGES));
        Self {
            open: AtomicU32::new(0),
            touched: AtomicU64::new(0),
            retired: AtomicU64::new(0),
            slots: [const { AtomicU64::new(0) }; SLOT_PAGES as usize],
            pages,
        }
    }

    /// Opens the first `chunks` chunks for [`Pool::take`], and closes the others. Units of a closed
    /// chunk stay taken until [`Pool::give_back`].
    pub fn open(&self, chunks: u32) {
        self.open.store(chunks, Ordering::Release);
    }

    /// The number of open chunks.
    pub fn chunks(&self) -> u32 {
        self.open.load(Ordering::Acquire)
    }

    /// The chunks of which pages were taken since the last call, a bit each.
    pub fn take_touched(&self) -> u64 {
        self.touched.swap(0, Ordering::Relaxed)
    }

    /// Closes the last open chunk, if no page of it is taken, until [`Pool::restore`]. Returns
    /// whether it did. Nobody opens or closes chunks during the call.
    pub fn retire_last(&self) -> bool {
        let Some(number) = self.chunks().checked_sub(1) else { return false };
        let Some(pages) = self.pages.get(number as usize) else { return false };
        let retires = units::claim_all(pages);
        if retires {
            self.retired.fetch_or(1 << number, Ordering::Relaxed);
            self.open(number);
        }
        retires
    }

    /// Makes chunk `number`, if it was retired, ready to be opened again.
    pub fn restore(&self, number: u32) {
        let Some(pages) = self.pages.get(number as usize) else { return };
        if self.retired.fetch_and(!(1 << number), Ordering::Relaxed) & 1 << number != 0 {
            units::free(pages, 0, CHUNK_PAGES);
        }
    }

    /// Takes units for a buffer of `length` bytes. The number `processor` selects the word at which
    /// the search starts.
    ///
    /// # Errors
    /// [`TakeError`], after which the pool is unchanged.
    pub fn take(&self, length: u64, processor: u32) -> Result<PoolLocation, TakeError> {
        if length == 0 || length > MAX_POOLED_BYTES {
            return Err(TakeError::Unfit);
        }
        let small =
            if length <= MAX_SLOT_BYTES { self.claim(Unit::Slot, length, processor) } else { None };
        small.or_else(|| self.claim(Unit::Page, length, processor)).ok_or(TakeError::Exhausted)
    }

    /// Returns a buffer's units to the pool.
    ///
    /// # Errors
    /// [`NotTaken`] unless all of the units are taken; the pool is unchanged then.
    pub fn give_back(&self, location: PoolLocation) -> Result<(), NotTaken> {
        let (word, first) = location.bits();
        let words: &[AtomicU64] = match location.unit {
            Unit::Page => &self.pages,
            Unit::Slot => &self.slots,
        };
        let taken = words.get(word as usize).ok_or(NotTaken)?;
        if units::free(taken, first, location.count) { Ok(()) } else { Err(NotTaken) }
    }

    /// The number of pages that are taken or have taken slots.
    pub fn in_use(&self) -> u32 {
        let pages: u32 = self.pages.iter().map(units::count).sum();
        let retired = self.retired.load(Ordering::Relaxed).count_ones() * CHUNK_PAGES;
        let slots = self.slots.iter().filter(|page| units::count(page) != 0).count();
        pages.saturating_sub(SLOT_PAGES + retired) + slots as u32
    }

    fn claim(&self, unit: Unit, length: u64, processor: u32) -> Option<PoolLocation> {
        let count = length.div_ceil(unit.bytes().into()) as u32;
        let chunks = self.pages.get(..self.chunks() as usize)?;
        let words = match unit {
            Unit::Page => chunks,
            // Slots lie in the first chunk.
            Unit::Slot if chunks.is_empty() => return None,
            Unit::Slot => &self.slots,
        };
        let (word, first) = units::claim(words, processor, count)?;
        if unit == Unit::Page {
            self.touch(word);
        }
        Some(PoolLocation::of_bits(unit, word, first, count))
    }

    fn touch(&self, chunk: u32) {
        // Mostly the bit is set already, and reading does not take the line from other processors.
        if self.touched.load(Ordering::Relaxed) & 1 << chunk == 0 {
            self.touched.fetch_or(1 << chunk, Ordering::Relaxed);
        }
    }
}

impl Default for Pool {
    fn default() -> Self {
        Self::new()
    }
}
