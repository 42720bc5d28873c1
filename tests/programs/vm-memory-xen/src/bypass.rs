//! Type (a): virtio as it was before VIRTIO_F_ACCESS_PLATFORM. The device is not behind the
//! platform's mechanism, whatever platform it is.

use std::io;

use protocol::grant::{PAGE_SIZE, pages_spanned};
use xen::{Access, DomId, MapError};
use xen_virtiod::dma::{AccessPlatform, AddressFault, Location, PageNumber, PageRange};

use crate::foreign::Foreign;
use crate::handles::Open;
use crate::region::RegionPages;

/// All addresses are raw.
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

    fn accepts(&mut self, _features: u64) -> bool {
        true
    }
}

/// The frames that a raw address means: whether the guest has them is the hypervisor's to say.
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
    fn a_raw_address_is_a_frame_and_an_offset() {
        let range = raw(0x5fff, 2).unwrap();
        assert_eq!((range.first, range.pages, range.offset), (PageNumber(5), 2, 0xfff));
        assert!(raw(0x5000, 0).is_err());
        assert!(raw(u64::MAX, 2).is_err());
    }
}
