//! The location of a buffer in the pool, and its DMA address.

use protocol::grant::PAGE_SIZE;
use protocol::pool::{DecodedAddress, PoolPage};

use super::{CHUNK_PAGES, SLOT_PAGES};

/// The unit of allocation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// A page of a chunk.
    Page,
    /// A slot: one 64th of a page, in the first pages of the first chunk.
    Slot,
}

impl Unit {
    /// The unit's size in bytes.
    pub const fn bytes(self) -> u32 {
        match self {
            Self::Page => PAGE_SIZE as u32,
            Self::Slot => Self::Page.bytes() / u64::BITS,
        }
    }
}

/// The location of a buffer, or of a part of one, in the pool: consecutive units of one chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolLocation {
    /// Number of the chunk.
    pub chunk: u32,
    /// Kind of the units.
    pub unit: Unit,
    /// Number of the first unit, counted from the chunk's start.
    pub first: u32,
    /// Number of units, at least 1.
    pub count: u32,
    /// Offset of the buffer in the first unit, in bytes.
    pub offset: u32,
}

impl PoolLocation {
    /// The location of `count` units from bit `first` of word `word` on.
    pub(super) const fn of_bits(unit: Unit, word: u32, first: u32, count: u32) -> Self {
        let (chunk, first) = match unit {
            Unit::Page => (word, first),
            Unit::Slot => (0, word * u64::BITS + first),
        };
        Self { chunk, unit, first, count, offset: 0 }
    }

    /// The word of the units, and the bit of the first unit in it.
    pub(super) const fn bits(self) -> (u32, u32) {
        match self.unit {
            Unit::Page => (self.chunk, self.first),
            Unit::Slot => (self.first / u64::BITS, self.first % u64::BITS),
        }
    }

    /// Offset of the buffer in the chunk, in bytes.
    pub const fn start(self) -> u32 {
        self.first * self.unit.bytes() + self.offset
    }

    /// The buffer's DMA address [3.10].
    pub const fn address(self) -> u64 {
        let (page, offset) = (self.start() / Unit::Page.bytes(), self.start() % Unit::Page.bytes());
        PoolPage(self.chunk * CHUNK_PAGES + page).address(offset as u64)
    }
}

/// The location of `length` bytes at DMA address `address`, which are a mapped buffer or a part of
/// one; `None` if they are not in one chunk of a pool.
pub fn find(address: u64, length: u64) -> Option<PoolLocation> {
    let Ok(DecodedAddress::Pool(range)) = DecodedAddress::decode(address, length) else {
        return None;
    };
    let (chunk, page) = (range.first.0 / CHUNK_PAGES, range.first.0 % CHUNK_PAGES);
    if page + range.pages > CHUNK_PAGES {
        return None;
    }
    let unit = if range.first.0 < SLOT_PAGES { Unit::Slot } else { Unit::Page };
    let start = page * Unit::Page.bytes() + range.offset as u32;
    let (first, offset) = (start / unit.bytes(), start % unit.bytes());
    let count = (u64::from(offset) + length).div_ceil(unit.bytes().into()) as u32;
    Some(PoolLocation { chunk, unit, first, count, offset })
}
