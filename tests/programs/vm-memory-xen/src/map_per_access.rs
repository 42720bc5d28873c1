//! Type (b), as backends are built that have grants from vm-memory: each buffer is mapped when it
//! is accessed, by itself, and unmapped before its request is given back.
//!
//! It is spared what such backends pay beside: to map the rings, too, for each entry that they look
//! at.

use std::io;

use protocol::grant::GrantRange;
use protocol::status::F_ACCESS_PLATFORM;
use xen::{Access, DomId, MapError};
use xen_virtiod::dma::{AccessPlatform, AddressFault, Location, PageNumber, PageRange};

use crate::handles::Open;
use crate::region::{Mechanism, RegionPages, Regions};

/// What one guest granted. There is no pool.
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

    /// Of a batch, vm-memory maps nothing, unless its references happen to follow one another: its
    /// buffers are mapped each for itself, when they are accessed.
    fn map(&self, pages: &[PageNumber], access: Access) -> Result<RegionPages, MapError> {
        self.0.map(pages, access)
    }

    fn offered(&self) -> u64 {
        1 << F_ACCESS_PLATFORM
    }

    fn accepts(&mut self, features: u64) -> bool {
        features & 1 << F_ACCESS_PLATFORM != 0
    }
}
