//! How a disk learns that its file or block device changed its size.

use std::any::Any;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use nix::sys::eventfd::{EfdFlags, EventFd};
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

/// Hears that a disk's size may have changed.
pub trait SizeListener: Send + Sync {
    /// Tells it.
    ///
    /// # Errors
    /// The kernel's.
    fn notify(&self) -> io::Result<()>;
}

impl SizeListener for SizeSignal {
    fn notify(&self) -> io::Result<()> {
        self.set()
    }
}

/// Tells a disk that its size has changed.
#[derive(Debug)]
pub struct SizeSignal {
    ready: EventFd,
    /// At least the count in `ready`, so that a look takes no system call while it is 0. Relaxed:
    /// who was woken by `ready` sees what preceded the write to it.
    told: AtomicU64,
}

impl SizeSignal {
    /// # Errors
    /// No descriptor is left.
    pub fn new() -> io::Result<Self> {
        let flags = EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC;
        Ok(Self { ready: EventFd::from_flags(flags)?, told: AtomicU64::new(0) })
    }

    /// Tells the disk.
    ///
    /// # Errors
    /// The kernel's error.
    pub fn set(&self) -> io::Result<()> {
        self.set_by(|ready| ready.write(1))
    }

    /// As [`SizeSignal::set`], where `write` adds one.
    fn set_by(&self, write: impl FnOnce(&EventFd) -> nix::Result<usize>) -> io::Result<()> {
        // Counted first: a thread that the write wakes must not find 0, and poll again.
        self.told.fetch_add(1, Ordering::Relaxed);
        write(&self.ready).inspect_err(|_| self.took(1))?;
        Ok(())
    }

    fn take(&self) -> bool {
        if self.told.load(Ordering::Relaxed) == 0 {
            return false;
        }
        // Nothing is there yet if the other thread is about to write.
        let taken = self.ready.read().unwrap_or(0);
        self.took(taken);
        taken > 0
    }

    fn took(&self, count: u64) {
        self.told.fetch_sub(count, Ordering::Relaxed);
    }
}

/// A watch on one disk's size.
pub struct SizeWatch {
    changed: Arc<SizeSignal>,
    /// Ends the watch when it is dropped.
    _end: Box<dyn Any + Send>,
}

impl SizeWatch {
    /// A watch that reports by `changed` and ends when `end` is dropped.
    pub fn new(changed: Arc<SizeSignal>, end: impl Any + Send) -> Self {
        Self { changed, _end: Box::new(end) }
    }

    /// A source that is ready when the size has changed.
    pub fn source(&self) -> Source<'_> {
        Source::readable(self.changed.ready.as_fd())
    }

    /// Whether the size has changed since the last call. If not, another source of the device was
    /// ready.
    pub fn take(&self) -> bool {
        self.changed.take()
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
    use nix::poll::{PollFd, PollTimeout, poll};

    use super::*;

    fn is_readable(watch: &SizeWatch) -> bool {
        let source = watch.source();
        let mut fds = [PollFd::new(source.fd, source.events)];
        poll(&mut fds, PollTimeout::ZERO).unwrap() == 1
    }

    #[test]
    fn change_is_taken_once_and_then_nothing_is_readable() {
        let signal = Arc::new(SizeSignal::new().unwrap());
        let watch = SizeWatch::new(Arc::clone(&signal), ());
        for changes in [0, 1, 2, 1] {
            (0..changes).for_each(|_| signal.set().unwrap());
            assert_eq!((is_readable(&watch), watch.take()), (changes > 0, changes > 0));
            assert_eq!((is_readable(&watch), watch.take()), (false, false));
        }
    }

    #[test]
    fn change_is_taken_by_the_thread_that_it_wakes_before_the_other_goes_on() {
        let signal = Arc::new(SizeSignal::new().unwrap());
        let watch = SizeWatch::new(Arc::clone(&signal), ());
        let told = signal.set_by(|ready| {
            assert!(!watch.take(), "nothing is there yet");
            let written = ready.write(1);
            assert_eq!((is_readable(&watch), watch.take()), (true, true));
            written
        });
        told.unwrap();
        assert_eq!((is_readable(&watch), watch.take()), (false, false));
        // After an error, nothing is there, and a look takes no system call again.
        assert!(signal.set_by(|_| Err(nix::errno::Errno::EIO)).is_err());
        assert_eq!(signal.told.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn size_is_read_in_passing_once_an_interval() {
        let mut check = SizeCheck::default();
        let due =
            [0, 1, 2, 3, 4, 9, 10].map(|seconds| check.is_due_at(Duration::from_secs(seconds)));
        assert_eq!(due, [false, false, true, false, true, true, false]);
    }
}
