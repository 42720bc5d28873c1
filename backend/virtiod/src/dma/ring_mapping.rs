//! The mapped areas of a virtqueue's ring.

use vm_memory::VolatileSlice;

use super::mapping::Mapping;
use xen::mapped::MappedRange;

/// One area of a ring: its bytes alone, though whole pages are mapped.
pub(super) struct RingArea<P> {
    /// Offset of the first byte in the mapping.
    pub(super) offset: usize,
    /// Length in bytes.
    pub(super) length: usize,
    pub(super) mapping: Mapping<P>,
}

/// The areas of a ring: descriptors, driver area, device area. Dropping this unmaps them.
pub struct RingMapping<P>(pub(super) [RingArea<P>; 3]);

impl<P: AsRef<MappedRange>> RingArea<P> {
    fn bytes(&self) -> Option<VolatileSlice<'_>> {
        self.mapping.slice(self.offset, self.length)
    }
}

impl<P: AsRef<MappedRange>> RingMapping<P> {
    /// The areas' bytes. `None` if an area is not inside its mapping, which would be a mistake of
    /// this program.
    pub fn areas(&self) -> Option<[VolatileSlice<'_>; 3]> {
        let [descriptors, driver, device] = &self.0;
        Some([descriptors.bytes()?, driver.bytes()?, device.bytes()?])
    }
}
