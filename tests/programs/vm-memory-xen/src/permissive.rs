//! Type (c): the device uses the platform's mechanism if the driver asks for it.
//!
//! For other drivers it decodes addresses as QEMU's machines for Xen do, where both kinds are in
//! one address space: an address with bit 63 set is a grant, any other one is the guest's own.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

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

/// Marks the number of a page with a raw address. No grant reference and no frame number of a
/// machine is as large.
const RAW: u64 = 1 << 62;

/// A platform that the driver chooses.
pub(crate) struct Permissive {
    grants: GrantPlatform<Gntdev>,
    foreign: Foreign,
    /// Whether the driver did not accept VIRTIO_F_ACCESS_PLATFORM.
    bypassed: AtomicBool,
}

impl Open for Permissive {
    fn open(guest: DomId) -> io::Result<Self> {
        let grants = GrantPlatform::new(Gntdev::open(guest)?);
        Ok(Self { grants, foreign: Foreign::open(guest)?, bypassed: AtomicBool::new(false) })
    }
}

impl AccessPlatform for Permissive {
    type Pages = Pages;

    fn decode(&self, address: u64, length: u64) -> Result<Location, AddressFault> {
        match self.grants.decode(address, length) {
            Err(_) if self.bypassed.load(Ordering::Relaxed) => {
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
            // The caller maps the buffers of a batch with both kinds when it accesses each of them.
            _ => Err(refused(pages, access, io::Error::other("grants and frames together"))),
        }
    }

    fn offered(&self) -> u64 {
        1 << F_ACCESS_PLATFORM
    }

    fn accepts(&self, features: u64) -> bool {
        let bypassed = features & 1 << F_ACCESS_PLATFORM == 0;
        self.bypassed.store(bypassed, Ordering::Relaxed);
        true
    }
}

/// Mapped pages of either kind.
pub(crate) enum Pages {
    /// Mapped by grant references.
    Granted(GntdevPages),
    /// Mapped by frame numbers.
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
