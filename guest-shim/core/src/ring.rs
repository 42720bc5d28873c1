//! The grants of a queue's ring: read-only for pages that the device only reads, writable for the
//! device area [3.4].

use protocol::grant::{AddressError, GrantRange, GrantRef};

use crate::transport::MAX_ENTRIES;
use protocol::grant::Access;

/// Size of one descriptor, in bytes.
const DESCRIPTOR: u64 = 16;
/// Size of the driver area without its entries, in bytes: flags, index and event index.
const DRIVER_FIELDS: u64 = 6;
/// Size of one entry in the driver area, in bytes.
const DRIVER_ENTRY: u64 = 2;
/// Size of the device area without its entries, in bytes: flags, index and event index.
const DEVICE_FIELDS: u64 = 6;
/// Size of one entry in the device area, in bytes.
const DEVICE_ENTRY: u64 = 8;

/// The reason why a ring cannot be granted; the driver does not set the queue up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RingError {
    /// The ring has no entries, or more than [`MAX_ENTRIES`].
    Entries(u32),
    /// The address of an area is not a grant address.
    Address(AddressError),
    /// The areas are not in order: descriptor and driver area must lie in pages before the device
    /// area, and the driver area must not start before the descriptor area's first page.
    Order,
    /// The device area does not begin a page, so that the device could write data before it.
    DeviceArea,
}

impl From<AddressError> for RingError {
    fn from(error: AddressError) -> Self {
        Self::Address(error)
    }
}

/// The addresses of a split ring's areas.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingAddresses {
    /// The descriptor table.
    pub descriptor: u64,
    /// The driver area: the available ring.
    pub driver: u64,
    /// The device area: the used ring.
    pub device: u64,
}

/// The grants of a split ring in consecutive pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingGrants {
    /// Reference of the first page, in which the descriptor area starts.
    pub first: GrantRef,
    /// Number of pages, at least 2.
    pub pages: u32,
    /// Number of pages, from the first on, that are granted read-only [3.4].
    pub read_only: u32,
}

impl RingGrants {
    /// Plans the grants of a ring of `entries` entries.
    ///
    /// # Errors
    /// [`RingError`] if the ring cannot be granted, for example because the device area shares a
    /// page with another area.
    pub fn new(ring: RingAddresses, entries: u32) -> Result<Self, RingError> {
        if entries == 0 || entries > MAX_ENTRIES {
            return Err(RingError::Entries(entries));
        }
        let area = |address, fields, entry| {
            GrantRange::decode(address, fields + entry * u64::from(entries))
        };
        let descriptors = area(ring.descriptor, 0, DESCRIPTOR)?;
        let driver = area(ring.driver, DRIVER_FIELDS, DRIVER_ENTRY)?;
        let device = area(ring.device, DEVICE_FIELDS, DEVICE_ENTRY)?;
        if device.start.offset() != 0 {
            return Err(RingError::DeviceArea);
        }
        let first = descriptors.start.reference;
        let before = |range: GrantRange| past(range) <= device.start.reference.0;
        if !before(descriptors) || !before(driver) || driver.start.reference < first {
            return Err(RingError::Order);
        }
        let (pages, read_only) = (past(device) - first.0, device.start.reference.0 - first.0);
        Ok(Self { first, pages, read_only })
    }

    /// The access that the grant of the ring's page `index`, counted from 0, allows.
    pub const fn access(self, index: u32) -> Access {
        if index < self.read_only { Access::ReadOnly } else { Access::ReadWrite }
    }
}

/// The reference after a range's last.
const fn past(range: GrantRange) -> u32 {
    range.start.reference.0.saturating_add(range.pages)
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::vec::Vec;

    use protocol::grant::GrantAddress;

    use super::*;

    const FIRST: u32 = 40;

    fn address(page: u32, offset: u64) -> u64 {
        GrantAddress::new(GrantRef(FIRST + page), offset).encode()
    }

    /// A ring with Linux's layout, aligned to pages.
    fn ring(entries: u32) -> RingAddresses {
        let driver = u64::from(entries) * DESCRIPTOR;
        let end = driver + DRIVER_FIELDS + u64::from(entries) * DRIVER_ENTRY;
        let at = |byte: u64| address((byte / 4096) as u32, byte % 4096);
        RingAddresses {
            descriptor: address(0, 0),
            driver: at(driver),
            device: address(end.div_ceil(4096) as u32, 0),
        }
    }

    fn grants(entries: u32) -> (u32, u32) {
        let made = RingGrants::new(ring(entries), entries).unwrap();
        assert_eq!(made.first, GrantRef(FIRST));
        (made.pages, made.read_only)
    }

    #[test]
    fn spec_3_4_only_the_device_area_is_granted_writable() {
        let made = RingGrants::new(ring(256), 256).unwrap();
        let access: Vec<_> = (0..made.pages).map(|page| made.access(page)).collect();
        assert_eq!(access, [Access::ReadOnly, Access::ReadOnly, Access::ReadWrite]);
    }

    #[test]
    fn spec_7_rings_of_all_sizes_have_the_pages_of_their_areas() {
        assert_eq!(grants(1), (2, 1));
        assert_eq!(grants(128), (2, 1));
        assert_eq!(grants(256), (3, 2));
        assert_eq!(grants(512), (5, 3), "4102 bytes of the device area");
        assert_eq!(grants(1024), (8, 5));
    }

    #[test]
    fn spec_3_4_device_area_in_a_shared_page_is_refused() {
        let packed = RingAddresses { device: address(0, 2048), ..ring(16) };
        assert_eq!(RingGrants::new(packed, 16), Err(RingError::DeviceArea));
        let at_a_page_of_another = RingAddresses { device: address(0, 0), ..ring(16) };
        assert_eq!(RingGrants::new(at_a_page_of_another, 16), Err(RingError::Order));
        let inside = RingAddresses { device: address(4, 0), ..ring(1024) };
        assert_eq!(RingGrants::new(inside, 1024), Err(RingError::Order));
    }

    #[test]
    fn areas_in_another_order_are_refused() {
        let before = RingAddresses { driver: address(0, 0), descriptor: address(1, 0), ..ring(16) };
        let device = RingAddresses { device: address(2, 0), ..before };
        assert_eq!(RingGrants::new(device, 16), Err(RingError::Order));
        let behind = RingAddresses { driver: address(1, 0), ..ring(16) };
        assert_eq!(RingGrants::new(behind, 16), Err(RingError::Order));
    }

    #[test]
    fn ring_outside_granted_memory_is_refused() {
        let raw = RingAddresses { driver: 0x1000, ..ring(16) };
        let refused = RingGrants::new(raw, 16);
        assert_eq!(refused, Err(RingError::Address(AddressError::Raw(0x1000))));
        let last = GrantAddress::page(GrantRef(u32::MAX)).encode();
        let past_the_end = RingAddresses { device: last, ..ring(16) };
        assert!(RingGrants::new(past_the_end, 1024).is_err());
    }

    #[test]
    fn ring_without_entries_or_with_too_many_is_refused() {
        for entries in [0, MAX_ENTRIES + 1, u32::MAX] {
            assert_eq!(RingGrants::new(ring(16), entries), Err(RingError::Entries(entries)));
        }
    }
}
