//! How long `poll` waits.

use std::time::Duration;

use nix::poll::PollTimeout;

/// As `poll` counts it: whole milliseconds, rounded up, so that what is waited for is over when the
/// wait is. [`Duration::MAX`] is for ever.
pub fn poll_timeout(limit: Duration) -> PollTimeout {
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
