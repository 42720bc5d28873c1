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

/// Most bytes that one request may print. Linux prints a page, and user space 64 KiB, at once.
pub(super) const MAX_REQUEST_BYTES: u64 = 64 << 10;

/// The console's terminal.
#[derive(Debug)]
pub struct Terminal {
    pty: Pty,
    input: Input,
    output: Output,
    stats: Arc<DeviceStats>,
}

impl Terminal {
    /// A pseudo-terminal of its own.
    ///
    /// # Errors
    /// [`ConsoleError`].
    pub fn open(stats: Arc<DeviceStats>) -> Result<Self, ConsoleError> {
        let pty = Pty::open().map_err(ConsoleError::Terminal)?;
        Ok(Self { pty, input: Input::default(), output: Output::new()?, stats })
    }

    /// What a terminal program opens.
    pub fn path(&self) -> &Path {
        self.pty.path()
    }

    /// What a terminal program said that its window is.
    ///
    /// # Errors
    /// [`Fault::Host`].
    pub fn size(&self) -> Result<Size, Fault> {
        self.pty.size().map_err(terminal_fault)
    }

    /// What was typed and what was printed stay: neither is the driver's any more.
    pub fn reset(&mut self) {
        self.input.refill();
    }

    /// The doorbell of the receive queue rang.
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

    /// Gives the driver what was typed: a buffer's worth.
    fn receive<M: DeviceMemory>(&mut self, queues: &mut QueueContext<'_, M>) -> Result<(), Fault> {
        if !self.input.is_wanted() {
            return Ok(());
        }
        self.input.take(|bytes| self.pty.read(bytes)).map_err(terminal_fault)?;
        self.input.give(RECEIVE, queues, &self.stats)
    }

    /// Prints: a request, if what was taken before has left. Others wait in the ring.
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
                format_args!("nobody reads {path}: what finds no capacity there is dropped"),
            ),
            Some(Notice::Lost(bytes)) => self.stats.log.line(
                Level::INFO,
                format_args!("{path} is read again; {bytes} byte(s) were dropped"),
            ),
            None => {}
        }
        Ok(())
    }

    /// What to wait for.
    pub fn sources(&self) -> impl Iterator<Item = Source<'_>> {
        let mut events = PollFlags::empty();
        events.set(PollFlags::POLLIN, self.input.is_wanted());
        events.set(PollFlags::POLLOUT, !self.output.is_done());
        // A descriptor is ready for a hang-up even if nothing is asked of it.
        let pty = (!events.is_empty()).then(|| self.pty.source(events));
        pty.into_iter().chain([self.output.source()])
    }

    /// Does what can be done now.
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

/// Copies what a request of a transmit queue prints, and counts it.
///
/// # Errors
/// [`Fault`]: not a buffer for this use, or too long.
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
        return Err(wrong(request, "more than 64 KiB to print at once"));
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
