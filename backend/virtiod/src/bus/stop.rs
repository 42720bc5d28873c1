//! The end of sessions at the request of the daemon.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::eventfd::{EfdFlags, EventFd};
use serde::{Deserialize, Serialize};

/// How a session ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ending {
    /// Its device ends for good: the frontend sees the backend close.
    End,
    /// The frontend sees nothing, and waits for a process that takes its device over. A device that
    /// no process can take over ends.
    Leave,
}

/// Tells sessions to end. The descriptor is readable from then on.
#[derive(Debug)]
pub struct StopSignal {
    event: EventFd,
    ends: AtomicBool,
}

impl StopSignal {
    /// A signal that nobody has given.
    ///
    /// # Errors
    /// The kernel has no descriptor.
    pub fn new() -> io::Result<Self> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let event = EventFd::from_value_and_flags(0, flags)?;
        Ok(Self { event, ends: AtomicBool::new(false) })
    }

    /// Gives the signal. After an [`Ending::End`] no other counts.
    ///
    /// # Errors
    /// The kernel's.
    pub fn give(&self, ending: Ending) -> io::Result<()> {
        if ending == Ending::End {
            // Release pairs with the Acquire of `ending`.
            self.ends.store(true, Ordering::Release);
        }
        self.event.write(1)?;
        Ok(())
    }

    /// How to end, once the descriptor is readable.
    pub fn ending(&self) -> Ending {
        match self.ends.load(Ordering::Acquire) {
            true => Ending::End,
            false => Ending::Leave,
        }
    }
}

impl AsFd for StopSignal {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use uring::waiting::wait_by_poll;

    use super::*;
    use crate::device::AwaitedFd;

    #[test]
    fn signal_stays_and_an_end_outweighs() {
        let stop = StopSignal::new().unwrap();
        let mut fds = [AwaitedFd::readable(stop.as_fd())];
        wait_by_poll(&mut fds, Duration::ZERO).unwrap();
        assert!(!fds[0].is_ready);
        for (given, expected) in [
            (Ending::Leave, Ending::Leave),
            (Ending::End, Ending::End),
            (Ending::Leave, Ending::End),
        ] {
            stop.give(given).unwrap();
            assert_eq!(stop.ending(), expected);
            wait_by_poll(&mut fds, Duration::ZERO).unwrap();
            assert!(fds[0].is_ready);
        }
    }
}
