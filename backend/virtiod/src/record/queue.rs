//! The record of a queue: the chains that the device has taken and not given back.
//!
//! | offset | bytes | |
//! |---|---|---|
//! | 0 | 2 | index of the used ring up to which the bytes below are right |
//! | 64 | 1 each | for each descriptor, whether a chain that begins there is taken |
//!
//! A chain is marked before the device does anything for it. When it is given back, the used ring's
//! index comes first, then its mark goes, then the index here follows. So whoever finds the two
//! indices different knows which chains were given back: those in the used ring between them.
//! All of this is written by the thread that processes the queue. It can be killed between two
//! instructions, and what it wrote before is there; Release keeps the compiler from another order.

use std::num::Wrapping;
use std::sync::atomic::Ordering;

use vm_memory::{Bytes, VolatileSlice};

use super::RecordMemory;

/// Offset of the marks.
const MARKS: usize = 64;

/// Length in bytes of the record of a queue with `size` descriptors.
pub(super) const fn length(size: u16) -> usize {
    MARKS + (size as usize).next_multiple_of(64)
}

/// The record of one queue.
#[derive(Clone, Debug)]
pub struct QueueRecord {
    memory: RecordMemory,
    start: usize,
    size: u16,
}

impl QueueRecord {
    pub(super) fn new(memory: RecordMemory, start: usize, size: u16) -> Self {
        Self { memory, start, size }
    }

    /// Number of descriptors that it has room for.
    pub fn size(&self) -> u16 {
        self.size
    }

    fn bytes(&self) -> VolatileSlice<'_> {
        let bytes = self.memory.bytes().subslice(self.start, length(self.size));
        // Each queue's part is within the record.
        bytes.unwrap_or_else(|_| self.memory.bytes())
    }

    /// Notes that the queue was enabled, with this index of its used ring: nothing of it is taken.
    pub fn begin(&mut self, used: Wrapping<u16>) {
        (0..self.size).for_each(|head| self.set_mark(head, 0));
        self.set_used(used);
    }

    /// Notes that the device takes the chain that begins at `head`.
    #[inline]
    pub fn take(&mut self, head: u16) {
        self.set_mark(head, 1);
    }

    /// Notes that the used ring's index has become `used`, by which these chains were given back.
    #[inline]
    pub fn give_back(&mut self, heads: impl Iterator<Item = u16>, used: Wrapping<u16>) {
        heads.for_each(|head| self.set_mark(head, 0));
        self.set_used(used);
    }

    /// The index of the used ring up to which the marks are right.
    pub fn used(&self) -> Wrapping<u16> {
        Wrapping(self.bytes().load(0, Ordering::Acquire).map_or(0, u16::from_le))
    }

    /// The chains that are marked.
    pub fn taken(&self) -> Vec<u16> {
        (0..self.size).filter(|head| self.mark(*head) != 0).collect()
    }

    fn mark(&self, head: u16) -> u8 {
        self.bytes().load(MARKS + usize::from(head), Ordering::Acquire).unwrap_or(0)
    }

    /// A head beyond the queue is a driver's mistake, which stops the device in any case.
    #[inline]
    fn set_mark(&mut self, head: u16, mark: u8) {
        if head < self.size {
            let _ = self.bytes().store(mark, MARKS + usize::from(head), Ordering::Release);
        }
    }

    #[inline]
    fn set_used(&mut self, used: Wrapping<u16>) {
        let _ = self.bytes().store(used.0.to_le(), 0, Ordering::Release);
    }
}
