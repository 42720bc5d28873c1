//! The end of an iteration, however slow its steps are.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// A moment, told by a clock that costs no system call, also where a domain has none that a process
/// can read: the kernel's tick, which moves every 1 to 10 ms.
#[derive(Clone, Copy, Debug)]
pub(super) struct Deadline(Option<Duration>);

impl Deadline {
    /// So long from now, and up to a tick longer.
    pub(super) fn within(time: Duration) -> Self {
        Self(now().map(|now| now + time))
    }

    /// Whether it has come. Without a clock it has.
    pub(super) fn has_come(self) -> bool {
        match (self.0, now()) {
            (Some(end), Some(now)) => now >= end,
            _ => true,
        }
    }
}

fn now() -> Option<Duration> {
    clock_gettime(ClockId::CLOCK_MONOTONIC_COARSE).ok().map(Duration::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_comes_when_its_time_is_over() {
        assert!(Deadline::within(Duration::ZERO).has_come());
        let end = Deadline::within(Duration::from_secs(3600));
        assert!(!end.has_come());
        assert!(Deadline(None).has_come());
    }
}
