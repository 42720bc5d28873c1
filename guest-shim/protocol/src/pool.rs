//! The shared pool, whose pages the driver grants once and the device keeps mapped, and the DMA
//! addresses in it [3.10].

use core::fmt;

use crate::grant::{AddressError, GrantRange, PAGE_SIZE, pages_spanned};

/// The maximum number of pages in one device's pool (SPEC 7.22).
pub const MAX_POOL_PAGES: u32 = 4096;

const POOL_BITS: u64 = 0b11 << 62;
const OFFSET_MASK: u64 = PAGE_SIZE - 1;

/// The number of a page in the pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(transparent)]
pub struct PoolPage(pub u32);

impl PoolPage {
    /// The DMA address of byte `offset` (taken modulo the page size) of the page: bits 63 and 62
    /// are set, bits 43 to 12 are the number, bits 11 to 0 are the offset [3.10].
    pub const fn address(self, offset: u64) -> u64 {
        POOL_BITS | (self.0 as u64) << 12 | offset & OFFSET_MASK
    }

    /// The page and the offset that [`PoolPage::address`] encodes as `address`; `None` if it
    /// encodes no page so.
    #[inline]
    pub fn at(address: u64) -> Option<(Self, u64)> {
        let is_pool = address >> 44 == POOL_BITS >> 44;
        is_pool.then_some((Self((address >> 12) as u32), address & OFFSET_MASK))
    }
}

impl fmt::Display for PoolPage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "page {} of the pool", self.0)
    }
}

/// A buffer in consecutive pages of the pool [3.10].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolRange {
    /// The first page.
    pub first: PoolPage,
    /// Offset of the buffer in the first page, in bytes, below [`PAGE_SIZE`].
    pub offset: u64,
    /// Length in bytes, at least 1.
    pub length: u64,
    /// Number of pages that the buffer touches, at least 1; all numbers are below
    /// [`MAX_POOL_PAGES`].
    pub pages: u32,
}

impl PoolRange {
    fn decode(address: u64, length: u64) -> Result<Self, AddressError> {
        let (first, offset) = PoolPage::at(address).ok_or(AddressError::Reserved(address))?;
        let overflow = AddressError::Overflow { address, length };
        let pages = u32::try_from(pages_spanned(offset, length)).map_err(|_| overflow)?;
        if pages == 0 {
            return Err(AddressError::Empty(address));
        }
        let end = first.0.checked_add(pages).filter(|end| *end <= MAX_POOL_PAGES);
        end.ok_or(overflow)?;
        Ok(Self { first, offset, length, pages })
    }
}

/// The memory that an address and a length name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DecodedAddress {
    /// Pages that the driver granted for this buffer [3.1].
    Granted(GrantRange),
    /// Pages of the pool [3.10].
    Pool(PoolRange),
}

impl DecodedAddress {
    /// Decodes the range of `length` bytes at `address`.
    ///
    /// # Errors
    /// [`AddressError`] if the range is empty, if `address` is of neither kind, or if the range
    /// runs past the last grant reference or the end of the pool.
    pub fn decode(address: u64, length: u64) -> Result<Self, AddressError> {
        if address & POOL_BITS == POOL_BITS {
            PoolRange::decode(address, length).map(Self::Pool)
        } else {
            GrantRange::decode(address, length).map(Self::Granted)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(address: u64, length: u64) -> Result<PoolRange, AddressError> {
        match DecodedAddress::decode(address, length)? {
            DecodedAddress::Pool(range) => Ok(range),
            DecodedAddress::Granted(_) => Err(AddressError::Raw(address)),
        }
    }

    #[test]
    fn spec_3_10_bit_62_marks_pool_addresses() {
        assert_eq!(PoolPage(5).address(7), 0xc000_0000_0000_5007);
        let range = pool(PoolPage(5).address(7), 1).unwrap();
        assert_eq!((range.first, range.offset, range.pages), (PoolPage(5), 7, 1));
        let granted = DecodedAddress::decode(0x8000_0000_0000_9007, 1);
        assert!(
            matches!(granted, Ok(DecodedAddress::Granted(range)) if range.start.reference.0 == 9)
        );
        for raw in [0x5007, 0x4000_0000_0000_5007] {
            assert_eq!(DecodedAddress::decode(raw, 1), Err(AddressError::Raw(raw)));
        }
    }

    #[test]
    fn spec_3_10_buffer_spans_consecutive_pages() {
        assert_eq!(pool(PoolPage(1).address(4095), 2).map(|range| range.pages), Ok(2));
        assert_eq!(pool(PoolPage(1).address(0), 8192).map(|range| range.pages), Ok(2));
    }

    #[test]
    fn spec_3_10_range_outside_the_pool_is_refused() {
        let last = PoolPage(MAX_POOL_PAGES - 1).address(0);
        assert!(pool(last, 4096).is_ok());
        assert!(matches!(pool(last, 4097), Err(AddressError::Overflow { .. })));
        assert!(matches!(pool(last, u64::MAX), Err(AddressError::Overflow { .. })));
        let beyond = PoolPage(MAX_POOL_PAGES).address(0);
        assert!(matches!(pool(beyond, 1), Err(AddressError::Overflow { .. })));
        assert!(matches!(
            pool(PoolPage(u32::MAX).address(0), 1),
            Err(AddressError::Overflow { .. })
        ));
        assert_eq!(pool(last, 0), Err(AddressError::Empty(last)));
        let reserved = PoolPage(0).address(0) | 1 << 44;
        assert_eq!(pool(reserved, 1), Err(AddressError::Reserved(reserved)));
    }
}
