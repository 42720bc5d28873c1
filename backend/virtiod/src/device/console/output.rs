//! What the guest prints, on its way to the terminal.

use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};

use super::pty::Pty;
use crate::device::Source;

/// How long a full terminal may take no byte before nobody is taken to read it.
const PATIENCE: Duration = Duration::from_secs(1);

/// Who takes the output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum OutputReader {
    /// There is capacity, as far as is known.
    Reading,
    /// There has been no capacity since then.
    Full(Instant),
    /// Nobody: what finds no capacity is dropped.
    Absent,
}

/// What became of output, for the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notice {
    /// From now on, what finds no capacity is dropped.
    NobodyReads,
    /// Somebody reads again; so many bytes were lost.
    Lost(u64),
}

/// Output that was taken from the guest and not yet by the terminal.
///
/// While somebody reads, however slowly, nothing is lost: the guest waits. It must not wait for
/// somebody who is not there, since Linux prints to a console with a spinning processor and
/// interrupts off.
#[derive(Debug)]
pub struct Output {
    pending: Vec<u8>,
    reader: OutputReader,
    timer: TimerFd,
    dropped: u64,
}

impl Output {
    /// No output yet.
    ///
    /// # Errors
    /// The kernel gives no timer.
    pub fn new() -> nix::Result<Self> {
        let flags = TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK;
        let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, flags)?;
        Ok(Self { pending: Vec::new(), reader: OutputReader::Reading, timer, dropped: 0 })
    }

    /// Whether all that was taken has left: only then more is to be taken.
    pub fn is_done(&self) -> bool {
        self.pending.is_empty()
    }

    /// Takes more.
    pub fn push(&mut self, bytes: &[u8]) {
        self.pending.extend_from_slice(bytes);
    }

    /// Gives the terminal what it takes.
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

    /// There is no capacity: waits, or drops.
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

    /// Becomes ready when patience ends.
    pub fn source(&self) -> Source<'_> {
        Source::readable(self.timer.as_fd())
    }
}
