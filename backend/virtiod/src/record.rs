//! A device's record: a file in memory from which another process takes the device over.
//!
//! The process that serves a device may die at any instruction. Whatever the next one needs is in
//! the record, written in an order from which it can tell how far the dead one came:
//!
//! * [`DriverSetup`]: what the driver has set up by messages, in one of two [slots]: the other one
//!   is valid while one is written.
//! * [`MessageMark`]: how far the message of the driver was answered.
//! * [`LossMark`]: whether data that the device wrote may be lost.
//! * [`DeviceNote`]: a number of the device's own.
//! * [`QueueRecord`]: for each queue, the chains that were taken and not given back.
//!
//! Only the owner of the file may write it, so what it holds is checked for damage and not for
//! malice. A guest's driver has no part in it but the numbers that it set up, which are checked as
//! those in its messages are.

mod directory;
mod header;
mod loss;
mod mark;
mod note;
mod queue;
mod slots;
mod state;
#[cfg(test)]
mod tests;
mod version;

use std::fs::File;
use std::io;
use std::sync::Arc;

use vm_memory::mmap::MmapRegionError;
use vm_memory::{FileOffset, MmapRegion, VolatileMemory, VolatileMemoryError, VolatileSlice};

pub use self::directory::{RECORDS, RecordDirectory, Records};
use self::header::Header;
pub use self::loss::LossMark;
pub use self::mark::MessageMark;
pub use self::note::DeviceNote;
pub use self::queue::QueueRecord;
use self::slots::Slots;
pub use self::state::{Answered, ConnectionId, DriverSetup, OwedReset, PoolChunk, QueueSetup};
pub use self::version::RecordVersion;

/// A record that cannot be made, read or written.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The file cannot be opened, or memory for it is missing.
    #[error("cannot {0} the device's record")]
    File(&'static str, #[source] io::Error),
    /// The file cannot be mapped.
    #[error("cannot map the device's record")]
    Map(#[from] MmapRegionError),
    /// The file is not a record, or not a whole one.
    #[error("the device's record is damaged: {0}")]
    Damaged(&'static str),
    /// A newer program wrote it.
    #[error("the device's record has version {found}; this xen-virtiod knows {known} and older")]
    Version {
        /// The version in the file.
        found: u32,
        /// The newest version that this program knows.
        known: u32,
    },
    /// The state is larger than a slot.
    #[error("the device's state has {bytes} bytes, and a record holds {limit}")]
    TooLarge {
        /// The state's size.
        bytes: usize,
        /// The size of a slot.
        limit: usize,
    },
    /// A queue that the driver uses is not in the record.
    #[error("the device's record has no place for a queue that the driver uses")]
    NoQueue,
    /// The state is not what this version writes.
    #[error("the device's record cannot be understood")]
    Text(#[from] serde_json::Error),
}

impl From<VolatileMemoryError> for RecordError {
    /// An offset beyond the file: its header gives another size.
    fn from(_: VolatileMemoryError) -> Self {
        Self::Damaged("it is shorter than its header says")
    }
}

/// The bytes of a record, shared by all that write parts of it.
#[derive(Clone, Debug)]
struct RecordMemory(Arc<MmapRegion>);

impl RecordMemory {
    /// Maps `length` bytes of a file that has them.
    fn map(file: File, length: usize) -> Result<Self, RecordError> {
        Ok(Self(Arc::new(MmapRegion::from_file(FileOffset::new(file, 0), length)?)))
    }

    fn bytes(&self) -> VolatileSlice<'_> {
        self.0.as_volatile_slice()
    }
}

/// The record of one device.
#[derive(Debug)]
pub struct Record {
    memory: RecordMemory,
    header: Header,
    slots: Slots,
}

impl Record {
    /// Makes a record for a device with queues of these sizes in an empty file.
    ///
    /// # Errors
    /// [`RecordError::File`], [`RecordError::Map`].
    pub fn create(file: File, queue_sizes: &[u16]) -> Result<Self, RecordError> {
        Self::create_as(RecordVersion::Newest, file, queue_sizes)
    }

    /// As [`Record::create`], for a record of this version.
    ///
    /// # Errors
    /// As [`Record::create`].
    pub fn create_as(
        version: RecordVersion,
        file: File,
        queue_sizes: &[u16],
    ) -> Result<Self, RecordError> {
        let header = Header::new(version, queue_sizes);
        let length = header.record_length();
        // A page of a file in memory that is missing later would kill the process.
        let allocated =
            rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, length as u64);
        allocated.map_err(|error| RecordError::File("allocate", error.into()))?;
        let memory = RecordMemory::map(file, length)?;
        MessageMark::NONE.write(memory.bytes());
        header.write(memory.bytes())?;
        Ok(Self { memory, header, slots: Slots::default() })
    }

    /// Opens a record that [`Record::create`] made.
    ///
    /// # Errors
    /// [`RecordError`].
    pub fn open(file: File) -> Result<Self, RecordError> {
        Self::open_as(RecordVersion::Newest, file)
    }

    /// As [`Record::open`], in a program that knows this version and older ones.
    ///
    /// # Errors
    /// [`RecordError`].
    pub fn open_as(newest: RecordVersion, file: File) -> Result<Self, RecordError> {
        let metadata = file.metadata().map_err(|error| RecordError::File("read", error))?;
        let length = usize::try_from(metadata.len()).unwrap_or(usize::MAX);
        if length < header::LENGTH {
            return Err(RecordError::Damaged("it has no header"));
        }
        let memory = RecordMemory::map(file, length)?;
        let header = Header::read(memory.bytes(), newest)?;
        if header.record_length() != length {
            return Err(RecordError::Damaged("its size is not what its header says"));
        }
        let slots = Slots::find(memory.bytes())?;
        Ok(Self { memory, header, slots })
    }

    /// Saves what the driver has set up.
    ///
    /// # Errors
    /// [`RecordError::TooLarge`], [`RecordError::Text`]; then the record holds the state before.
    pub fn save(&mut self, setup: &DriverSetup) -> Result<(), RecordError> {
        self.slots.write(self.memory.bytes(), &self.header.version().text(setup)?)
    }

    /// What was saved last.
    ///
    /// # Errors
    /// [`RecordError::Damaged`], [`RecordError::Text`].
    pub fn setup(&self) -> Result<DriverSetup, RecordError> {
        Ok(self.read()?.0)
    }

    /// The program that saved it, if the record's version says so.
    ///
    /// # Errors
    /// As [`Record::setup`].
    pub fn program(&self) -> Result<Option<String>, RecordError> {
        Ok(self.read()?.1)
    }

    fn read(&self) -> Result<(DriverSetup, Option<String>), RecordError> {
        self.header.version().parse(&self.slots.read(self.memory.bytes())?)
    }

    /// The mark of the message that is being answered.
    pub fn mark(&self) -> MessageMark {
        MessageMark::read(self.memory.bytes())
    }

    /// Marks a message before its response is sent.
    pub fn set_mark(&mut self, mark: MessageMark) {
        mark.write(self.memory.bytes());
    }

    /// The mark of lost data.
    pub fn loss_mark(&self) -> LossMark {
        LossMark::new(&self.memory)
    }

    /// The device's note.
    pub fn note(&self) -> DeviceNote {
        DeviceNote::new(&self.memory)
    }

    /// The same record once more.
    pub fn share(&self) -> Self {
        Self { memory: self.memory.clone(), header: self.header.clone(), slots: self.slots }
    }

    /// The record of a queue; `None` if the device has no such queue.
    pub fn queue(&self, index: usize) -> Option<QueueRecord> {
        let (start, size) = self.header.queue(index)?;
        Some(QueueRecord::new(self.memory.clone(), start, size))
    }

    /// The maximum sizes of the device's queues.
    pub fn queue_sizes(&self) -> &[u16] {
        self.header.queue_sizes()
    }
}
