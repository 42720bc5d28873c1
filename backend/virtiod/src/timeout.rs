//! Waiting for file descriptors.

use std::thread;
use std::time::Duration;

use nix::poll::{PollFd, PollTimeout, poll};

/// How long to wait where the kernel has no memory to wait with.
const WITHOUT_MEMORY: Duration = Duration::from_millis(50);

/// Waits until a descriptor is ready, at most `limit` ([`Duration::MAX`]: for ever). It may also
/// end without one: by a signal, or after a short sleep where the kernel has no memory, which costs
/// nobody a device.
///
/// # Errors
/// As of poll(2), but EINTR, EAGAIN and ENOMEM.
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

/// As `poll` counts it: whole milliseconds, rounded up, so that what is waited for is over when the
/// wait is. [`Duration::MAX`] is for ever.
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
    fn a_wait_is_rounded_up_and_as_long_as_it_can_be() {
        let milliseconds = |micros| poll_timeout(Duration::from_micros(micros)).as_millis();
        assert_eq!([0, 1, 1000, 1001].map(milliseconds), [Some(0), Some(1), Some(1), Some(2)]);
        assert_eq!(poll_timeout(Duration::from_secs(u64::MAX / 2)), PollTimeout::MAX);
        assert_eq!(poll_timeout(Duration::MAX), PollTimeout::NONE);
    }
}
