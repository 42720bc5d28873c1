//! How far a message of the driver's was answered.

use std::sync::atomic::Ordering;

use vm_memory::{Bytes, VolatileSlice};

use super::header::MARK;

/// The message whose response is sent next. With the indices in the message page it says what
/// remains to be done: the response has left when the index behind it is in the page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MessageMark {
    /// Index of the message in the queue from the driver.
    pub message: u32,
    /// Index of its response in the queue to the driver.
    pub response: u32,
}

impl MessageMark {
    /// The mark before the first message: no message has this index soon.
    pub const NONE: Self = Self { message: u32::MAX, response: 0 };

    /// Reads the mark of a record.
    pub(super) fn read(record: VolatileSlice<'_>) -> Self {
        let both = record.load(MARK, Ordering::Acquire).map_or(0, u64::from_le);
        Self { message: (both >> 32) as u32, response: both as u32 }
    }

    /// Writes both numbers with one store: they are never those of different messages.
    pub(super) fn write(self, record: VolatileSlice<'_>) {
        let both = u64::from(self.message) << 32 | u64::from(self.response);
        // The header is a part of each record.
        let _ = record.store(both.to_le(), MARK, Ordering::Release);
    }
}
