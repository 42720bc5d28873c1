//! Grant references, and the DMA addresses that encode them (SPEC section 3).

use core::fmt;

/// Bytes in a granted page. Xen grants 4 KiB pages whatever the kernel's own page size is [3.1].
pub const PAGE_SIZE: u64 = 4096;

/// References below this number belong to the toolstack, in every grant table. Through them it
/// grants the guest's console and XenStore ring to the domains that serve those, so that no
/// driver's buffer has one of them [3.13].
pub const TOOLSTACK_REFERENCES: u32 = 8;

const GRANT_BIT: u64 = 1 << 63;
const OFFSET_MASK: u64 = PAGE_SIZE - 1;

/// The number of an entry in the granting domain's grant table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct GrantRef(pub u32);

impl GrantRef {
    /// The reference `pages` after this one, or `None` past the last 32-bit reference.
    pub fn checked_add(self, pages: u32) -> Option<Self> {
        self.0.checked_add(pages).map(Self)
    }
}

impl fmt::Display for GrantRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "grant {}", self.0)
    }
}

/// The access that a grant, or a mapping of it, allows the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Access {
    /// The device may read.
    ReadOnly,
    /// The device may read and write. Xen has no grant for writing alone.
    ReadWrite,
}

/// The reason why an address and a length do not name memory that the device may reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddressError {
    /// Bit 63 is clear: a raw guest address, which no device here can reach [3.2].
    Raw(u64),
    /// Bits 62 to 44 are not zero: more than a 32-bit grant reference [3.2].
    Reserved(u64),
    /// The reference is one of the first [`TOOLSTACK_REFERENCES`], which no driver gets [3.13].
    Toolstack(GrantRef),
    /// The range runs past the last grant reference, or past the end of the pool.
    Overflow {
        /// Address of the first byte.
        address: u64,
        /// Length in bytes.
        length: u64,
    },
    /// The range has no bytes and so names no page.
    Empty(u64),
}

impl fmt::Display for AddressError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Raw(a) => write!(f, "address {a:#x} is not a grant (bit 63 is clear)"),
            Self::Reserved(a) => write!(
                f,
                "address {a:#x} has reserved bits set (61 to 44, or 62 of an address outside the pool)"
            ),
            Self::Toolstack(reference) => {
                write!(f, "{reference} is the toolstack's, not a driver's")
            }
            Self::Overflow { address, length } => {
                write!(
                    f,
                    "{length} bytes at {address:#x} run past the last grant reference or the end of the pool"
                )
            }
            Self::Empty(a) => write!(f, "empty range at {a:#x}"),
        }
    }
}

impl core::error::Error for AddressError {}

/// A DMA address of a byte in a granted page. In its encoded form bit 63 is set, bits 43 to 12 are
/// the grant reference, and bits 11 to 0 are the offset in the page [3.1].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GrantAddress {
    /// The reference of the page.
    pub reference: GrantRef,
    offset: u16,
}

impl GrantAddress {
    /// The address of the first byte of a granted page.
    pub const fn page(reference: GrantRef) -> Self {
        Self { reference, offset: 0 }
    }

    /// The address of byte `offset` (taken modulo the page size) of a granted page.
    pub const fn new(reference: GrantRef, offset: u64) -> Self {
        Self { reference, offset: (offset & OFFSET_MASK) as u16 }
    }

    /// The byte's offset in its page, in bytes, below [`PAGE_SIZE`].
    pub const fn offset(self) -> u64 {
        self.offset as u64
    }

    /// Encodes the address as descriptors and messages hold it.
    pub const fn encode(self) -> u64 {
        GRANT_BIT | ((self.reference.0 as u64) << 12) | self.offset as u64
    }

    /// Decodes an address from a descriptor or a message.
    ///
    /// # Errors
    /// [`AddressError::Raw`], [`AddressError::Reserved`] or [`AddressError::Toolstack`] if
    /// `address` is not a grant address that a driver can have.
    pub const fn decode(address: u64) -> Result<Self, AddressError> {
        if address & GRANT_BIT == 0 {
            return Err(AddressError::Raw(address));
        }
        let reference = (address & !GRANT_BIT) >> 12;
        if reference > u32::MAX as u64 {
            return Err(AddressError::Reserved(address));
        }
        let reference = GrantRef(reference as u32);
        if reference.0 < TOOLSTACK_REFERENCES {
            return Err(AddressError::Toolstack(reference));
        }
        Ok(Self::new(reference, address))
    }
}

/// The number of pages that `length` bytes touch which start at `offset` in their first page.
///
/// The offset counts: two bytes at offset 4095 touch two pages [3.3].
///
/// ```
/// # use protocol::grant::pages_spanned;
/// assert_eq!(pages_spanned(0, 4096), 1);
/// assert_eq!(pages_spanned(4095, 2), 2);
/// ```
pub const fn pages_spanned(offset: u64, length: u64) -> u64 {
    if length == 0 {
        return 0;
    }
    let last = (offset & OFFSET_MASK).saturating_add(length - 1);
    last / PAGE_SIZE + 1
}

/// A buffer in granted memory: consecutive references, one a page [3.3].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GrantRange {
    /// Address of the first byte.
    pub start: GrantAddress,
    /// Length in bytes, at least 1.
    pub length: u64,
    /// Number of pages that the buffer touches, at least 1.
    pub pages: u32,
}

impl GrantRange {
    /// Decodes the range of `length` bytes at `address`.
    ///
    /// # Errors
    /// [`AddressError`] if the range is empty, if `address` is not a grant address, or if the range
    /// runs past the last 32-bit reference.
    pub fn decode(address: u64, length: u64) -> Result<Self, AddressError> {
        let start = GrantAddress::decode(address)?;
        let overflow = AddressError::Overflow { address, length };
        let pages = u32::try_from(pages_spanned(start.offset(), length)).map_err(|_| overflow)?;
        let last = pages.checked_sub(1).ok_or(AddressError::Empty(address))?;
        start.reference.checked_add(last).ok_or(overflow)?;
        Ok(Self { start, length, pages })
    }

    /// The references of the buffer's pages, in order.
    pub fn references(self) -> impl Iterator<Item = GrantRef> {
        (0..self.pages).filter_map(move |page| self.start.reference.checked_add(page))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spec_3_1_address_round_trips() {
        for (reference, offset) in [(8, 0), (9, 4095), (u32::MAX, 17)] {
            let address = GrantAddress::new(GrantRef(reference), offset);
            assert_eq!(GrantAddress::decode(address.encode()), Ok(address));
        }
        assert_eq!(GrantAddress::new(GrantRef(5), 7).encode(), 0x8000_0000_0000_5007);
    }

    #[test]
    fn spec_3_2_raw_and_reserved_addresses_are_refused() {
        assert_eq!(GrantAddress::decode(0x1000), Err(AddressError::Raw(0x1000)));
        let reserved = (1 << 63) | (1 << 44);
        assert_eq!(GrantAddress::decode(reserved), Err(AddressError::Reserved(reserved)));
    }

    #[test]
    fn spec_3_13_toolstack_references_are_refused() {
        for reference in [GrantRef(0), GrantRef(1), GrantRef(TOOLSTACK_REFERENCES - 1)] {
            let address = GrantAddress::page(reference).encode();
            assert_eq!(GrantAddress::decode(address), Err(AddressError::Toolstack(reference)));
        }
        assert!(GrantAddress::decode(GrantAddress::page(GrantRef(8)).encode()).is_ok());
    }

    #[test]
    fn spec_3_3_offset_counts_towards_pages() {
        let straddling = GrantAddress::new(GrantRef(9), 4000).encode();
        assert_eq!(GrantRange::decode(straddling, 96).map(|r| r.pages), Ok(1));
        assert_eq!(GrantRange::decode(straddling, 97).map(|r| r.pages), Ok(2));
        let range = GrantRange::decode(straddling, 97 + 4096).unwrap();
        assert!(range.references().eq([GrantRef(9), GrantRef(10), GrantRef(11)]));
    }

    #[test]
    fn ranges_that_leave_the_references_are_refused() {
        let last = GrantAddress::page(GrantRef(u32::MAX)).encode();
        assert!(GrantRange::decode(last, 4096).is_ok());
        assert!(matches!(GrantRange::decode(last, 4097), Err(AddressError::Overflow { .. })));
        assert!(matches!(GrantRange::decode(last, u64::MAX), Err(AddressError::Overflow { .. })));
        assert_eq!(GrantRange::decode(last, 0), Err(AddressError::Empty(last)));
    }
}
