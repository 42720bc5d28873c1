//! The guest's output to the terminal.

use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};

use super::pty::Pty;
use crate::device::Source;

/// Time without progress after which a full terminal counts as unread.
const PATIENCE: Duration = Duration::from_secs(1);

/// Whether somebody reads the output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum OutputReader {
    /// The terminal has capacity, as far as is known.
    Reading,
    /// The terminal has had no capacity since this instant.
    Full(Instant),
    /// Nobody reads: output for which there is no capacity is dropped.
    Absent,
}

/// An event for the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notice {
    /// Nobody reads the terminal; from now on output beyond its capacity is dropped.
    NobodyReads,
    /// Somebody reads again; this many bytes were dropped.
    Lost(u64),
}

/// Output that the device has taken from the guest and not yet written to the terminal.
///
/// While somebody reads, however slowly, no output is lost: the guest waits. It must not wait for a
/// reader that does not exist, since Linux prints to a console with a spinning processor and
/// interrupts off.
#[derive(Debug)]
pub struct Output {
    pending: Vec<u8>,
    reader: OutputReader,
    timer: TimerFd,
    dropped: u64,
}

impl Output {
    /// An empty output.
    ///
    /// # Errors
    /// The kernel's, if it creates no timer.
    pub fn new() -> nix::Result<Self> {
        let flags = TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK;
        let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, flags)?;
        Ok(Self { pending: Vec::new(), reader: OutputReader::Reading, timer, dropped: 0 })
    }

    /// Whether all output is written; the device takes more only then.
    pub fn is_done(&self) -> bool {
        self.pending.is_empty()
    }

    /// Adds output.
    pub fn push(&mut self, bytes: &[u8]) {
        self.pending.extend_from_slice(bytes);
    }

    /// Writes output to the terminal, as far as that has capacity.
    ///
    /// # Errors
    /// The terminal's, or the timer's.
    pub fn flush(&mut self, pty: &Pty) -> io::Result<Option<Notice>> {
        let mut notice = None;
        while !self.pending.is_empty() {
            let Some(count) = pty.write(&self.pending)? else {
                return Ok(self.wait()?.or(notice));
            };
            self.pending.drain(..count.min(self.pending.len()));
            if self.reader == OutputReader::Absent {
                notice = Some(Notice::Lost(std::mem::take(&mut self.dropped)));
            }
            self.reader = OutputReader::Reading;
            self.timer.unset()?;
        }
        Ok(notice)
    }

    /// Handles a terminal without capacity: waits for a reader, or drops the output.
    fn wait(&mut self) -> nix::Result<Option<Notice>> {
        match self.reader {
            OutputReader::Reading => {
                self.reader = OutputReader::Full(Instant::now());
                let patience = Expiration::OneShot(TimeSpec::from_duration(PATIENCE));
                self.timer.set(patience, TimerSetTimeFlags::empty())?;
                Ok(None)
            }
            OutputReader::Full(since) if since.elapsed() < PATIENCE => Ok(None),
            OutputReader::Full(_) => {
                self.reader = OutputReader::Absent;
                self.timer.unset()?;
                self.drop_pending();
                Ok(Some(Notice::NobodyReads))
            }
            OutputReader::Absent => {
                self.drop_pending();
                Ok(None)
            }
        }
    }

    fn drop_pending(&mut self) {
        self.dropped = self.dropped.saturating_add(self.pending.len() as u64);
        self.pending.clear();
    }

    /// A source that becomes ready when the terminal counts as unread.
    pub fn source(&self) -> Source<'_> {
        Source::readable(self.timer.as_fd())
    }
}
