//! Waits for file descriptors with a time limit.

use std::thread;
use std::time::Duration;

use nix::poll::{PollFd, PollTimeout, poll};

/// Sleep time if the kernel has no memory for poll.
const WITHOUT_MEMORY: Duration = Duration::from_millis(50);

/// Waits until a descriptor is ready, for at most `limit` ([`Duration::MAX`]: for ever). May return
/// earlier without a ready descriptor: after a signal, or after a short sleep if the kernel has no
/// memory, so that a shortage does not fail a device.
///
/// # Errors
/// The errors of poll(2) except EINTR, EAGAIN and ENOMEM.
pub fn wait_for(fds: &mut [PollFd<'_>], limit: Duration) -> nix::Result<()> {
    match poll(fds, poll_timeout(limit)) {
        Ok(_) | Err(nix::Error::EINTR) => Ok(()),
        Err(nix::Error::EAGAIN | nix::Error::ENOMEM) => {
            thread::sleep(WITHOUT_MEMORY.min(limit));
            Ok(())
        }
        Err(errno) => Err(errno),
    }
}

/// Converts to whole milliseconds, rounded up, so that the wait does not end before the limit.
/// [`Duration::MAX`] is for ever.
fn poll_timeout(limit: Duration) -> PollTimeout {
    if limit == Duration::MAX {
        return PollTimeout::NONE;
    }
    let milliseconds = limit.as_micros().div_ceil(1000);
    i32::try_from(milliseconds)
        .ok()
        .and_then(|milliseconds| PollTimeout::try_from(milliseconds).ok())
        .unwrap_or(PollTimeout::MAX)
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
