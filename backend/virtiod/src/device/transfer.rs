//! Buffers that a file's bytes go to or come from with one system call.

use std::io;
use std::os::fd::BorrowedFd;

use uring::file_engine::{self, Direction};
pub use uring::file_engine::{Completed, MessageResults};
use uring::iovec::IoVec;
pub use uring::iovec::WriteMode;
use vm_memory::VolatileSlice;

use super::{Readable, Writable};

/// Room for transfers that are done together, batch after batch.
#[derive(Default)]
pub struct IoEngine(file_engine::FileEngine);

impl IoEngine {
    /// Whether messages can be exchanged, as far as is known: where not, to add them to a batch is
    /// in vain.
    pub fn can_batch_messages(&self) -> bool {
        self.0.can_batch_messages()
    }

    /// An empty batch.
    pub fn batch<'m>(&mut self) -> TransferBatch<'_, 'm> {
        TransferBatch(self.0.batch())
    }
}

/// Transfers between one file and the guest's buffers that are done together.
pub struct TransferBatch<'t, 'm>(file_engine::Batch<'t, 'm>);

impl<'m> TransferBatch<'_, 'm> {
    /// Adds one from the file's bytes from `offset` on. `number`, below 64, names it.
    pub fn fill(&mut self, number: usize, offset: u64, into: &Scatter<'m>) {
        self.0.add(number, Direction::Read, offset, &into.0);
    }

    /// Adds one to the file's bytes from `offset` on.
    pub fn store(&mut self, number: usize, offset: u64, from: &Gather<'m>) {
        self.0.add(number, Direction::Write, offset, &from.0);
    }

    /// Does them, as far as it can and is worth it; the rest is to be done one by one.
    pub fn run(self, file: BorrowedFd<'_>, mode: WriteMode) -> Completed {
        self.0.run(file, mode)
    }

    /// Adds the taking of a message into bytes of this side's. `number`, below [`BATCH`], names it.
    ///
    /// [`BATCH`]: super::BATCH
    pub fn take(&mut self, number: usize, into: &'m mut [u8]) {
        self.0.add(number, Direction::Read, 0, &alone(into));
    }

    /// Adds the sending of a message, named likewise.
    pub fn send(&mut self, number: usize, message: &Gather<'m>) {
        self.0.add(number, Direction::Write, 0, &message.0);
    }

    /// As [`TransferBatch::run`], with a file of messages.
    pub fn run_messages(self, file: BorrowedFd<'_>) -> MessageResults {
        self.0.run_messages(file)
    }
}

/// Bytes of this side's, as the only piece.
fn alone(bytes: &mut [u8]) -> IoVec<'_> {
    let mut pieces = IoVec::default();
    // There is room in what is empty.
    pieces.push(&VolatileSlice::from(bytes));
    pieces
}

/// Buffers to be filled.
#[derive(Default)]
pub struct Scatter<'a>(IoVec<'a>);

impl<'a> Scatter<'a> {
    /// Bytes of this side's as a buffer.
    pub fn of(bytes: &'a mut [u8]) -> Self {
        Self(alone(bytes))
    }

    /// Adds a buffer behind the others, or gives it back if there is no room for more.
    ///
    /// # Errors
    /// The buffer.
    pub fn push(&mut self, buffer: Writable<'a>) -> Result<(), Writable<'a>> {
        if self.0.push(&buffer.0) { Ok(()) } else { Err(buffer) }
    }

    /// Bytes in all.
    pub fn length(&self) -> usize {
        self.0.length()
    }

    /// Fills them with a file's bytes from `offset` on.
    ///
    /// # Errors
    /// The file's; it may end early, which is [`io::ErrorKind::UnexpectedEof`].
    pub fn fill(&self, file: BorrowedFd<'_>, offset: u64) -> io::Result<()> {
        self.0.fill(file, offset)
    }

    /// Copies bytes in, as many as there are or fit.
    pub fn copy_from(&self, bytes: &[u8]) {
        let mut rest = bytes;
        for slice in self.0.slices() {
            let (now, later) = rest.split_at(rest.len().min(slice.len()));
            slice.copy_from(now);
            rest = later;
        }
    }
}

/// Buffers to be stored.
#[derive(Default)]
pub struct Gather<'a>(IoVec<'a>);

impl<'a> Gather<'a> {
    /// Bytes of this side's as a buffer.
    pub fn of(bytes: &'a mut [u8]) -> Self {
        Self(alone(bytes))
    }

    /// Adds a buffer behind the others, or gives it back if there is no room for more.
    ///
    /// # Errors
    /// The buffer.
    pub fn push(&mut self, buffer: Readable<'a>) -> Result<(), Readable<'a>> {
        if self.0.push(&buffer.0) { Ok(()) } else { Err(buffer) }
    }

    /// Bytes in all.
    pub fn length(&self) -> usize {
        self.0.length()
    }

    /// Writes them to a file from `offset` on.
    ///
    /// # Errors
    /// The file's.
    pub fn store(&self, file: BorrowedFd<'_>, offset: u64, mode: WriteMode) -> io::Result<()> {
        self.0.store(file, offset, mode)
    }

    /// Writes them as one message.
    ///
    /// # Errors
    /// What takes them does not take them whole.
    pub fn send(&self, file: BorrowedFd<'_>) -> io::Result<()> {
        self.0.send(file)
    }

    /// Copies the bytes out, as many as there are or fit.
    pub fn copy_to(&self, bytes: &mut [u8]) {
        let mut rest = bytes;
        for slice in self.0.slices() {
            let (now, later) = rest.split_at_mut(rest.len().min(slice.len()));
            slice.copy_to(now);
            rest = later;
        }
    }
}
