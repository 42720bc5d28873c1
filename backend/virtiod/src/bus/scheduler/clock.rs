//! The clocks that the scheduler reads.

use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_gettime};

/// Two clocks. Tests have one of their own.
pub trait Clock {
    /// The time. Reading it is a system call where a domain has no clock that a process can read,
    /// as in most domains of Xen, so it is read rarely.
    fn now(&self) -> Instant;

    /// The kernel's tick, which moves every 1 to 10 ms: never a system call. `None` without a
    /// clock.
    fn tick(&self) -> Option<Duration>;
}

/// The kernel's clocks.
#[derive(Clone, Copy, Debug, Default)]
pub struct KernelClock;

impl Clock for KernelClock {
    fn now(&self) -> Instant {
        Instant::now()
    }

    fn tick(&self) -> Option<Duration> {
        clock_gettime(ClockId::CLOCK_MONOTONIC_COARSE).ok().map(Duration::from)
    }
}

/// A moment, told by ticks.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct TickDeadline(Option<Duration>);

impl TickDeadline {
    /// The moment `time` from now, and up to a tick later.
    pub(super) fn within(time: Duration, clock: &impl Clock) -> Self {
        Self(clock.tick().map(|tick| tick + time))
    }

    /// Whether the moment has passed. Without a clock it has.
    pub(super) fn has_passed(self, clock: &impl Clock) -> bool {
        match (self.0, clock.tick()) {
            (Some(end), Some(tick)) => tick >= end,
            _ => true,
        }
    }
}

#[cfg(test)]
pub(in crate::bus) mod fake {
    use std::cell::Cell;

    use super::{Clock, Duration, Instant};

    /// A clock that a test sets.
    #[derive(Debug)]
    pub(in crate::bus) struct FakeClock {
        start: Instant,
        passed: Cell<Duration>,
        /// How often the time was read, which costs a system call.
        pub(in crate::bus) reads: Cell<u32>,
    }

    impl Default for FakeClock {
        fn default() -> Self {
            Self { start: Instant::now(), passed: Cell::default(), reads: Cell::default() }
        }
    }

    impl FakeClock {
        /// Lets time pass.
        pub(in crate::bus) fn pass(&self, time: Duration) {
            self.passed.set(self.passed.get() + time);
        }
    }

    impl Clock for FakeClock {
        fn now(&self) -> Instant {
            self.reads.set(self.reads.get() + 1);
            self.start + self.passed.get()
        }

        fn tick(&self) -> Option<Duration> {
            Some(self.passed.get())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_passes_when_its_time_is_over() {
        assert!(TickDeadline::within(Duration::ZERO, &KernelClock).has_passed(&KernelClock));
        let end = TickDeadline::within(Duration::from_secs(3600), &KernelClock);
        assert!(!end.has_passed(&KernelClock));
        assert!(TickDeadline(None).has_passed(&KernelClock));
    }
}
