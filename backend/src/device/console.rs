//! The console device (virtio 1.3 section 5.3), with one port: a pseudo-terminal.

mod output;
mod pty;

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use nix::poll::PollFlags;
use tracing::Level;

use self::output::{Notice, Output};
use self::pty::Pty;
use super::{DeviceId, DeviceMemory, Fault, Queues, Request, Source, VirtioDevice};
use crate::stats::DeviceStats;

/// The queue for what is typed (section 5.3.2).
const RECEIVE: usize = 0;
/// The queue for what is printed.
const TRANSMIT: usize = 1;
/// Entries in each.
const QUEUE_SIZE: u16 = 64;
/// Bytes of the configuration space (section 5.3.4); none of its fields counts without a feature.
const CONFIG_SIZE: usize = 12;
/// Most bytes that one request may print. Linux prints a page, and user space 64 KiB, at once.
const MAX_REQUEST_BYTES: u64 = 64 << 10;
/// Most bytes of what was typed that wait here for a buffer; the others wait in the terminal.
const INPUT_SIZE: usize = 4096;

/// Why a console cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum ConsoleError {
    /// The terminal.
    #[error("cannot make a pseudo-terminal: {0}")]
    Terminal(#[source] io::Error),
    /// The timer.
    #[error("cannot make a timer: {0}")]
    Timer(#[from] nix::Error),
}

/// A console.
pub struct Console {
    pty: Pty,
    /// What was typed and waits for a buffer.
    input: Vec<u8>,
    /// The driver gave no buffer for it; its doorbell tells of the next.
    starved: bool,
    output: Output,
    stats: Arc<DeviceStats>,
}

impl Console {
    /// A console on a pseudo-terminal of its own.
    ///
    /// # Errors
    /// [`ConsoleError`].
    pub fn open(stats: Arc<DeviceStats>) -> Result<Self, ConsoleError> {
        let pty = Pty::open().map_err(ConsoleError::Terminal)?;
        Ok(Self { pty, input: Vec::new(), starved: false, output: Output::new()?, stats })
    }

    /// What a terminal program opens.
    pub fn path(&self) -> &Path {
        self.pty.path()
    }

    /// Takes what was typed, unless something taken before still waits.
    fn take_input(&mut self) -> Result<(), Fault> {
        if !self.input.is_empty() {
            return Ok(());
        }
        let mut bytes = [0; INPUT_SIZE];
        let count = self.pty.read(&mut bytes).map_err(terminal_fault)?.unwrap_or(0);
        self.input.extend_from_slice(bytes.get(..count).unwrap_or(&[]));
        Ok(())
    }

    /// Gives the driver what was typed: a buffer's worth.
    fn receive<M: DeviceMemory>(&mut self, queues: &mut Queues<'_, M>) -> Result<(), Fault> {
        self.take_input()?;
        if self.input.is_empty() {
            return Ok(());
        }
        let (requests, fault) = queues.take(RECEIVE, 1);
        let Some(request) = requests.first() else {
            self.starved = true;
            return fault.map_or_else(|| queues.rest(RECEIVE), Err);
        };
        if request.readable.length() > 0 {
            return Err(wrong(request, "a device-readable buffer in the receive queue"));
        }
        let count = request.writable.copy_from(queues.memory(), &self.input)?;
        self.input.drain(..self.input.len().min(count as usize));
        DeviceStats::count(&self.stats.reads);
        self.stats.bytes_read.fetch_add(count.into(), Ordering::Relaxed);
        queues.give_back(RECEIVE, &[(request.head, count)])?;
        queues.again(RECEIVE);
        Ok(())
    }

    /// Prints: a request, if what was taken before has left. Others wait in the ring.
    fn transmit<M: DeviceMemory>(&mut self, queues: &mut Queues<'_, M>) -> Result<(), Fault> {
        self.flush()?;
        if !self.output.is_done() {
            return Ok(());
        }
        let (output, stats) = (&mut self.output, &self.stats);
        queues.serve_some(TRANSMIT, 1, |request, memory| {
            let bytes = take_output(request, memory, output)?;
            DeviceStats::count(&stats.writes);
            stats.bytes_written.fetch_add(bytes, Ordering::Relaxed);
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
                format_args!("nobody reads {path}: what finds no room there is dropped"),
            ),
            Some(Notice::Lost(bytes)) => self.stats.log.line(
                Level::INFO,
                format_args!("{path} is read again; {bytes} byte(s) were dropped"),
            ),
            None => {}
        }
        Ok(())
    }
}

/// Copies what a request prints.
fn take_output<M: DeviceMemory>(
    request: &Request,
    memory: &M,
    output: &mut Output,
) -> Result<u64, Fault> {
    if request.writable.length() > 0 {
        return Err(wrong(request, "a device-writable buffer in the transmit queue"));
    }
    let length = request.readable.length();
    if length > MAX_REQUEST_BYTES {
        return Err(wrong(request, "more than 64 KiB to print at once"));
    }
    let mut bytes = vec![0; length as usize];
    request.readable.copy_to(memory, &mut bytes)?;
    output.push(&bytes);
    Ok(length)
}

fn wrong(request: &Request, reason: &str) -> Fault {
    Fault::Chain { head: request.head, reason: reason.to_owned() }
}

fn terminal_fault(error: io::Error) -> Fault {
    Fault::Host("terminal", error)
}

impl<M: DeviceMemory> VirtioDevice<M> for Console {
    fn id(&self) -> DeviceId {
        DeviceId::Console
    }

    fn kind(&self) -> &'static str {
        "console"
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE; 2]
    }

    fn config(&self) -> &[u8] {
        &[0; CONFIG_SIZE]
    }

    /// What was typed and what was printed stay: neither is the driver's any more.
    fn reset(&mut self) {
        self.starved = false;
    }

    fn serve(&mut self, index: usize, queues: &mut Queues<'_, M>) -> Result<(), Fault> {
        if index == RECEIVE {
            self.starved = false;
            return self.receive(queues);
        }
        self.transmit(queues)
    }

    fn sources(&self) -> Vec<Source<'_>> {
        let mut events = PollFlags::empty();
        events.set(PollFlags::POLLIN, !self.starved);
        events.set(PollFlags::POLLOUT, !self.output.is_done());
        // A descriptor is ready for a hang-up even if nothing is asked of it.
        let pty = (!events.is_empty()).then(|| self.pty.source(events));
        pty.into_iter().chain([self.output.source()]).collect()
    }

    fn wake(&mut self, queues: &mut Queues<'_, M>) -> Result<(), Fault> {
        if !self.starved {
            self.receive(queues)?;
        }
        self.transmit(queues)
    }
}
