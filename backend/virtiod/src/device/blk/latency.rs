//! The times that requests take: of those that are answered at once, from the moment at which the
//! device takes their batch from its ring; of others, from the moment at which the device hands
//! them to storage or to the worker.
//!
//! In most domains of Xen, to read an exact clock is a system call. So the device measures one
//! batch of 17, and of those that wait for storage also the first one after each tick of the
//! kernel's. The requests of other batches count with the latest measured time of their operation,
//! unless the ticks themselves say that storage took long.

use std::num::NonZeroU64;
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

use crate::stats::{Latencies, Operation, Tick};

/// Number of batches between two that are measured.
const UNMEASURED: u32 = 16;
/// Nanoseconds that ticks measure: twice the longest interval between them.
const LONG: u64 = 20_000_000;

/// The number of operations.
const OPERATIONS: usize = Operation::ALL.len();

/// A moment in nanoseconds since the machine started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Moment(NonZeroU64);

impl Moment {
    /// The present moment. Without a clock, all times are 0.
    pub(super) fn now() -> Self {
        let time = clock_gettime(ClockId::CLOCK_MONOTONIC);
        Self::at(time.map_or(0, |time| {
            (time.tv_sec() as u64).wrapping_mul(1_000_000_000).wrapping_add(time.tv_nsec() as u64)
        }))
    }

    fn at(nanoseconds: u64) -> Self {
        Self(NonZeroU64::new(nanoseconds).unwrap_or(NonZeroU64::MIN))
    }

    /// Nanoseconds since an earlier moment.
    fn since(self, earlier: Self) -> u64 {
        self.0.get().saturating_sub(earlier.0.get())
    }
}

/// The moment at which requests were handed to storage.
#[derive(Clone, Copy, Debug)]
pub(super) struct Begun {
    /// The kernel's tick.
    pub(super) tick: Tick,
    /// The moment, if they are measured.
    exact: Option<Moment>,
}

/// The moment at which requests are answered. Each clock is read when it is needed first.
#[derive(Debug, Default)]
pub(super) struct AnswerMoment {
    tick: Option<Tick>,
    exact: Option<Moment>,
}

impl AnswerMoment {
    /// Nanoseconds since a moment.
    fn since(&mut self, begun: Moment) -> u64 {
        self.exact.get_or_insert_with(Moment::now).since(begun)
    }

    /// Nanoseconds since a tick, give or take one tick.
    fn since_tick(&mut self, begun: Tick) -> u64 {
        let time: Duration = self.tick.get_or_insert_with(Tick::now).after(begun);
        u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
    }
}

/// Numbers of requests of a batch that were answered at once, by operation.
#[derive(Debug, Default)]
pub(super) struct AnsweredAtOnce([u32; OPERATIONS]);

impl AnsweredAtOnce {
    /// Adds a request.
    #[inline]
    pub(super) fn add(&mut self, operation: Operation) {
        if let Some(count) = self.0.get_mut(operation as usize) {
            *count += 1;
        }
    }
}

/// The latest time of an operation that was measured, or the requests that wait for one.
#[derive(Clone, Copy, Debug)]
enum Estimate {
    None { unrecorded: u64 },
    Nanoseconds(u64),
}

impl Default for Estimate {
    fn default() -> Self {
        Self::None { unrecorded: 0 }
    }
}

/// The estimates of each operation.
#[derive(Debug, Default)]
struct Estimates([Estimate; OPERATIONS]);

impl Estimates {
    /// Records requests of an operation that took `measured` nanoseconds, or were not measured.
    #[inline]
    fn record(
        &mut self,
        to: &Latencies,
        operation: Operation,
        requests: u64,
        measured: Option<u64>,
    ) {
        let Some(estimate) = self.0.get_mut(operation as usize) else { return };
        let (time, requests) = match (*estimate, measured) {
            (Estimate::Nanoseconds(_), Some(time)) | (Estimate::Nanoseconds(time), None) => {
                (time, requests)
            }
            (Estimate::None { unrecorded }, Some(time)) => (time, requests + unrecorded),
            (Estimate::None { unrecorded }, None) => {
                *estimate = Estimate::None { unrecorded: unrecorded + requests };
                return;
            }
        };
        *estimate = Estimate::Nanoseconds(time);
        to.record(operation, time, requests);
    }
}

/// Measures the requests of a part of a disk.
#[derive(Debug, Default)]
pub(super) struct LatencyMeter {
    /// Number of batches until one is measured, of those that are answered at once.
    unmeasured_at_once: u32,
    at_once: Estimates,
    /// The tick at which a batch for storage was measured last.
    measured_at: Option<Tick>,
    /// Number of batches for storage since then.
    unmeasured: u32,
    by_storage: Estimates,
}

impl LatencyMeter {
    /// Begins a batch: the moment, if what is answered at once is to be measured.
    #[inline]
    pub(super) fn begin(&mut self, now: impl FnOnce() -> Moment) -> Option<Moment> {
        if let Some(left) = self.unmeasured_at_once.checked_sub(1) {
            self.unmeasured_at_once = left;
            return None;
        }
        self.unmeasured_at_once = UNMEASURED;
        Some(now())
    }

    /// Records the requests of a batch that are answered at once.
    #[inline]
    pub(super) fn answer_at_once(
        &mut self,
        AnsweredAtOnce(counts): &AnsweredAtOnce,
        begun: Option<Moment>,
        to: &Latencies,
        now: impl FnOnce() -> Moment,
    ) {
        let measured = begun.map(|begun| now().since(begun));
        for (operation, count) in Operation::ALL.into_iter().zip(counts) {
            if *count > 0 {
                self.at_once.record(to, operation, (*count).into(), measured);
            }
        }
    }

    /// Begins what a batch leaves to storage or to the worker, at a tick.
    pub(super) fn begin_rest(&mut self, tick: Tick, now: impl FnOnce() -> Moment) -> Begun {
        if self.measured_at == Some(tick) && self.unmeasured < UNMEASURED {
            self.unmeasured += 1;
            return Begun { tick, exact: None };
        }
        (self.measured_at, self.unmeasured) = (Some(tick), 0);
        Begun { tick, exact: Some(now()) }
    }

    /// Records a request that waited for storage or for the worker. A long one counts for itself
    /// alone.
    pub(super) fn answer_later(
        &mut self,
        operation: Operation,
        begun: Begun,
        at: &mut AnswerMoment,
        to: &Latencies,
    ) {
        let measured = begun.exact.map(|begun| at.since(begun));
        match measured.unwrap_or_else(|| at.since_tick(begun.tick)) {
            time @ LONG.. => to.record(operation, time, 1),
            _ => self.by_storage.record(to, operation, 1, measured),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::{LatencySnapshot, LatencySnapshots};

    const MICRO: Duration = Duration::from_micros(1);
    /// The time between two ticks of the kernel's.
    const TICK: Duration = Duration::from_millis(4);

    /// A device whose clocks a test sets.
    #[derive(Default)]
    struct Setting {
        meter: LatencyMeter,
        passed: Duration,
        /// How often a batch began with a look at the exact clock.
        measured: u32,
        latencies: Latencies,
    }

    impl Setting {
        fn tick(&self) -> Tick {
            let ticks = 2 + (self.passed.as_nanos() / TICK.as_nanos()) as u32;
            Tick::at(TICK * ticks)
        }

        fn now(&self) -> Moment {
            Moment::at(1_000_000 + self.passed.as_nanos() as u64)
        }

        /// A batch of one request, which is answered at once.
        fn at_once(&mut self, operation: Operation, takes: Duration) {
            let mut answered = AnsweredAtOnce::default();
            answered.add(operation);
            self.batch(&answered, takes);
        }

        fn batch(&mut self, answered: &AnsweredAtOnce, takes: Duration) {
            let now = self.now();
            let begun = self.meter.begin(|| now);
            self.measured += u32::from(begun.is_some());
            self.passed += takes;
            let now = self.now();
            self.meter.answer_at_once(answered, begun, &self.latencies, || now);
        }

        fn begin_rest(&mut self) -> Begun {
            let (now, tick) = (self.now(), self.tick());
            let begun = self.meter.begin_rest(tick, || now);
            self.measured += u32::from(begun.exact.is_some());
            begun
        }

        fn answer(&mut self, operation: Operation, begun: Begun) {
            let mut at = AnswerMoment { tick: Some(self.tick()), exact: Some(self.now()) };
            self.meter.answer_later(operation, begun, &mut at, &self.latencies);
        }

        /// A request that waits for storage.
        fn later(&mut self, operation: Operation, takes: Duration) {
            let begun = self.begin_rest();
            self.passed += takes;
            self.answer(operation, begun);
        }

        fn times(&self) -> LatencySnapshots {
            self.latencies.snapshot()
        }
    }

    /// The buckets that have requests, with their numbers.
    fn filled(times: &LatencySnapshot) -> Vec<(usize, u64)> {
        let buckets = times.buckets.iter().copied().enumerate();
        buckets.filter(|(_, count)| *count > 0).collect()
    }

    #[test]
    fn one_batch_of_17_is_measured_and_all_are_counted() {
        let mut setting = Setting::default();
        setting.at_once(Operation::Read, MICRO);
        (0..16).for_each(|_| setting.at_once(Operation::Read, 50 * MICRO));
        assert_eq!((setting.measured, filled(&setting.times().read)), (1, vec![(0, 17)]));
        (0..17).for_each(|_| setting.at_once(Operation::Read, 50 * MICRO));
        assert_eq!((setting.measured, filled(&setting.times().read)), (2, vec![(0, 17), (6, 17)]));
    }

    #[test]
    fn requests_for_storage_are_measured_at_each_tick_too() {
        let mut setting = Setting::default();
        (0..34).for_each(|_| setting.later(Operation::Write, MICRO));
        assert_eq!(setting.measured, 2);
        setting.passed += TICK;
        setting.later(Operation::Write, MICRO);
        assert_eq!(setting.measured, 3);
        // This one is of the same tick, the next ones of a tick each.
        (0..10).for_each(|_| setting.later(Operation::Write, TICK));
        assert_eq!(setting.measured, 12);
        assert_eq!(filled(&setting.times().write), [(0, 36), (12, 9)]);
    }

    #[test]
    fn unmeasured_requests_count_as_others_of_their_operation_that_wait_as_they_do() {
        let mut setting = Setting::default();
        setting.at_once(Operation::Read, 3 * MICRO);
        setting.at_once(Operation::Read, 30 * MICRO);
        // Nothing is known of the times of writes.
        setting.at_once(Operation::Write, 200 * MICRO);
        setting.later(Operation::Flush, 100 * MICRO);
        setting.later(Operation::Read, 100 * MICRO);
        let LatencySnapshots { read, write, flush, .. } = setting.times();
        assert_eq!([&read, &write, &flush].map(filled), [vec![(2, 2)], vec![], vec![(7, 1)]]);
        setting.passed += TICK;
        setting.later(Operation::Read, 100 * MICRO);
        (0..14).for_each(|_| setting.at_once(Operation::Read, MICRO));
        setting.at_once(Operation::Write, 200 * MICRO);
        let LatencySnapshots { read, write, .. } = setting.times();
        assert_eq!([&read, &write].map(filled), [vec![(2, 16), (7, 2)], vec![(8, 2)]]);
    }

    #[test]
    fn long_requests_count_for_themselves_alone() {
        let mut setting = Setting::default();
        setting.later(Operation::Flush, 100 * MICRO);
        let slow: Vec<_> = (0..5).map(|_| setting.begin_rest()).collect();
        assert_eq!(setting.measured, 1);
        setting.passed += Duration::from_secs(3);
        slow.into_iter().for_each(|begun| setting.answer(Operation::Flush, begun));
        setting.later(Operation::Flush, Duration::from_secs(3));
        assert_eq!(setting.measured, 2);
        // Measured at this tick, but not this one.
        let (_, begun) = (setting.begin_rest(), setting.begin_rest());
        setting.answer(Operation::Flush, begun);
        assert_eq!(filled(&setting.times().flush), [(7, 2), (22, 6)]);
    }

    #[test]
    fn requests_of_one_batch_count_by_operation() {
        let (mut setting, mut answered) = (Setting::default(), AnsweredAtOnce::default());
        let all = [Operation::Read, Operation::Write, Operation::Read, Operation::Discard];
        all.into_iter().for_each(|operation| answered.add(operation));
        setting.batch(&answered, 4 * MICRO);
        let LatencySnapshots { read, write, flush, discard } = setting.times();
        let counts = [read, write, flush, discard].map(|times| filled(&times));
        assert_eq!(counts, [vec![(2, 2)], vec![(2, 1)], vec![], vec![(2, 1)]]);
    }

    #[test]
    fn exact_clock_moves() {
        let end = std::time::Instant::now() + Duration::from_secs(10);
        let first = Moment::now();
        while Moment::now().since(first) == 0 {
            assert!(std::time::Instant::now() < end, "waited 10 s for the clock");
        }
    }
}
