//! Port 0: the console proper, on a pseudo-terminal.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use nix::poll::PollFlags;
use tracing::Level;

use super::input::{Input, wrong};
use super::output::{Notice, Output};
use super::pty::{Pty, Size};
use super::{ConsoleError, RECEIVE, TRANSMIT};
use crate::device::{DeviceMemory, Fault, QueueContext, Source, VirtioRequest};
use crate::stats::DeviceStats;

/// Maximum number of bytes of one request. Linux prints a page at once, and 16 pages that a program
/// splices: of 64 KiB where the guest has such pages.
pub(super) const MAX_REQUEST_BYTES: u64 = 1 << 20;

/// The console's terminal, with input and output on their way.
#[derive(Debug)]
pub struct Terminal {
    pty: Pty,
    input: Input,
    output: Output,
    stats: Arc<DeviceStats>,
}

impl Terminal {
    /// The console's end of a pseudo-terminal.
    ///
    /// # Errors
    /// [`ConsoleError`].
    pub fn new(pty: Pty, stats: Arc<DeviceStats>) -> Result<Self, ConsoleError> {
        Ok(Self { pty, input: Input::default(), output: Output::new()?, stats })
    }

    /// The path of the device that a terminal program opens.
    pub fn path(&self) -> &Path {
        self.pty.path()
    }

    /// The window size that a terminal program set.
    ///
    /// # Errors
    /// [`Fault::Host`].
    pub fn size(&self) -> Result<Size, Fault> {
        self.pty.size().map_err(terminal_fault)
    }

    /// Resets the queues' state. Input and output that were read already stay, since the driver
    /// does not own them any more.
    pub fn reset(&mut self) {
        self.input.refill();
    }

    /// Handles the doorbell of the receive queue: buffers may be available.
    ///
    /// # Errors
    /// [`Fault`].
    pub fn refill<M: DeviceMemory>(
        &mut self,
        queues: &mut QueueContext<'_, M>,
    ) -> Result<(), Fault> {
        self.input.refill();
        self.receive(queues)
    }

    /// Reads typed bytes and fills one buffer of the driver.
    fn receive<M: DeviceMemory>(&mut self, queues: &mut QueueContext<'_, M>) -> Result<(), Fault> {
        if !self.input.is_wanted() {
            return Ok(());
        }
        self.input.take(|bytes| self.pty.read(bytes)).map_err(terminal_fault)?;
        self.input.give(RECEIVE, queues, &self.stats)
    }

    /// Prints one request, once the previous one is printed. Others wait in the ring.
    ///
    /// # Errors
    /// [`Fault`].
    pub fn transmit<M: DeviceMemory>(
        &mut self,
        queues: &mut QueueContext<'_, M>,
    ) -> Result<(), Fault> {
        self.flush()?;
        if !self.output.is_done() {
            return Ok(());
        }
        let (output, stats) = (&mut self.output, &self.stats);
        queues.process_some(TRANSMIT, 1, |request, memory| {
            output.push(&take_output(request, memory, stats)?);
            Ok(0)
        })?;
        self.flush()
    }

    fn flush(&mut self) -> Result<(), Fault> {
        let notice = self.output.flush(&self.pty).map_err(terminal_fault)?;
        let path = self.pty.path().display();
        match notice {
            Some(Notice::NobodyReads) => self.stats.log.line(
                Level::INFO,
                format_args!("nobody reads {path}: output beyond its capacity is dropped"),
            ),
            Some(Notice::Lost(bytes)) => self.stats.log.line(
                Level::INFO,
                format_args!("{path} is read again; {bytes} byte(s) were dropped"),
            ),
            None => {}
        }
        Ok(())
    }

    /// The sources to poll: the terminal, and the timer of an unread terminal.
    pub fn sources(&self) -> impl Iterator<Item = Source<'_>> {
        let mut events = PollFlags::empty();
        events.set(PollFlags::POLLIN, self.input.is_wanted());
        events.set(PollFlags::POLLOUT, !self.output.is_done());
        // poll() reports a hang-up even if no event is requested.
        let pty = (!events.is_empty()).then(|| self.pty.source(events));
        pty.into_iter().chain([self.output.source()])
    }

    /// Handles the sources: transfers input and output.
    ///
    /// # Errors
    /// [`Fault`].
    pub fn handle_source<M: DeviceMemory>(
        &mut self,
        queues: &mut QueueContext<'_, M>,
    ) -> Result<(), Fault> {
        self.receive(queues)?;
        self.transmit(queues)
    }
}

/// Copies the bytes of a request of a transmit queue, and counts them.
///
/// # Errors
/// A [`Fault`], if the request has a device-writable buffer, is too long, or cannot be reached.
pub fn take_output<M: DeviceMemory>(
    request: &VirtioRequest,
    memory: &M,
    stats: &DeviceStats,
) -> Result<Vec<u8>, Fault> {
    if request.writable().length() > 0 {
        return Err(wrong(request, "a device-writable buffer in the transmit queue"));
    }
    let length = request.readable().length();
    if length > MAX_REQUEST_BYTES {
        return Err(wrong(request, "more than 1 MiB to print at once"));
    }
    let mut bytes = vec![0; length as usize];
    request.readable().copy_to(memory, &mut bytes)?;
    DeviceStats::count(&stats.writes);
    stats.bytes_written.fetch_add(length, Ordering::Relaxed);
    Ok(bytes)
}

fn terminal_fault(error: io::Error) -> Fault {
    Fault::Host("terminal", error)
}
