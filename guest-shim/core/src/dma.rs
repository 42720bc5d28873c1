//! DMA planning: which pages of a buffer to grant, with which access, and the resulting address
//! (SPEC section 3).

use protocol::grant::{
    Access, AddressError, GrantAddress, GrantRange, GrantRef, PAGE_SIZE, pages_spanned,
};

/// The maximum number of pages that one mapping may touch. Its references must be consecutive, and
/// a used grant table rarely has long runs of free entries; also one buffer must not take a large
/// part of the table.
pub const MAX_MAPPING_PAGES: u32 = 256;

/// The longest buffer, in bytes, that fits [`MAX_MAPPING_PAGES`] at any offset in its first page.
pub const MAX_MAPPING_BYTES: u64 = (MAX_MAPPING_PAGES as u64 - 1) * PAGE_SIZE;

/// The direction of a buffer's data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DmaDirection {
    /// The device reads the buffer.
    ToDevice,
    /// The device writes the buffer.
    FromDevice,
    /// The device may read and write the buffer.
    Bidirectional,
}

impl DmaDirection {
    /// Whether the device reads the driver's data from the buffer.
    pub const fn device_reads(self) -> bool {
        matches!(self, Self::ToDevice | Self::Bidirectional)
    }

    /// Whether the device writes data into the buffer for the driver.
    pub const fn device_writes(self) -> bool {
        matches!(self, Self::FromDevice | Self::Bidirectional)
    }

    /// The least access that the device needs [3.4].
    pub const fn access(self) -> Access {
        if self.device_writes() { Access::ReadWrite } else { Access::ReadOnly }
    }
}

/// The reason why a buffer cannot be granted; the caller gets a DMA mapping error [3.7].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PlanError {
    /// The buffer has no bytes.
    Empty,
    /// The buffer touches more than [`MAX_MAPPING_PAGES`] pages.
    TooLong,
    /// The buffer runs past the end of the address space.
    Wraps,
}

/// The grants that a buffer needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Number of pages to grant, at least 1; the first one holds the buffer's first byte.
    pub pages: u32,
    /// Access that each grant allows.
    pub access: Access,
    offset: u64,
}

impl Plan {
    /// Plans the grants of `length` bytes at guest-physical address `physical`.
    ///
    /// # Errors
    /// [`PlanError`] if the buffer cannot be granted [3.7].
    pub const fn new(
        physical: u64,
        length: u64,
        direction: DmaDirection,
    ) -> Result<Self, PlanError> {
        if length == 0 {
            return Err(PlanError::Empty);
        }
        if physical.checked_add(length - 1).is_none() {
            return Err(PlanError::Wraps);
        }
        let offset = physical & (PAGE_SIZE - 1);
        let pages = pages_spanned(offset, length);
        if pages > MAX_MAPPING_PAGES as u64 {
            return Err(PlanError::TooLong);
        }
        Ok(Self { pages: pages as u32, access: direction.access(), offset })
    }

    /// The buffer's DMA address if its pages have consecutive references from `first` on [3.3];
    /// `None` if these run past the last 32-bit reference.
    pub fn address(self, first: GrantRef) -> Option<GrantAddress> {
        first.checked_add(self.pages - 1)?;
        Some(GrantAddress::new(first, self.offset))
    }
}

/// Decodes an address from [`Plan::address`] into the references to revoke when the driver unmaps
/// the buffer.
///
/// # Errors
/// [`AddressError`] if [`Plan::address`] cannot have returned this address for this length.
pub fn references(address: u64, length: u64) -> Result<GrantRange, AddressError> {
    let range = GrantRange::decode(address, length)?;
    if range.pages > MAX_MAPPING_PAGES {
        return Err(AddressError::Overflow { address, length });
    }
    Ok(range)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pages(physical: u64, length: u64) -> Result<u32, PlanError> {
        Plan::new(physical, length, DmaDirection::ToDevice).map(|plan| plan.pages)
    }

    #[test]
    fn spec_3_1_address_holds_reference_and_offset() {
        let plan = Plan::new(0x7_1234, 16, DmaDirection::ToDevice).unwrap();
        let address = plan.address(GrantRef(9)).unwrap();
        assert_eq!(address.encode(), 0x8000_0000_0000_9234);
    }

    #[test]
    fn spec_3_3_offset_counts_towards_planned_pages() {
        assert_eq!(pages(0x1000, 4096), Ok(1));
        assert_eq!(pages(0x1fff, 1), Ok(1));
        assert_eq!(pages(0x1fff, 2), Ok(2), "two bytes that straddle");
        assert_eq!(pages(0x1001, 4096), Ok(2), "one page long, not aligned");
        assert_eq!(pages(0x1fff, 4098), Ok(3));
    }

    #[test]
    fn spec_3_3_references_past_the_last_are_refused() {
        let plan = Plan::new(0x1000, 8192, DmaDirection::ToDevice).unwrap();
        assert!(plan.address(GrantRef(u32::MAX - 1)).is_some());
        assert_eq!(plan.address(GrantRef(u32::MAX)), None);
    }

    #[test]
    fn spec_3_4_only_buffers_that_the_device_writes_are_granted_writable() {
        assert_eq!(DmaDirection::ToDevice.access(), Access::ReadOnly);
        assert_eq!(DmaDirection::FromDevice.access(), Access::ReadWrite);
        assert_eq!(DmaDirection::Bidirectional.access(), Access::ReadWrite);
    }

    #[test]
    fn spec_3_9_only_buffers_that_the_device_writes_are_copied_back() {
        assert!(DmaDirection::ToDevice.device_reads() && !DmaDirection::ToDevice.device_writes());
        assert!(
            !DmaDirection::FromDevice.device_reads() && DmaDirection::FromDevice.device_writes()
        );
        assert!(DmaDirection::Bidirectional.device_reads());
        assert!(DmaDirection::Bidirectional.device_writes());
    }

    #[test]
    fn spec_3_11_only_buffers_that_the_device_reads_are_copied_into_the_pool() {
        assert!(
            DmaDirection::ToDevice.device_reads() && DmaDirection::Bidirectional.device_reads()
        );
        assert!(!DmaDirection::FromDevice.device_reads());
    }

    #[test]
    fn spec_3_7_impossible_buffers_are_mapping_errors() {
        assert_eq!(pages(0x1000, 0), Err(PlanError::Empty));
        assert_eq!(pages(u64::MAX, 2), Err(PlanError::Wraps));
        assert_eq!(pages(0x1000, u64::MAX), Err(PlanError::Wraps));
        assert_eq!(pages(0, u64::MAX), Err(PlanError::TooLong));
    }

    #[test]
    fn the_longest_mapping_fits_at_any_offset() {
        assert_eq!(pages(0x1fff, MAX_MAPPING_BYTES), Ok(MAX_MAPPING_PAGES));
        assert_eq!(pages(0x1000, u64::from(MAX_MAPPING_PAGES) * 4096), Ok(MAX_MAPPING_PAGES));
        assert_eq!(pages(0x1001, u64::from(MAX_MAPPING_PAGES) * 4096), Err(PlanError::TooLong));
    }

    #[test]
    fn references_are_the_planned_ones() {
        for (physical, length) in [(0x1000, 1), (0x1fff, 2), (0x5123, 70_000), (0, 4096)] {
            let plan = Plan::new(physical, length, DmaDirection::FromDevice).unwrap();
            let address = plan.address(GrantRef(77)).unwrap();
            let range = references(address.encode(), length).unwrap();
            assert_eq!(range.start.reference, GrantRef(77));
            assert_eq!(range.pages, plan.pages);
        }
    }

    #[test]
    fn spec_3_2_only_grant_addresses_have_references() {
        let granted = GrantAddress::page(GrantRef(77)).encode();
        assert!(matches!(references(0x1000, 1), Err(AddressError::Raw(_))));
        assert!(matches!(references(granted, 0), Err(AddressError::Empty(_))));
        assert!(matches!(references(granted, 1 << 40), Err(AddressError::Overflow { .. })));
    }
}
