//! Type (b), as backends with vm-memory's grant mappings implement it: the backend maps each buffer
//! by itself when it accesses it, and unmaps it before it returns the request.
//!
//! Such backends also map the rings for each entry that they read. This one does not, and so does
//! not pay for that.

use std::io;

use protocol::grant::GrantRange;
use protocol::status::F_ACCESS_PLATFORM;
use xen::{Access, DomId, MapError};
use xen_virtiod::dma::{AccessPlatform, AddressFault, Location, PageNumber, PageRange};

use crate::handles::Open;
use crate::region::{Mechanism, RegionPages, Regions};

/// The grants of one guest, without a pool.
pub(crate) struct MapPerAccess(Regions);

impl Open for MapPerAccess {
    fn open(guest: DomId) -> io::Result<Self> {
        Regions::open(guest, Mechanism::Grant).map(Self)
    }
}

impl AccessPlatform for MapPerAccess {
    type Pages = RegionPages;

    fn decode(&self, address: u64, length: u64) -> Result<Location, AddressFault> {
        let GrantRange { start, length, pages } = GrantRange::decode(address, length)?;
        let first = PageNumber(start.reference.0.into());
        Ok(Location::Pages(PageRange { address, first, pages, offset: start.offset(), length }))
    }

    /// Refuses a batch unless its references happen to be consecutive, because vm-memory cannot map
    /// others together. The caller then maps each buffer when it accesses it.
    fn map(&self, pages: &[PageNumber], access: Access) -> Result<RegionPages, MapError> {
        self.0.map(pages, access)
    }

    fn offered(&self) -> u64 {
        1 << F_ACCESS_PLATFORM
    }

    fn accepts(&self, features: u64) -> bool {
        features & 1 << F_ACCESS_PLATFORM != 0
    }
}
