//! Type (c): the platform's mechanism is used if the driver asks for it.
//!
//! For one that does not ask, addresses are taken as QEMU's machines for Xen take them, where both
//! kinds lie in one address space: with bit 63 set they are grants, else the guest's own.

use std::io;

use protocol::status::F_ACCESS_PLATFORM;
use xen::mapped::MappedRange;
use xen::{Access, DomId, MapError};
use xen::{Gntdev, GntdevPages};
use xen_virtiod::dma::grants::GrantPlatform;
use xen_virtiod::dma::{AccessPlatform, AddressFault, Location, PageNumber, PageRange};

use crate::bypass::raw;
use crate::foreign::Foreign;
use crate::handles::Open;
use crate::region::{RegionPages, refused};

/// Added to the number of a page that was named by a raw address. No grant reference and no frame
/// of a machine is as large.
const RAW: u64 = 1 << 62;

/// The driver's choice.
pub(crate) struct Permissive {
    grants: GrantPlatform<Gntdev>,
    foreign: Foreign,
    /// The driver did not ask for the platform's mechanism.
    bypassed: bool,
}

impl Open for Permissive {
    fn open(guest: DomId) -> io::Result<Self> {
        let grants = GrantPlatform::new(Gntdev::open(guest)?);
        Ok(Self { grants, foreign: Foreign::open(guest)?, bypassed: false })
    }
}

impl AccessPlatform for Permissive {
    type Pages = Pages;

    fn decode(&self, address: u64, length: u64) -> Result<Location, AddressFault> {
        match self.grants.decode(address, length) {
            Err(_) if self.bypassed => {
                let range = raw(address, length)?;
                let first = PageNumber(RAW | range.first.0);
                Ok(Location::Pages(PageRange { first, ..range }))
            }
            decoded => decoded,
        }
    }

    fn map(&self, pages: &[PageNumber], access: Access) -> Result<Pages, MapError> {
        let frames = pages.iter().filter_map(|page| page.0.checked_sub(RAW).map(PageNumber));
        let frames: Vec<_> = frames.collect();
        match frames.len() {
            0 => self.grants.map(pages, access).map(Pages::Granted),
            all if all == pages.len() => self.foreign.map(&frames, access).map(Pages::Foreign),
            // A batch that has both is mapped in parts, when each is accessed.
            _ => Err(refused(pages, access, io::Error::other("grants and frames together"))),
        }
    }

    fn offered(&self) -> u64 {
        1 << F_ACCESS_PLATFORM
    }

    fn accepts(&mut self, features: u64) -> bool {
        self.bypassed = features & 1 << F_ACCESS_PLATFORM == 0;
        true
    }
}

/// Mapped one way or the other.
pub(crate) enum Pages {
    /// As granted.
    Granted(GntdevPages),
    /// As frames.
    Foreign(RegionPages),
}

impl AsRef<MappedRange> for Pages {
    fn as_ref(&self) -> &MappedRange {
        match self {
            Self::Granted(pages) => pages.as_ref(),
            Self::Foreign(pages) => pages.as_ref(),
        }
    }
}
