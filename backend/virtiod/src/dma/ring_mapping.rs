//! Mapped rings of virtqueues, which stay mapped until the queue is reset.

use std::cell::Cell;

use vm_memory::VolatileSlice;

use super::DmaRange;
use super::mapping::Mapping;
use xen::mapped::MappedRange;

/// Identifies a mapped ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MappingId(u64);

/// One area of a ring: its bytes alone, though whole pages are mapped.
pub(super) struct RingArea<P> {
    pub(super) range: DmaRange,
    /// Offset of the first byte in the mapping.
    pub(super) offset: usize,
    pub(super) mapping: Mapping<P>,
}

impl<P: AsRef<MappedRange>> RingArea<P> {
    /// The bytes of `range`, if all are in the area, which permits that access.
    fn find(&self, range: DmaRange) -> Option<VolatileSlice<'_>> {
        let skipped = range.offset_in(self.range.address, self.range.length)?;
        if range.access > self.range.access {
            return None;
        }
        self.mapping.slice(self.offset + skipped, usize::try_from(range.length).ok()?)
    }
}

/// The mapped areas of one ring.
struct RingMapping<P> {
    id: MappingId,
    areas: Vec<RingArea<P>>,
}

impl<P: AsRef<MappedRange>> RingMapping<P> {
    fn find(&self, range: DmaRange) -> Option<VolatileSlice<'_>> {
        self.areas.iter().find_map(|area| area.find(range))
    }
}

/// All mapped rings.
pub(super) struct RingMappings<P> {
    all: Vec<RingMapping<P>>,
    /// Position of the most recently used ring, most likely the next one too.
    recent: Cell<usize>,
    next: u64,
}

impl<P> Default for RingMappings<P> {
    fn default() -> Self {
        Self { all: Vec::new(), recent: Cell::new(0), next: 0 }
    }
}

impl<P: AsRef<MappedRange>> RingMappings<P> {
    /// Adds the areas of a ring.
    pub(super) fn add(&mut self, areas: Vec<RingArea<P>>) -> MappingId {
        let id = MappingId(self.next);
        self.next += 1;
        self.all.push(RingMapping { id, areas });
        id
    }

    /// Unmaps a ring.
    pub(super) fn remove(&mut self, id: MappingId) {
        self.all.retain(|ring| ring.id != id);
    }

    /// Returns the bytes of `range` if one of the areas contains it.
    pub(super) fn find(&self, range: DmaRange) -> Option<VolatileSlice<'_>> {
        let recent = self.all.get(self.recent.get()).and_then(|ring| ring.find(range));
        recent.or_else(|| {
            self.all.iter().enumerate().find_map(|(at, ring)| {
                let slice = ring.find(range)?;
                self.recent.set(at);
                Some(slice)
            })
        })
    }
}
