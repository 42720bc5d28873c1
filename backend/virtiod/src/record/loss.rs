//! Whether data that the device wrote may be lost. The kernel says so once, to the process that
//! asks.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};

use vm_memory::{Bytes, MmapRegion, VolatileMemory};

use super::RecordMemory;
use super::header::LOSS;

/// The mark of a loss in a record, as long as the record is open.
#[derive(Clone, Debug)]
pub struct LossMark(Weak<MmapRegion>);

impl LossMark {
    pub(super) fn new(memory: &RecordMemory) -> Self {
        Self(Arc::downgrade(&memory.0))
    }

    /// Whether the record is open.
    pub fn is_open(&self) -> bool {
        self.0.strong_count() > 0
    }

    /// Marks the loss, before the driver learns of it.
    pub fn set(&self) {
        if let Some(memory) = self.0.upgrade() {
            // The header is a part of each record.
            let _ = memory.as_volatile_slice().store(1u8, LOSS, Ordering::Release);
        }
    }

    /// Whether an earlier process marked a loss.
    pub fn is_set(&self) -> bool {
        let marked = |memory: Arc<MmapRegion>| {
            let mark = memory.as_volatile_slice().load::<u8>(LOSS, Ordering::Acquire);
            mark.is_ok_and(|mark| mark != 0)
        };
        self.0.upgrade().is_some_and(marked)
    }
}
