//! Notices when the terminal's window changes.
//!
//! The kernel tells a terminal's foreground processes of that, never who has its other side. So it
//! is looked at: whenever something was typed, and once a second.

use std::os::fd::AsFd;
use std::time::Duration;

use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};

use super::pty::Size;
use crate::device::Source;

/// How long a change may go unnoticed.
const PERIOD: Duration = Duration::from_secs(1);

/// The size that the driver was told, and when to look at it again.
#[derive(Debug)]
pub struct SizeWatch {
    known: Size,
    timer: TimerFd,
}

impl SizeWatch {
    /// A terminal of unknown size.
    ///
    /// # Errors
    /// The kernel gives no timer.
    pub fn new() -> nix::Result<Self> {
        let flags = TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK;
        let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, flags)?;
        let watch = Self { known: Size::default(), timer };
        watch.wait()?;
        Ok(watch)
    }

    fn wait(&self) -> nix::Result<()> {
        let period = Expiration::OneShot(TimeSpec::from_duration(PERIOD));
        self.timer.set(period, TimerSetTimeFlags::empty())
    }

    /// What the driver was told last.
    pub fn known(&self) -> Size {
        self.known
    }

    /// Takes the present size; the new size if it changed. The source will be ready when it is to
    /// be looked at next.
    ///
    /// # Errors
    /// The timer's.
    pub fn update(&mut self, size: Size) -> nix::Result<Option<Size>> {
        self.wait()?;
        let changed = size != self.known;
        self.known = size;
        Ok(changed.then_some(size))
    }

    /// Becomes ready when it is time to look.
    pub fn source(&self) -> Source<'_> {
        Source::readable(self.timer.as_fd())
    }
}
