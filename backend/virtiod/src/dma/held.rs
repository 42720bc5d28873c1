//! Buffers that stay reachable while an operation uses them, whatever becomes of the device's
//! memory meanwhile: the pool's pages, copies and mappings of some requests.

use std::sync::Arc;

use vm_memory::VolatileSlice;

use super::copy_buffer::CopyBuffer;
use super::mapper::Mapper;
use super::mapping::Mapping;
use super::pool::{Chunk, PoolPages};
use super::{AccessFault, AccessPlatform, AddressFault, DmaRange, Location};

/// The buffers of some requests.
pub(super) struct HeldMemory<P: AccessPlatform> {
    pub(super) mapper: Mapper<P>,
    pub(super) pool: Arc<PoolPages<P::Pages>>,
    pub(super) copies: Vec<CopyBuffer>,
    pub(super) mappings: Vec<Mapping<P::Pages>>,
}

impl<P: AccessPlatform> HeldMemory<P> {
    fn find(&self, range: DmaRange) -> Option<VolatileSlice<'_>> {
        if let Some(slice) = self.pool.find(range.address, range.length) {
            return Some(slice);
        }
        let copied = self.copies.iter().find_map(|copy| copy.find(range));
        copied.or_else(|| self.mappings.iter().find_map(|mapping| mapping.find(range)))
    }

    /// The bytes of a range that was made reachable.
    pub(super) fn resolve(&self, range: DmaRange) -> Result<VolatileSlice<'_>, AccessFault> {
        if let Some(slice) = self.find(range) {
            return Ok(slice);
        }
        let DmaRange { address, length, .. } = range;
        let fault = match self.mapper.decode(range)? {
            Location::Pool(pooled) => AddressFault::NotShared(pooled),
            Location::Pages(_) => AddressFault::Outside { address, length },
        };
        self.mapper.count_refusal();
        Err(AccessFault::Address(fault))
    }

    /// The chunk of the pool that has the first byte of a range.
    pub(super) fn region(&self, range: DmaRange) -> Option<Arc<Chunk<P::Pages>>> {
        self.pool.chunk(range.address).cloned()
    }

    /// Copies ranges that are copies back to the guest.
    pub(super) fn write_back(
        &self,
        ranges: impl Iterator<Item = DmaRange>,
    ) -> Result<(), AccessFault> {
        if self.copies.is_empty() {
            return Ok(());
        }
        let copied = |range| self.copies.iter().find_map(|copy| copy.bytes_of(range));
        let written: Vec<_> = ranges.filter_map(copied).collect();
        self.mapper.write_back(&written)
    }
}
