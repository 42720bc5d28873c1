//! Descriptors to wait for: by poll, or by a ring beside its operations, which takes one system
//! call for all and to begin operations.
//!
//! A ring polls a descriptor once, and again from the next wait on. It keeps the file open
//! meanwhile.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::thread;
use std::time::Duration;

use io_uring::{opcode, squeue, types};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// Sleep time if the kernel has no memory for poll.
pub(crate) const WITHOUT_MEMORY: Duration = Duration::from_millis(50);
/// Marks the numbers of polls; other numbers are operations'.
pub(crate) const POLL_MARK: u64 = 1 << 63;
/// The number of requests to end a poll, whose results mean nothing.
const REMOVAL: u64 = POLL_MARK | 1 << 62;

/// A descriptor to wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AwaitedFd {
    fd: RawFd,
    events: PollFlags,
    /// Whether the wait found it ready, or in error.
    pub is_ready: bool,
}

impl AwaitedFd {
    /// Waits for these events of `fd`, if that is still open when the wait begins.
    pub fn new(fd: BorrowedFd<'_>, events: PollFlags) -> Self {
        Self { fd: fd.as_raw_fd(), events, is_ready: false }
    }

    /// Waits for data of `fd`.
    pub fn readable(fd: BorrowedFd<'_>) -> Self {
        Self::new(fd, PollFlags::POLLIN)
    }

    pub(crate) fn is(&self, fd: RawFd) -> bool {
        self.fd == fd
    }
}

/// Waits until a descriptor is ready, for at most `limit` ([`Duration::MAX`]: for ever). May return
/// earlier without a ready descriptor: after a signal, or after a short sleep if the kernel has no
/// memory, so that a shortage does not fail a device.
///
/// # Errors
/// The errors of poll(2) except EINTR, EAGAIN and ENOMEM.
pub fn wait_for(fds: &mut [PollFd<'_>], limit: Duration) -> io::Result<()> {
    match poll(fds, poll_timeout(limit)) {
        Ok(_) | Err(nix::Error::EINTR) => Ok(()),
        Err(nix::Error::EAGAIN | nix::Error::ENOMEM) => {
            thread::sleep(WITHOUT_MEMORY.min(limit));
            Ok(())
        }
        Err(errno) => Err(errno.into()),
    }
}

/// As [`wait_for`], for descriptors that are not borrowed.
///
/// # Errors
/// As there.
pub fn wait_by_poll(fds: &mut [AwaitedFd], limit: Duration) -> io::Result<()> {
    let polled = fds.iter().map(|awaited| {
        // SAFETY: the descriptor is used for the call of poll alone, which accepts any number. If
        // it was closed meanwhile, the wait reports an error or another file's state.
        PollFd::new(unsafe { BorrowedFd::borrow_raw(awaited.fd) }, awaited.events)
    });
    let mut polled: Vec<_> = polled.collect();
    // After an early return, these have no events.
    wait_for(&mut polled, limit)?;
    for (awaited, polled) in fds.iter_mut().zip(&polled) {
        awaited.is_ready = polled.any().unwrap_or(false);
    }
    Ok(())
}

/// Converts to whole milliseconds, rounded up, so that the wait does not end before the limit.
/// [`Duration::MAX`] is for ever.
fn poll_timeout(limit: Duration) -> PollTimeout {
    if limit == Duration::MAX {
        return PollTimeout::NONE;
    }
    let milliseconds = limit.as_micros().div_ceil(1000);
    let milliseconds = i32::try_from(milliseconds).ok();
    milliseconds.and_then(|count| PollTimeout::try_from(count).ok()).unwrap_or(PollTimeout::MAX)
}

/// A descriptor that a ring polls, or has polled.
#[derive(Debug)]
struct RingPoll {
    fd: RawFd,
    events: PollFlags,
    /// Its number, without the mark.
    number: u32,
    has_fired: bool,
}

impl RingPoll {
    /// Whether it is for this descriptor and these events.
    fn is_for(&self, awaited: &AwaitedFd) -> bool {
        (self.fd, self.events) == (awaited.fd, awaited.events)
    }
}

/// The descriptors that a ring polls.
#[derive(Debug, Default)]
pub(crate) struct RingPolls {
    list: Vec<RingPoll>,
    last: u32,
}

impl RingPolls {
    /// The submissions after which the ring polls these descriptors, but for its own, and no other.
    pub(crate) fn change_to(&mut self, fds: &[AwaitedFd], own: RawFd) -> Vec<squeue::Entry> {
        let is_wanted = |poll: &RingPoll| fds.iter().any(|awaited| poll.is_for(awaited));
        let unwanted = self.list.extract_if(.., |poll| !is_wanted(poll));
        let ends = unwanted.filter(|poll| !poll.has_fired).map(|poll| {
            opcode::PollRemove::new(POLL_MARK | u64::from(poll.number)).build().user_data(REMOVAL)
        });
        let mut entries: Vec<_> = ends.collect();
        for awaited in fds.iter().filter(|awaited| awaited.fd != own) {
            if self.list.iter().any(|poll| poll.is_for(awaited)) {
                continue;
            }
            let (fd, events) = (awaited.fd, awaited.events);
            self.last = self.last.wrapping_add(1);
            self.list.push(RingPoll { fd, events, number: self.last, has_fired: false });
            let flags = u32::from(events.bits().cast_unsigned());
            let entry = opcode::PollAdd::new(types::Fd(fd), flags).build();
            entries.push(entry.user_data(POLL_MARK | u64::from(self.last)));
        }
        entries
    }

    /// The polls of a ring that an earlier user has left, whose latest poll had this number.
    pub(crate) fn after(last: u32) -> Self {
        Self { list: Vec::new(), last }
    }

    /// The number of the latest poll.
    pub(crate) fn last(&self) -> u32 {
        self.last
    }

    /// Number of descriptors that the ring polls.
    pub(crate) fn len(&self) -> usize {
        self.list.len()
    }

    /// Takes the result with a number that has [`POLL_MARK`].
    pub(crate) fn take_result(&mut self, number: u64, result: i32) {
        let number = number & !POLL_MARK;
        let is_its = |poll: &RingPoll| u64::from(poll.number) == number;
        if result == -libc::ECANCELED {
            // Its thread has ended: another thread polls again.
            return self.list.retain(|poll| !is_its(poll));
        }
        let found = self.list.iter_mut().find(|poll| is_its(poll));
        found.into_iter().for_each(|poll| poll.has_fired = true);
    }

    /// Whether a descriptor is ready.
    pub(crate) fn has_fired(&self) -> bool {
        self.list.iter().any(|poll| poll.has_fired)
    }

    /// Notes which descriptors are ready. They are polled again from the next wait on.
    pub(crate) fn note(&mut self, fds: &mut [AwaitedFd]) {
        for awaited in &mut *fds {
            awaited.is_ready = self.list.iter().any(|poll| poll.has_fired && poll.is_for(awaited));
        }
        self.list.retain(|poll| !poll.has_fired);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeout_is_rounded_up_and_capped() {
        let milliseconds = |micros| poll_timeout(Duration::from_micros(micros)).as_millis();
        assert_eq!([0, 1, 1000, 1001].map(milliseconds), [Some(0), Some(1), Some(1), Some(2)]);
        assert_eq!(poll_timeout(Duration::from_secs(u64::MAX / 2)), PollTimeout::MAX);
        assert_eq!(poll_timeout(Duration::MAX), PollTimeout::NONE);
    }
}
