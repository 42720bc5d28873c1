//! The access platform of grants: a valid address is a granted page and an offset (SPEC section 3).

use protocol::binding::{F_SHARED_POOL, F_UNSHARE};
use protocol::grant::{GrantRange, GrantRef};
use protocol::pool::DecodedAddress;
use protocol::status::F_ACCESS_PLATFORM;

use crate::dma::{AccessPlatform, AddressFault, Location, PageNumber, PagePart, PageRange};
use xen::{Access, CopyDirection, CopyError, CopySegment, GrantTable, MapError};

/// Reaches the pages that one guest granted.
#[derive(Debug)]
pub struct GrantPlatform<G>(G);

impl<G: GrantTable> GrantPlatform<G> {
    /// Returns a platform over the handle to a guest's grants.
    pub fn new(handle: G) -> Self {
        Self(handle)
    }
}

impl<G: GrantTable> AccessPlatform for GrantPlatform<G> {
    type Pages = G::Pages;

    const BUS_FEATURES: u32 = F_SHARED_POOL | F_UNSHARE;

    fn decode(&self, address: u64, length: u64) -> Result<Location, AddressFault> {
        let GrantRange { start, length, pages } = match DecodedAddress::decode(address, length)? {
            DecodedAddress::Granted(range) => range,
            DecodedAddress::Pool(range) => return Ok(Location::Pool(range)),
        };
        let first = PageNumber(start.reference.0.into());
        Ok(Location::Pages(PageRange { address, first, pages, offset: start.offset(), length }))
    }

    fn map(&self, pages: &[PageNumber], access: Access) -> Result<G::Pages, MapError> {
        // The numbers come from `decode`, which returns 32-bit references only.
        let references: Vec<_> = pages.iter().map(|page| GrantRef(page.0 as u32)).collect();
        self.0.map(&references, access)
    }

    fn may_be_pinned(&self) -> bool {
        self.0.may_be_pinned()
    }

    fn copy(
        &self,
        direction: CopyDirection,
        parts: &mut dyn Iterator<Item = PagePart<'_>>,
    ) -> Option<Result<(), CopyError>> {
        let segments: Vec<_> = parts
            .map(|PagePart { page, offset, here }| CopySegment {
                reference: GrantRef(page.0 as u32),
                offset,
                here,
            })
            .collect();
        Some(if segments.is_empty() { Ok(()) } else { self.0.copy(direction, &segments) })
    }

    fn offered(&self) -> u64 {
        1 << F_ACCESS_PLATFORM
    }

    /// A driver that does not accept the access platform would not use grants [6.2].
    fn accepts(&self, features: u64) -> bool {
        features & 1 << F_ACCESS_PLATFORM != 0
    }
}
