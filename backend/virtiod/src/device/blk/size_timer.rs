//! When to look at a disk's size: the kernel reports the growth of a file like any write, and that
//! of a block device not at all.

use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use nix::sys::timer::{Expiration, TimerSetTimeFlags};
use nix::sys::timerfd::{ClockId, TimerFd, TimerFlags};

use crate::device::Source;

/// The interval between two looks.
const INTERVAL: Duration = Duration::from_secs(2);

/// A timer that is ready when it is time to look.
pub(super) struct SizeTimer(TimerFd);

impl SizeTimer {
    /// # Errors
    /// The kernel's.
    pub(super) fn new() -> io::Result<Self> {
        let flags = TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC;
        let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, flags)?;
        timer.set(Expiration::Interval(INTERVAL.into()), TimerSetTimeFlags::empty())?;
        Ok(Self(timer))
    }

    pub(super) fn source(&self) -> Source<'_> {
        Source::readable(self.0.as_fd())
    }

    /// Whether it is time to look. If not, another source of the device was ready.
    pub(super) fn take(&mut self) -> bool {
        self.0.wait().is_ok()
    }
}
