//! A platform that translates addresses with a window: an address is the guest's own plus an
//! offset, as on PPC and SPARC. With an offset of 0 it is the identity mapping of a machine without
//! an IOMMU.
//!
//! For tests: Xen has no such platform, and the daemon never uses one.

use protocol::grant::{PAGE_SIZE, pages_spanned};
use protocol::status::F_ACCESS_PLATFORM;

use super::{AccessPlatform, AddressFault, Location, PageNumber, PageRange};
use xen::{Access, MapError};
use xen_sim::{FramePages, SimFrames};

/// All of a guest's memory, behind a window.
pub struct Window {
    frames: SimFrames,
    offset: u64,
}

impl Window {
    /// Returns a window whose first address is `offset`.
    pub fn new(frames: SimFrames, offset: u64) -> Self {
        Self { frames, offset }
    }
}

impl AccessPlatform for Window {
    type Pages = FramePages;

    fn decode(&self, address: u64, length: u64) -> Result<Location, AddressFault> {
        let outside = AddressFault::Outside { address, length };
        let inside = address.checked_sub(self.offset).ok_or(outside)?;
        let end = inside.checked_add(length).filter(|_| length > 0).ok_or(outside)?;
        if end > self.frames.count().saturating_mul(PAGE_SIZE) {
            return Err(outside);
        }
        let (first, offset) = (PageNumber(inside / PAGE_SIZE), inside % PAGE_SIZE);
        let pages = u32::try_from(pages_spanned(offset, length)).map_err(|_| outside)?;
        Ok(Location::Pages(PageRange { address, first, pages, offset, length }))
    }

    fn map(&self, pages: &[PageNumber], access: Access) -> Result<FramePages, MapError> {
        let frames: Vec<_> = pages.iter().map(|page| page.0).collect();
        Ok(self.frames.map(&frames, access))
    }

    /// Offered also with an offset of 0, where the platform does not change addresses: the bit says
    /// that the platform defines them.
    fn offered(&self) -> u64 {
        1 << F_ACCESS_PLATFORM
    }

    /// With an offset of 0, a driver that ignores the platform uses the right addresses anyway.
    fn accepts(&self, features: u64) -> bool {
        self.offset == 0 || features & 1 << F_ACCESS_PLATFORM != 0
    }
}

#[cfg(test)]
mod tests {
    use xen::DomId;
    use xen_sim::{Guest, Hypervisor};

    use super::*;

    /// The memory of a guest with four pages.
    fn frames() -> (Guest, SimFrames) {
        let hypervisor = Hypervisor::default();
        (hypervisor.guest(1, 4), hypervisor.frames(DomId(1)))
    }

    #[test]
    fn window_address_is_the_guests_plus_the_offset() {
        for offset in [0, 1 << 32, 0x8000_0000_0000_0000] {
            let (_guest, frames) = frames();
            let window = Window::new(frames, offset);
            let address = offset + 2 * PAGE_SIZE + 7;
            let (first, length) = (PageNumber(2), 4096);
            let range = PageRange { address, first, pages: 2, offset: 7, length };
            assert_eq!(window.decode(address, length), Ok(Location::Pages(range)));
        }
    }

    #[test]
    fn address_outside_the_window_is_refused() {
        let (_guest, frames) = frames();
        let window = Window::new(frames, 1 << 32);
        let outside = [
            (0, 1),
            ((1 << 32) - 1, 2),
            ((1 << 32) + 4 * PAGE_SIZE - 1, 2),
            (u64::MAX, 1),
            (1 << 32, 0),
        ];
        for (address, length) in outside {
            assert_eq!(
                window.decode(address, length),
                Err(AddressFault::Outside { address, length })
            );
        }
    }
}
