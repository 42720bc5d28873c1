//! Detects changes of the terminal's window size.
//!
//! The kernel signals a change to the foreground processes of a terminal, never to the owner of its
//! other end. So the device checks the size whenever its sources are handled, and at least once a
//! second.

use std::os::fd::AsFd;
use std::time::Duration;

use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};

use super::pty::Size;
use crate::device::Source;

/// Maximum time until a change is detected.
const PERIOD: Duration = Duration::from_secs(1);

/// The size that the driver knows, and the timer of the next check.
#[derive(Debug)]
pub struct SizeWatch {
    known: Size,
    timer: TimerFd,
}

impl SizeWatch {
    /// A watch over a terminal of unknown size.
    ///
    /// # Errors
    /// The kernel's, if it creates no timer.
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

    /// The size as of the latest update.
    pub fn known(&self) -> Size {
        self.known
    }

    /// Sets the current size, and returns it if it changed. The source becomes ready when the next
    /// check is due.
    ///
    /// # Errors
    /// The kernel's, if the timer cannot be set.
    pub fn update(&mut self, size: Size) -> nix::Result<Option<Size>> {
        self.wait()?;
        let changed = size != self.known;
        self.known = size;
        Ok(changed.then_some(size))
    }

    /// A source that becomes ready when a check is due.
    pub fn source(&self) -> Source<'_> {
        Source::readable(self.timer.as_fd())
    }
}
