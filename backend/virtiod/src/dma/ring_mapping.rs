//! Ranges that stay mapped until they are asked for no more: the rings of queues, which are looked at all the time.

use std::cell::Cell;

use vm_memory::VolatileSlice;

use super::DmaRange;
use super::mapping::Mapping;
use xen::mapped::MappedRange;

/// Names pinned ranges.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MappingId(u64);

/// A range, mapped.
pub(super) struct Region<P> {
    pub(super) reach: DmaRange,
    /// Offset of its first byte in the mapping.
    pub(super) offset: usize,
    pub(super) mapping: Mapping<P>,
}

impl<P: AsRef<MappedRange>> Region<P> {
    /// Where `wanted` lies in the area. Addresses that follow one another do so in the mapping too.
    fn find(&self, wanted: DmaRange) -> Option<VolatileSlice<'_>> {
        let skipped = wanted.address.checked_sub(self.reach.address)?;
        let room = self.reach.length.checked_sub(skipped)?;
        if wanted.length > room || wanted.access > self.reach.access {
            return None;
        }
        let offset = self.offset + usize::try_from(skipped).ok()?;
        self.mapping.slice(offset, usize::try_from(wanted.length).ok()?)
    }
}

/// What was pinned together, such as a ring's areas.
struct Together<P> {
    id: MappingId,
    areas: Vec<Region<P>>,
}

impl<P: AsRef<MappedRange>> Together<P> {
    fn find(&self, wanted: DmaRange) -> Option<VolatileSlice<'_>> {
        self.areas.iter().find_map(|area| area.find(wanted))
    }
}

/// All that is pinned.
pub(super) struct RingMappings<P> {
    all: Vec<Together<P>>,
    /// Position of what was used last: most likely the next too.
    recent: Cell<usize>,
    next: u64,
}

impl<P> Default for RingMappings<P> {
    fn default() -> Self {
        Self { all: Vec::new(), recent: Cell::new(0), next: 0 }
    }
}

impl<P: AsRef<MappedRange>> RingMappings<P> {
    /// Adds ranges under one name.
    pub(super) fn add(&mut self, areas: Vec<Region<P>>) -> MappingId {
        let id = MappingId(self.next);
        self.next += 1;
        self.all.push(Together { id, areas });
        id
    }

    /// Unmaps the ranges of that name.
    pub(super) fn remove(&mut self, id: MappingId) {
        self.all.retain(|together| together.id != id);
    }

    /// Where `wanted` lies in one of the ranges.
    pub(super) fn find(&self, wanted: DmaRange) -> Option<VolatileSlice<'_>> {
        let recent = self.all.get(self.recent.get()).and_then(|together| together.find(wanted));
        recent.or_else(|| {
            self.all.iter().enumerate().find_map(|(at, together)| {
                let slice = together.find(wanted)?;
                self.recent.set(at);
                Some(slice)
            })
        })
    }
}
