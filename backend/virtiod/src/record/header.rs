//! The header of a record: what it is, and where its parts are. Numbers are little-endian.
//!
//! | offset | bytes | |
//! |---|---|---|
//! | 0 | 8 | [`MAGIC`] |
//! | 8 | 4 | [`RecordVersion`] |
//! | 12 | 4 | number of queues |
//! | 16 | 8 | [`super::MessageMark`] |
//! | 24 | 1 | [`super::LossMark`] |
//! | 28 | 4 | [`super::DeviceNote`] |
//! | 64 | 2 each | maximum sizes of the queues |
//! | 4096 | | two [`super::slots`] |
//! | behind them | | the queues, each a [`super::queue`] |

use std::sync::atomic::Ordering;

use vm_memory::{Bytes, VolatileSlice};

use super::{RecordError, RecordVersion, queue, slots};

/// Length of the header in bytes.
pub(super) const LENGTH: usize = 4096;
/// Offset of the message mark.
pub(super) const MARK: usize = 16;

/// Offset of the mark of lost data.
pub(super) const LOSS: usize = 24;
/// Offset of the device's note.
pub(super) const NOTE: usize = 28;

const MAGIC: u64 = u64::from_le_bytes(*b"xvrecord");
const SIZES: usize = 64;
/// Maximum number of queues of a device.
const MOST_QUEUES: usize = 64;

/// Where the parts of a record are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Header {
    version: RecordVersion,
    queue_sizes: Vec<u16>,
}

impl Header {
    pub(super) fn new(version: RecordVersion, queue_sizes: &[u16]) -> Self {
        debug_assert!(queue_sizes.len() <= MOST_QUEUES);
        Self { version, queue_sizes: queue_sizes.to_vec() }
    }

    pub(super) fn version(&self) -> RecordVersion {
        self.version
    }

    pub(super) fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    /// Length of the whole record in bytes.
    pub(super) fn record_length(&self) -> usize {
        self.end_of(self.queue_sizes.len())
    }

    /// Offset and maximum size of a queue.
    pub(super) fn queue(&self, index: usize) -> Option<(usize, u16)> {
        Some((self.end_of(index), *self.queue_sizes.get(index)?))
    }

    /// Offset of the end of the first `count` queues.
    fn end_of(&self, count: usize) -> usize {
        let queues = self.queue_sizes.iter().take(count).map(|size| queue::length(*size));
        LENGTH + slots::LENGTH + queues.sum::<usize>()
    }

    /// Writes the header into an empty record: the magic number last, which makes it valid.
    pub(super) fn write(&self, record: VolatileSlice<'_>) -> Result<(), RecordError> {
        let store = |value: u32, at| record.store(value.to_le(), at, Ordering::Release);
        store(self.version as u32, 8)?;
        store(self.queue_sizes.len() as u32, 12)?;
        for (index, size) in self.queue_sizes.iter().enumerate() {
            record.store(size.to_le(), SIZES + 2 * index, Ordering::Release)?;
        }
        Ok(record.store(MAGIC.to_le(), 0, Ordering::Release)?)
    }

    pub(super) fn read(
        record: VolatileSlice<'_>,
        newest: RecordVersion,
    ) -> Result<Self, RecordError> {
        if u64::from_le(record.load(0, Ordering::Acquire)?) != MAGIC {
            return Err(RecordError::Damaged("it does not begin as a record does"));
        }
        let found = u32::from_le(record.load(8, Ordering::Acquire)?);
        let version = RecordVersion::read(found, newest)?;
        let count = u32::from_le(record.load(12, Ordering::Acquire)?) as usize;
        if count > MOST_QUEUES {
            return Err(RecordError::Damaged("it has too many queues"));
        }
        let size = |index| Ok(u16::from_le(record.load(SIZES + 2 * index, Ordering::Acquire)?));
        let queue_sizes = (0..count).map(size).collect::<Result<_, RecordError>>()?;
        Ok(Self { version, queue_sizes })
    }
}
