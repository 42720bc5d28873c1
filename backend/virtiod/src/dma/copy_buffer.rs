//! Buffers that the hypervisor copies, as an alternative to mapping their pages.
//!
//! For buffers outside the pool a copy is cheaper. A page costs 18 to 19 µs among 32 that are
//! copied together and 105 to 108 µs alone; to map and unmap it costs 28 to 32 µs, or 580 to 630 µs
//! alone (tests/bench/report.md, "pages read in Dom0"). A page that stays mapped costs 1.2 to 1.5
//! µs, which is the reason for the pool.

use std::sync::atomic::{AtomicBool, Ordering};

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
    /// Only the copy back reads it, in the same thread or after a hand-over: relaxed.
    accessed: AtomicBool,
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
            CopyDirection::ToGuest => {
                self.access == Access::ReadWrite && self.accessed.load(Ordering::Relaxed)
            }
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
            CopiedBuffer { range, access, at, accessed: AtomicBool::new(false) }
        });
        let mut buffers: Vec<_> = buffers.collect();
        buffers.sort_unstable_by_key(|buffer| (buffer.key(), buffer.range.length));
        let copies = Self { staging: Staging::new(length), buffers };
        let copied = copies.copy(platform, CopyDirection::FromGuest)?;
        copied.is_ok().then_some(copies)
    }

    /// The last buffer for that access that begins at or before the range.
    fn buffer_of(&self, range: DmaRange) -> Option<&CopiedBuffer> {
        let before = |buffer: &CopiedBuffer| buffer.key() <= (range.access, range.address);
        let position = self.buffers.partition_point(before).checked_sub(1)?;
        self.buffers.get(position).filter(|buffer| buffer.access == range.access)
    }

    /// Returns the bytes of `range` if a buffer for that access contains all of them. If buffers
    /// overlap, the search checks only the last one that begins at or before the range; the caller
    /// maps a range that it does not find.
    pub(super) fn find(&self, range: DmaRange) -> Option<VolatileSlice<'_>> {
        let buffer = self.buffer_of(range)?;
        let skipped = range.offset_in(buffer.range.address, buffer.range.length)?;
        buffer.accessed.store(true, Ordering::Relaxed);
        self.staging.as_ref().slice(buffer.at + skipped, range.length as usize)
    }

    /// The bytes of `range`, which is a part of a buffer that the device may write.
    pub(super) fn bytes_of(&self, range: DmaRange) -> Option<CopiedBytes<'_>> {
        let here = self.find(range).filter(|_| range.access == Access::ReadWrite)?;
        let buffer = self.buffer_of(range)?;
        Some(CopiedBytes { range: buffer.range.part(range)?, here })
    }

    /// Iterates over the buffers that the device may have written, with their bytes.
    pub(super) fn written(&self) -> impl Iterator<Item = CopiedBytes<'_>> {
        let written = self.buffers.iter().filter(|buffer| buffer.goes(CopyDirection::ToGuest));
        written.filter_map(|buffer| {
            let length = buffer.range.length as usize;
            let here = self.staging.as_ref().slice(buffer.at, length)?;
            Some(CopiedBytes { range: buffer.range, here })
        })
    }

    fn copy<P: AccessPlatform>(
        &self,
        platform: &P,
        direction: CopyDirection,
    ) -> Option<Result<(), CopyError>> {
        let buffers = self.buffers.iter().filter(|buffer| buffer.goes(direction));
        let mut parts = buffers.filter_map(|buffer| {
            let here = self.staging.as_ref().slice(buffer.at, buffer.range.length as usize)?;
            Some(CopiedBytes { range: buffer.range, here })
        });
        platform.copy(direction, &mut parts.by_ref().flat_map(|copied| copied.parts()))
    }
}

/// A guest's bytes, and their copy here.
#[derive(Clone, Copy)]
pub(super) struct CopiedBytes<'a> {
    pub(super) range: PageRange,
    pub(super) here: VolatileSlice<'a>,
}

impl<'a> CopiedBytes<'a> {
    /// Splits the bytes at page boundaries.
    fn parts(self) -> impl Iterator<Item = PagePart<'a>> {
        let (mut at, mut left, mut offset) = (0, self.range.length, self.range.offset);
        self.range.numbers().filter_map(move |page| {
            let length = left.min(PAGE_SIZE - offset);
            let here = self.here.subslice(at, length as usize).ok()?;
            let part = PagePart { page, offset: offset as u16, here };
            (at, left, offset) = (at + length as usize, left - length, 0);
            Some(part)
        })
    }
}

/// Copies bytes to the guest with one call.
pub(super) fn write_back<P: AccessPlatform>(
    platform: &P,
    written: &[CopiedBytes<'_>],
) -> Option<Result<(), CopyError>> {
    platform.copy(CopyDirection::ToGuest, &mut written.iter().flat_map(|copied| copied.parts()))
}
