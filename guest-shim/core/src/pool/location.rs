//! Where a buffer lies in the pool, and its address.

use protocol::grant::PAGE_SIZE;
use protocol::pool::{DecodedAddress, PoolPage};

use super::{CHUNK_PAGES, SLOT_PAGES};

/// What is taken at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// A page of a chunk.
    Page,
    /// A part of a page of the first chunk.
    Slot,
}

impl Unit {
    /// Its length.
    pub const fn bytes(self) -> u32 {
        match self {
            Self::Page => PAGE_SIZE as u32,
            Self::Slot => Self::Page.bytes() / u64::BITS,
        }
    }
}

/// Where a buffer, or a part of one, lies in the pool: in units of one chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolLocation {
    /// The chunk's number.
    pub chunk: u32,
    /// What it takes.
    pub unit: Unit,
    /// The first, counted from the chunk's beginning.
    pub first: u32,
    /// How many, at least 1.
    pub count: u32,
    /// Byte of the first unit that is the buffer's first.
    pub offset: u32,
}

impl PoolLocation {
    /// `count` units from bit `first` of word `word` on.
    pub(super) const fn of_bits(unit: Unit, word: u32, first: u32, count: u32) -> Self {
        let (chunk, first) = match unit {
            Unit::Page => (word, first),
            Unit::Slot => (0, word * u64::BITS + first),
        };
        Self { chunk, unit, first, count, offset: 0 }
    }

    /// The word of the units and the first one's bit in it.
    pub(super) const fn bits(self) -> (u32, u32) {
        match self.unit {
            Unit::Page => (self.chunk, self.first),
            Unit::Slot => (self.first / u64::BITS, self.first % u64::BITS),
        }
    }

    /// Byte of the chunk that is the buffer's first.
    pub const fn start(self) -> u32 {
        self.first * self.unit.bytes() + self.offset
    }

    /// The buffer's DMA address [3.10].
    pub const fn address(self) -> u64 {
        let (page, offset) = (self.start() / Unit::Page.bytes(), self.start() % Unit::Page.bytes());
        PoolPage(self.chunk * CHUNK_PAGES + page).address(offset as u64)
    }
}

/// The place of a mapped buffer, or of a part of one, by its address; `None` if that is not in a
/// pool.
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
