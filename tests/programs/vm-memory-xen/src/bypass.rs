//! Type (a): virtio before VIRTIO_F_ACCESS_PLATFORM. The device bypasses the platform's mechanism
//! on every platform.

use std::io;

use protocol::grant::{PAGE_SIZE, pages_spanned};
use xen::{Access, DomId, MapError};
use xen_virtiod::dma::{AccessPlatform, AddressFault, Location, PageNumber, PageRange};

use crate::foreign::Foreign;
use crate::handles::Open;
use crate::region::RegionPages;

/// A platform on which all addresses are raw.
pub(crate) struct Bypass(Foreign);

impl Open for Bypass {
    fn open(guest: DomId) -> io::Result<Self> {
        Foreign::open(guest).map(Self)
    }
}

impl AccessPlatform for Bypass {
    type Pages = RegionPages;

    fn decode(&self, address: u64, length: u64) -> Result<Location, AddressFault> {
        raw(address, length).map(Location::Pages)
    }

    fn map(&self, pages: &[PageNumber], access: Access) -> Result<RegionPages, MapError> {
        self.0.map(pages, access)
    }

    fn offered(&self) -> u64 {
        0
    }

    fn accepts(&self, _features: u64) -> bool {
        true
    }
}

/// Decodes a raw address to the guest's frames. The hypervisor decides whether they exist.
///
/// # Errors
/// [`AddressFault::Outside`] if the range is empty or too long.
pub(crate) fn raw(address: u64, length: u64) -> Result<PageRange, AddressFault> {
    let outside = AddressFault::Outside { address, length };
    address.checked_add(length).filter(|_| length > 0).ok_or(outside)?;
    let (first, offset) = (PageNumber(address / PAGE_SIZE), address % PAGE_SIZE);
    let pages = u32::try_from(pages_spanned(offset, length)).map_err(|_| outside)?;
    Ok(PageRange { address, first, pages, offset, length })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn raw_address_decodes_to_frame_and_offset() {
        let range = raw(0x5fff, 2).unwrap();
        assert_eq!((range.first, range.pages, range.offset), (PageNumber(5), 2, 0xfff));
        assert!(raw(0x5000, 0).is_err());
        assert!(raw(u64::MAX, 2).is_err());
    }
}
