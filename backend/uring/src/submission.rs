//! Hands submissions to the kernel, and waits in a ring for completions and descriptors at once.

use std::io;
use std::os::fd::AsRawFd;
use std::time::Duration;

use io_uring::{IoUring, squeue, types};

use crate::waiting::{AwaitedFd, RingPolls, WITHOUT_MEMORY};

/// Begins what the kernel has not taken yet, and waits until one of `fds` is ready or something has
/// completed, for at most `limit`; not at all if something `is_ready`. The ring's own descriptor
/// is not polled. `None` if the queue has no room for the polls.
pub(crate) fn wait_in_ring(
    ring: &mut IoUring,
    polls: &mut RingPolls,
    fds: &[AwaitedFd],
    is_ready: bool,
    limit: Duration,
) -> Option<io::Result<()>> {
    if !has_room(ring, fds.len() + polls.len()) {
        return None;
    }
    let own = ring.as_raw_fd();
    push_polls(ring, &polls.change_to(fds, own));
    let count = usize::from(!is_ready && !polls.has_fired());
    Some(submit_and_wait(ring, count, limit))
}

/// Has the ring poll no descriptor any more, if the queue has room for that.
pub(crate) fn stop_polls(ring: &mut IoUring, polls: &mut RingPolls) {
    let own = ring.as_raw_fd();
    if has_room(ring, polls.len()) {
        push_polls(ring, &polls.change_to(&[], own));
        submit(ring);
    }
}

/// Whether the submission queue has room for so many entries, perhaps after others are submitted.
pub(crate) fn has_room(ring: &mut IoUring, count: usize) -> bool {
    let room = |ring: &mut IoUring| {
        let queue = ring.submission();
        queue.capacity().saturating_sub(queue.len()) >= count
    };
    room(ring) || submit(ring) && room(ring)
}

/// Adds submissions about polls, for which the queue has room.
fn push_polls(ring: &mut IoUring, entries: &[squeue::Entry]) {
    for entry in entries {
        // SAFETY: the entry refers to no memory.
        let pushed = unsafe { ring.submission().push(entry) };
        debug_assert!(pushed.is_ok());
    }
}

/// Submits the queue's entries and waits for so many completions, at most for `limit`.
pub(crate) fn submit_and_wait(ring: &IoUring, count: usize, limit: Duration) -> io::Result<()> {
    let waited = if limit == Duration::MAX {
        ring.submit_and_wait(count)
    } else {
        let limit = types::Timespec::from(limit);
        ring.submitter().submit_with_args(count, &types::SubmitArgs::new().timespec(&limit))
    };
    match waited {
        Ok(_) => Ok(()),
        Err(error) => match error.raw_os_error() {
            // The time is over, a signal, or completions have to be fetched first.
            Some(libc::ETIME | libc::EINTR | libc::EBUSY) => Ok(()),
            Some(libc::EAGAIN | libc::ENOMEM) => {
                std::thread::sleep(WITHOUT_MEMORY.min(limit));
                Ok(())
            }
            _ => Err(error),
        },
    }
}

/// Submits the queue's entries; returns whether the kernel took all. What it does not take stays
/// in the queue for the next call.
pub(crate) fn submit(ring: &mut IoUring) -> bool {
    while !ring.submission().is_empty() {
        match ring.submit() {
            Ok(0) => return false,
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // Completions have to be taken first, or memory is short.
            Err(_) => return false,
        }
    }
    true
}
