//! Buffers that the hypervisor copies, as an alternative to mapping their pages.
//!
//! For buffers outside the pool a copy is cheaper. A page costs 18 to 19 µs among 32 that are
//! copied together and 105 to 108 µs alone; to map and unmap it costs 28 to 32 µs, or 580 to 630 µs
//! alone (tests/bench/report.md, "pages read in Dom0"). A page that stays mapped costs 1.2 to 1.5
//! µs, which is the reason for the pool.

use std::cell::Cell;

use protocol::grant::PAGE_SIZE;
use vm_memory::VolatileSlice;
use xen::staging::Staging;

use super::{AccessPlatform, DmaRange, PagePart, PageRange};
use xen::{Access, CopyDirection, CopyError};

/// Maximum number of pages that are copied together, since the copies take memory here. Larger
/// batches are mapped.
pub(super) const MOST_PAGES: u64 = 512;

/// One buffer, and its offset in the staging memory.
struct CopiedBuffer {
    range: PageRange,
    access: Access,
    at: usize,
    /// Whether the device accessed the buffer. A buffer that it did not access is not copied back.
    accessed: Cell<bool>,
}

impl CopiedBuffer {
    /// The sort and search key.
    fn key(&self) -> (Access, u64) {
        (self.access, self.range.address)
    }

    /// Whether the hypervisor copies the buffer in this direction.
    fn goes(&self, direction: CopyDirection) -> bool {
        match direction {
            CopyDirection::FromGuest => self.access == Access::ReadOnly,
            CopyDirection::ToGuest => self.access == Access::ReadWrite && self.accessed.get(),
        }
    }
}

/// Buffers of the current requests, sorted by key and then by length.
pub(super) struct CopyBuffer {
    staging: Staging,
    buffers: Vec<CopiedBuffer>,
}

impl CopyBuffer {
    /// Allocates memory for the buffers and copies those that the device reads into it. `None` if
    /// the platform cannot copy or refuses these buffers; the caller then maps them, which names
    /// the fault.
    pub(super) fn new<P: AccessPlatform>(
        platform: &P,
        read: &[PageRange],
        write: &[PageRange],
    ) -> Option<Self> {
        let read = read.iter().map(|range| (*range, Access::ReadOnly));
        let write = write.iter().map(|range| (*range, Access::ReadWrite));
        let mut length = 0;
        let buffers = read.chain(write).map(|(range, access)| {
            let at = length;
            length += range.length as usize;
            CopiedBuffer { range, access, at, accessed: Cell::new(false) }
        });
        let mut buffers: Vec<_> = buffers.collect();
        buffers.sort_unstable_by_key(|buffer| (buffer.key(), buffer.range.length));
        let copies = Self { staging: Staging::new(length), buffers };
        let copied = copies.copy(platform, CopyDirection::FromGuest)?;
        copied.is_ok().then_some(copies)
    }

    /// Returns the bytes of `range` if a buffer for that access contains all of them. If buffers
    /// overlap, the search checks only the last one that begins at or before the range; the caller
    /// maps a range that it does not find.
    pub(super) fn find(&self, range: DmaRange) -> Option<VolatileSlice<'_>> {
        let before = |buffer: &CopiedBuffer| buffer.key() <= (range.access, range.address);
        let position = self.buffers.partition_point(before).checked_sub(1)?;
        let buffer = self.buffers.get(position).filter(|buffer| buffer.access == range.access)?;
        let skipped = range.offset_in(buffer.range.address, buffer.range.length)?;
        buffer.accessed.set(true);
        self.staging.as_ref().slice(buffer.at + skipped, range.length as usize)
    }

    /// Copies the buffers that the device may have written back to the guest.
    pub(super) fn write_back<P: AccessPlatform>(
        &self,
        platform: &P,
    ) -> Option<Result<(), CopyError>> {
        self.copy(platform, CopyDirection::ToGuest)
    }

    /// Iterates over the buffers that the device may have written, with their bytes.
    pub(super) fn written(&self) -> impl Iterator<Item = (PageRange, VolatileSlice<'_>)> {
        let written = self.buffers.iter().filter(|buffer| buffer.goes(CopyDirection::ToGuest));
        written.filter_map(|buffer| {
            let length = buffer.range.length as usize;
            Some((buffer.range, self.staging.as_ref().slice(buffer.at, length)?))
        })
    }

    fn copy<P: AccessPlatform>(
        &self,
        platform: &P,
        direction: CopyDirection,
    ) -> Option<Result<(), CopyError>> {
        let buffers = self.buffers.iter().filter(|buffer| buffer.goes(direction));
        let mut parts = buffers.flat_map(|buffer| self.parts(buffer));
        platform.copy(direction, &mut parts)
    }

    /// Splits a buffer at page boundaries.
    fn parts(&self, buffer: &CopiedBuffer) -> impl Iterator<Item = PagePart<'_>> {
        let (mut at, mut left, mut offset) = (buffer.at, buffer.range.length, buffer.range.offset);
        buffer.range.numbers().filter_map(move |page| {
            let length = left.min(PAGE_SIZE - offset);
            let here = self.staging.as_ref().slice(at, length as usize)?;
            let part = PagePart { page, offset: offset as u16, here };
            (at, left, offset) = (at + length as usize, left - length, 0);
            Some(part)
        })
    }
}
