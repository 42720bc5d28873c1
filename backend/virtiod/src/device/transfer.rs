//! Buffers for reads and writes of a file with one system call, and batches of messages.

use std::io;
use std::os::fd::BorrowedFd;

use uring::iovec::IoVec;
pub use uring::iovec::WriteMode;
pub use uring::message_engine::MessageResults;
use uring::message_engine::{self, Direction};
use vm_memory::VolatileSlice;

use super::{Readable, Writable};

/// The engine that runs batches of messages, and reuses its memory from batch to batch.
#[derive(Default)]
pub struct IoEngine(message_engine::MessageEngine);

impl IoEngine {
    /// Whether the kernel supports batches of messages, as far as is known. If not, a batch of
    /// messages does nothing.
    pub fn can_batch_messages(&self) -> bool {
        self.0.can_batch_messages()
    }

    /// An empty batch.
    pub fn batch<'m>(&mut self) -> MessageBatch<'_, 'm> {
        MessageBatch(self.0.batch())
    }
}

/// Messages between one file and the guest's buffers that run together.
pub struct MessageBatch<'t, 'm>(message_engine::Batch<'t, 'm>);

impl<'m> MessageBatch<'_, 'm> {
    /// Adds the receipt of a message into host memory. `number`, below [`BATCH`], identifies it.
    ///
    /// [`BATCH`]: super::BATCH
    pub fn take(&mut self, number: usize, into: &'m mut [u8]) {
        self.0.add(number, Direction::Read, &alone(into));
    }

    /// Adds the sending of a message; `number` as for [`MessageBatch::take`].
    pub fn send(&mut self, number: usize, message: &Gather<'m>) {
        self.0.add(number, Direction::Write, &message.0);
    }

    /// Runs the messages, as far as the engine can and it is worthwhile; the caller does the others
    /// one by one. The file's reads and writes are whole messages.
    pub fn run_messages(self, file: BorrowedFd<'_>) -> MessageResults {
        self.0.run_messages(file)
    }
}

/// An I/O vector with host memory as its only piece.
fn alone(bytes: &mut [u8]) -> IoVec<'_> {
    let mut pieces = IoVec::default();
    // An empty vector has capacity for one piece.
    pieces.push(&VolatileSlice::from(bytes));
    pieces
}

/// Buffers that a read fills.
#[derive(Default)]
pub struct Scatter<'a>(IoVec<'a>);

impl<'a> Scatter<'a> {
    /// Host memory as the only buffer.
    pub fn of(bytes: &'a mut [u8]) -> Self {
        Self(alone(bytes))
    }

    /// Adds a buffer at the end, or returns it if the vector is full.
    ///
    /// # Errors
    /// The buffer.
    pub fn push(&mut self, buffer: Writable<'a>) -> Result<(), Writable<'a>> {
        if self.0.push(&buffer.0) { Ok(()) } else { Err(buffer) }
    }

    /// Number of bytes of all buffers together.
    pub fn length(&self) -> usize {
        self.0.length()
    }

    /// Fills the buffers with a file's bytes from `offset` on.
    ///
    /// # Errors
    /// The file's; [`io::ErrorKind::UnexpectedEof`] if the file ends before the buffers are full.
    pub fn read(&self, file: BorrowedFd<'_>, offset: u64) -> io::Result<()> {
        self.0.read_from(file, offset)
    }

    /// As [`Scatter::read`], if the page cache has all of the bytes. Otherwise returns `false`.
    ///
    /// # Errors
    /// The file's; [`io::ErrorKind::Unsupported`] if the file system cannot tell.
    pub fn read_cached(&self, file: BorrowedFd<'_>, offset: u64) -> io::Result<bool> {
        self.0.read_cached(file, offset)
    }

    /// Copies `bytes` into the buffers: all of them, or as many as fit.
    pub fn copy_from(&self, bytes: &[u8]) {
        let mut rest = bytes;
        for slice in self.0.slices() {
            let (now, later) = rest.split_at(rest.len().min(slice.len()));
            slice.copy_from(now);
            rest = later;
        }
    }
}

/// Buffers whose bytes a write stores.
#[derive(Default)]
pub struct Gather<'a>(IoVec<'a>);

impl<'a> Gather<'a> {
    /// Host memory as the only buffer.
    pub fn of(bytes: &'a mut [u8]) -> Self {
        Self(alone(bytes))
    }

    /// Adds a buffer at the end, or returns it if the vector is full.
    ///
    /// # Errors
    /// The buffer.
    pub fn push(&mut self, buffer: Readable<'a>) -> Result<(), Readable<'a>> {
        if self.0.push(&buffer.0) { Ok(()) } else { Err(buffer) }
    }

    /// Number of bytes of all buffers together.
    pub fn length(&self) -> usize {
        self.0.length()
    }

    /// Writes the buffers to a file from `offset` on.
    ///
    /// # Errors
    /// The file's.
    pub fn write(&self, file: BorrowedFd<'_>, offset: u64, mode: WriteMode) -> io::Result<()> {
        self.0.write_to(file, offset, mode)
    }

    /// Sends the buffers as one message.
    ///
    /// # Errors
    /// The file did not accept the whole message.
    pub fn send(&self, file: BorrowedFd<'_>) -> io::Result<()> {
        self.0.send(file)
    }

    /// Copies the buffers into `bytes`: all of them, or as many as fit.
    pub fn copy_to(&self, bytes: &mut [u8]) {
        let mut rest = bytes;
        for slice in self.0.slices() {
            let (now, later) = rest.split_at_mut(rest.len().min(slice.len()));
            slice.copy_to(now);
            rest = later;
        }
    }
}
