//! How a disk learns that its file or block device changed its size.

use std::any::Any;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::eventfd::EventFd;
use nix::time::{ClockId, clock_gettime};

use crate::device::Source;
use crate::stats::DeviceStats;

/// Shortest time between two readings of the size of a disk in use.
const INTERVAL: Duration = Duration::from_secs(2);

/// Watches the sizes of files and block devices.
pub trait SizeWatcher: Send + Sync {
    /// Watches a file, which had `bytes` bytes when it was opened, until the watch is dropped. The
    /// file's own writes are those that `stats` count.
    ///
    /// # Errors
    /// The kernel's error.
    fn watch(
        &self,
        file: BorrowedFd<'_>,
        bytes: u64,
        stats: &Arc<DeviceStats>,
    ) -> io::Result<SizeWatch>;
}

/// A watch on one disk's size.
pub struct SizeWatch {
    changed: Arc<EventFd>,
    /// Ends the watch when it is dropped.
    _end: Box<dyn Any + Send>,
}

impl SizeWatch {
    /// A watch that reports by `changed` and ends when `end` is dropped.
    pub fn new(changed: Arc<EventFd>, end: impl Any + Send) -> Self {
        Self { changed, _end: Box::new(end) }
    }

    /// A source that is ready when the size has changed.
    pub fn source(&self) -> Source<'_> {
        Source::readable(self.changed.as_fd())
    }

    /// Whether the size has changed since the last call. If not, another source of the device was
    /// ready.
    pub fn take(&self) -> bool {
        self.changed.read().is_ok()
    }
}

/// When the size of a disk in use is read in passing.
#[derive(Default)]
pub(super) struct SizeCheck {
    /// The kernel's tick at the last reading.
    last: Option<Duration>,
}

impl SizeCheck {
    /// Whether it is read now. The tick costs no system call.
    pub(super) fn is_due(&mut self) -> bool {
        clock_gettime(ClockId::CLOCK_MONOTONIC_COARSE).is_ok_and(|tick| self.is_due_at(tick.into()))
    }

    fn is_due_at(&mut self, tick: Duration) -> bool {
        let last = *self.last.get_or_insert(tick);
        let is_due = tick.saturating_sub(last) >= INTERVAL;
        if is_due {
            self.last = Some(tick);
        }
        is_due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn size_is_read_in_passing_once_an_interval() {
        let mut check = SizeCheck::default();
        let due =
            [0, 1, 2, 3, 4, 9, 10].map(|seconds| check.is_due_at(Duration::from_secs(seconds)));
        assert_eq!(due, [false, false, true, false, true, true, false]);
    }
}
