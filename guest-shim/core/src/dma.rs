//! DMA planning: which pages of a buffer to grant, how, and the address that comes of it (SPEC
//! section 3).

use protocol::grant::{
    Access, AddressError, GrantAddress, GrantRange, GrantRef, PAGE_SIZE, pages_spanned,
};

/// The most pages one mapping may touch. References must be consecutive, so that long runs are hard
/// to find in a used grant table; and one buffer must not take a large part of it.
pub const MAX_MAPPING_PAGES: u32 = 256;

/// The longest buffer that fits [`MAX_MAPPING_PAGES`] wherever in its first page it starts.
pub const MAX_MAPPING_BYTES: u64 = (MAX_MAPPING_PAGES as u64 - 1) * PAGE_SIZE;

/// Which way the data of a buffer goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DmaDirection {
    /// The device reads the buffer.
    ToDevice,
    /// The device writes the buffer.
    FromDevice,
    /// The device may do both.
    Bidirectional,
}

impl DmaDirection {
    /// Whether the device reads what the driver writes to the buffer while it is mapped.
    pub const fn device_reads(self) -> bool {
        matches!(self, Self::ToDevice | Self::Bidirectional)
    }

    /// Whether the driver reads what the device wrote.
    pub const fn device_writes(self) -> bool {
        matches!(self, Self::FromDevice | Self::Bidirectional)
    }

    /// The least that the device needs [3.4].
    pub const fn access(self) -> Access {
        if self.device_writes() { Access::ReadWrite } else { Access::ReadOnly }
    }
}

/// Why a buffer cannot be granted; a DMA mapping error to whoever asked [3.7].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PlanError {
    /// It has no bytes.
    Empty,
    /// It touches more than [`MAX_MAPPING_PAGES`] pages.
    TooLong,
    /// It runs past the end of the address space.
    Wraps,
}

/// How a buffer is to be granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Pages to grant, at least 1, from the page that holds the buffer's first byte on.
    pub pages: u32,
    /// What each grant allows.
    pub access: Access,
    offset: u64,
}

impl Plan {
    /// Plans for `length` bytes at guest-physical address `physical`.
    ///
    /// # Errors
    /// [`PlanError`] says what is wrong with the buffer.
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

    /// The buffer's DMA address once its pages are granted under consecutive references from
    /// `first` on [3.3]; `None` if there are not that many references.
    pub fn address(self, first: GrantRef) -> Option<GrantAddress> {
        first.checked_add(self.pages - 1)?;
        Some(GrantAddress::new(first, self.offset))
    }
}

/// The references that [`Plan::address`] put into an address: what to revoke when the buffer is
/// unmapped.
///
/// # Errors
/// [`AddressError`] if no plan can have given this address for this length.
pub fn release(address: u64, length: u64) -> Result<GrantRange, AddressError> {
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
    fn spec_3_1_an_address_holds_reference_and_offset() {
        let plan = Plan::new(0x7_1234, 16, DmaDirection::ToDevice).unwrap();
        let address = plan.address(GrantRef(9)).unwrap();
        assert_eq!(address.encode(), 0x8000_0000_0000_9234);
    }

    #[test]
    fn spec_3_3_the_offset_counts_towards_the_pages() {
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
    fn spec_3_4_only_what_the_device_writes_is_granted_writable() {
        assert_eq!(DmaDirection::ToDevice.access(), Access::ReadOnly);
        assert_eq!(DmaDirection::FromDevice.access(), Access::ReadWrite);
        assert_eq!(DmaDirection::Bidirectional.access(), Access::ReadWrite);
    }

    #[test]
    fn spec_3_9_what_is_copied_back_is_what_the_device_may_have_written() {
        assert!(DmaDirection::ToDevice.device_reads() && !DmaDirection::ToDevice.device_writes());
        assert!(
            !DmaDirection::FromDevice.device_reads() && DmaDirection::FromDevice.device_writes()
        );
        assert!(DmaDirection::Bidirectional.device_reads());
        assert!(DmaDirection::Bidirectional.device_writes());
    }

    #[test]
    fn spec_3_11_nothing_is_copied_into_the_pool_that_the_device_is_only_to_write() {
        assert!(
            DmaDirection::ToDevice.device_reads() && DmaDirection::Bidirectional.device_reads()
        );
        assert!(!DmaDirection::FromDevice.device_reads());
    }

    #[test]
    fn spec_3_7_what_cannot_be_granted_is_an_error() {
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
    fn what_is_mapped_is_what_is_released() {
        for (physical, length) in [(0x1000, 1), (0x1fff, 2), (0x5123, 70_000), (0, 4096)] {
            let plan = Plan::new(physical, length, DmaDirection::FromDevice).unwrap();
            let address = plan.address(GrantRef(77)).unwrap();
            let range = release(address.encode(), length).unwrap();
            assert_eq!(range.start.reference, GrantRef(77));
            assert_eq!(range.pages, plan.pages);
        }
    }

    #[test]
    fn spec_3_2_only_grant_addresses_are_released() {
        let granted = GrantAddress::page(GrantRef(77)).encode();
        assert!(matches!(release(0x1000, 1), Err(AddressError::Raw(_))));
        assert!(matches!(release(granted, 0), Err(AddressError::Empty(_))));
        assert!(matches!(release(granted, 1 << 40), Err(AddressError::Overflow { .. })));
    }
}
