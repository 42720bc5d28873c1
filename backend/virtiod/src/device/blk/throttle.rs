//! Limits of a disk's rate: what exceeds them waits, and is taken up again in order.

use std::collections::VecDeque;
use std::fmt;
use std::num::NonZeroU64;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use serde::{Deserialize, Serialize};

use super::request::{BlockCommand, BlockRequest, RangeChange};
use super::{BATCH, Block, SECTOR_SIZE};
use crate::device::rate::{Rate, TokenBucket};
use crate::device::{
    BATCH_BYTES, BATCH_PAGES, DeviceMemory, Fault, QueueContext, Requests, Source, VirtioRequest,
};
use crate::stats::DeviceStats;

/// Maximum time until the limits are asked again for a request that waits: they may have changed.
const LONGEST_SLEEP: Duration = Duration::from_secs(1);

/// Limits of some requests of a disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RateLimits {
    /// Their data in a second.
    pub rate: Option<Rate>,
    /// Their number in a second.
    pub iops: Option<NonZeroU64>,
}

/// Limits of a disk's rate. A request has to keep all that apply to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskRates {
    /// Of reads and writes together.
    pub all: RateLimits,
    /// Of reads.
    pub reads: RateLimits,
    /// Of writes, of discards and of writes of zeroes.
    pub writes: RateLimits,
    /// The time for which an idle disk accumulates credit.
    pub burst: Duration,
}

impl DiskRates {
    /// The credit of an idle disk, if nothing else is set.
    pub const BURST: Duration = Duration::from_millis(100);

    fn is_limited(&self) -> bool {
        let unlimited = RateLimits::default();
        [self.all, self.reads, self.writes].iter().any(|limits| *limits != unlimited)
    }
}

impl Default for DiskRates {
    fn default() -> Self {
        let none = RateLimits::default();
        Self { all: none, reads: none, writes: none, burst: Self::BURST }
    }
}

/// Formats the limits by the names of the configuration's keys.
impl fmt::Display for DiskRates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.is_limited() {
            return f.write_str("unlimited");
        }
        let sets = [("", self.all), ("read-", self.reads), ("write-", self.writes)];
        let mut separator = "";
        for (prefix, RateLimits { rate, iops }) in sets {
            if let Some(rate) = rate {
                write!(f, "{separator}{prefix}rate {rate}")?;
                separator = ", ";
            }
            if let Some(iops) = iops {
                write!(f, "{separator}{prefix}iops {iops}")?;
                separator = ", ";
            }
        }
        write!(f, ", burst {:?}", self.burst)
    }
}

/// The direction of a request that limits apply to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flow {
    Read,
    Write,
}

impl Flow {
    /// Both, in the order of lists for each.
    const ALL: [Self; 2] = [Self::Read, Self::Write];

    /// The direction of a request with so much data, and the bytes that it counts for; `None` for
    /// requests without limits.
    fn of(command: &BlockCommand, data: u64) -> Option<(Self, u64)> {
        match command {
            BlockCommand::Read { .. } => Some((Self::Read, data)),
            BlockCommand::Write { .. } => Some((Self::Write, data)),
            // Storage may have to write the zeroes.
            BlockCommand::Change { change: RangeChange::WriteZeroes, ranges } => {
                let sectors: u64 = ranges.iter().map(|range| u64::from(range.sectors)).sum();
                Some((Self::Write, sectors * SECTOR_SIZE))
            }
            BlockCommand::Change { change: RangeChange::Discard, .. } => Some((Self::Write, 0)),
            BlockCommand::Flush | BlockCommand::GetId | BlockCommand::Unsupported => None,
        }
    }
}

/// A request that was taken from its ring earlier, with what its header said then: the guest may
/// have changed that since.
pub(super) struct Taken {
    pub(super) queue: usize,
    pub(super) request: VirtioRequest,
    pub(super) command: Result<BlockCommand, Fault>,
}

/// The buckets of some limits.
#[derive(Clone, Copy, Debug, Default)]
struct Buckets {
    bytes: Option<TokenBucket>,
    requests: Option<TokenBucket>,
}

impl Buckets {
    fn new(limits: RateLimits, burst: Duration, now: Instant) -> Self {
        let bucket = |rate| TokenBucket::new(rate, burst, now);
        Self {
            bytes: limits.rate.map(|rate| bucket(rate.bytes())),
            requests: limits.iops.map(bucket),
        }
    }

    fn wait(&self, now: Instant) -> Option<Duration> {
        let each = [&self.bytes, &self.requests].into_iter().flatten();
        each.filter_map(|bucket| bucket.wait(now)).max()
    }

    fn spend(&mut self, bytes: u64, now: Instant) {
        self.bytes.iter_mut().for_each(|bucket| bucket.spend(bytes, now));
        self.requests.iter_mut().for_each(|bucket| bucket.spend(1, now));
    }
}

/// The limits and what is left of them.
#[derive(Debug, Default)]
struct Budget {
    rates: DiskRates,
    all: Buckets,
    reads: Buckets,
    writes: Buckets,
}

impl Budget {
    fn new(rates: DiskRates, now: Instant) -> Self {
        let buckets = |limits| Buckets::new(limits, rates.burst, now);
        let (all, reads, writes) =
            (buckets(rates.all), buckets(rates.reads), buckets(rates.writes));
        Self { rates, all, reads, writes }
    }

    /// The time until a request may begin; `None` if it may now.
    fn wait(&self, flow: Flow, now: Instant) -> Option<Duration> {
        let own = match flow {
            Flow::Read => &self.reads,
            Flow::Write => &self.writes,
        };
        self.all.wait(now).max(own.wait(now))
    }

    fn spend(&mut self, flow: Flow, bytes: u64, now: Instant) {
        let own = match flow {
            Flow::Read => &mut self.reads,
            Flow::Write => &mut self.writes,
        };
        [&mut self.all, own].into_iter().for_each(|buckets| buckets.spend(bytes, now));
    }
}

/// The limits of a disk, or of a group of a guest's disks, for all of their threads.
#[derive(Debug, Default)]
pub struct Throttle {
    /// Whether there are limits. It orders nothing: a thread that reads an earlier value takes one
    /// batch by the earlier limits.
    is_limited: AtomicBool,
    budget: Mutex<Budget>,
}

impl Throttle {
    /// Limits with all credit.
    pub fn new(rates: DiskRates) -> Self {
        let throttle = Self::default();
        throttle.set(rates);
        throttle
    }

    /// Replaces the limits. Other limits begin with all credit.
    pub fn set(&self, rates: DiskRates) {
        let mut budget = self.lock();
        if budget.rates != rates {
            *budget = Budget::new(rates, Instant::now());
            self.is_limited.store(rates.is_limited(), Ordering::Relaxed);
        }
    }

    /// The limits.
    pub fn rates(&self) -> DiskRates {
        self.lock().rates
    }

    pub(super) fn is_limited(&self) -> bool {
        self.is_limited.load(Ordering::Relaxed)
    }

    /// Whether reads and writes have a limit together.
    fn limits_both(&self) -> bool {
        self.lock().rates.all != RateLimits::default()
    }

    /// Counts a request, unless it has to wait for so long at least.
    fn admit(&self, flow: Flow, bytes: u64, now: Instant) -> Result<(), Duration> {
        let mut budget = self.lock();
        if let Some(wait) = budget.wait(flow, now) {
            return Err(wait);
        }
        budget.spend(flow, bytes, now);
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Budget> {
        self.budget.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request that waits for its turn.
struct Delayed {
    flow: Flow,
    bytes: u64,
    taken: Taken,
}

/// The requests of a thread's queues that wait, by direction, each in order.
#[derive(Default)]
pub(super) struct Delays {
    reads: VecDeque<Delayed>,
    writes: VecDeque<Delayed>,
    /// The direction of the last request that was taken up again: the other one is next, or a limit
    /// of both together would never let it pass.
    latest: Option<Flow>,
    /// Ready when the next one may be taken; made for the first one.
    timer: Option<TimerFd>,
    /// Whether they wait for others to end, without the timer.
    need_room: bool,
}

impl Delays {
    fn list(&mut self, flow: Flow) -> &mut VecDeque<Delayed> {
        match flow {
            Flow::Read => &mut self.reads,
            Flow::Write => &mut self.writes,
        }
    }

    /// Number of requests that wait.
    pub(super) fn len(&self) -> usize {
        self.reads.len() + self.writes.len()
    }

    /// Whether a request of the queue waits.
    pub(super) fn has_of(&self, queue: usize) -> bool {
        self.reads.iter().chain(&self.writes).any(|delayed| delayed.taken.queue == queue)
    }

    /// Returns the request if it may begin now; otherwise it waits.
    pub(super) fn ask<M: DeviceMemory>(
        &mut self,
        throttle: &Throttle,
        queue: usize,
        request: VirtioRequest,
        memory: &M,
        now: Instant,
    ) -> Option<Taken> {
        let parsed = BlockRequest::parse(&request, memory);
        let parsed = parsed.map(|parsed| (parsed.data.length(), parsed.command));
        let flow = parsed.as_ref().ok().and_then(|(data, command)| Flow::of(command, *data));
        let taken = Taken { queue, request, command: parsed.map(|(_, command)| command) };
        let Some((flow, bytes)) = flow else { return Some(taken) };
        // Those that wait for the same limit are first.
        let is_behind = match throttle.limits_both() {
            true => self.len() > 0,
            false => !self.list(flow).is_empty(),
        };
        if !is_behind && throttle.admit(flow, bytes, now).is_ok() {
            return Some(taken);
        }
        self.list(flow).push_back(Delayed { flow, bytes, taken });
        None
    }

    /// Removes and returns the next request that may begin now.
    pub(super) fn next(&mut self, throttle: &Throttle, now: Instant) -> Option<Taken> {
        let order = match self.latest {
            Some(Flow::Read) => [Flow::Write, Flow::Read],
            Some(Flow::Write) | None => Flow::ALL,
        };
        order.into_iter().find_map(|flow| {
            let first = self.list(flow).front()?;
            throttle.admit(first.flow, first.bytes, now).ok()?;
            self.latest = Some(flow);
            self.list(flow).pop_front().map(|delayed| delayed.taken)
        })
    }

    /// Forgets the requests of a queue, or of all.
    pub(super) fn forget(&mut self, queue: Option<usize>) {
        for flow in Flow::ALL {
            self.list(flow)
                .retain(|delayed| queue.is_some_and(|queue| queue != delayed.taken.queue));
        }
    }

    /// Sets the timer to the time at which the next request may begin.
    ///
    /// # Errors
    /// The kernel's.
    pub(super) fn set_timer(&mut self, throttle: &Throttle, now: Instant) -> nix::Result<()> {
        let budget = throttle.lock();
        let wait = |flow: Flow, list: &VecDeque<Delayed>| {
            list.front()?;
            Some(budget.wait(flow, now).unwrap_or_default())
        };
        let waits = [wait(Flow::Read, &self.reads), wait(Flow::Write, &self.writes)];
        let Some(wait) = waits.into_iter().flatten().min() else {
            return self.stop_timer();
        };
        drop(budget);
        let timer = match &mut self.timer {
            Some(timer) => timer,
            none => none.insert(TimerFd::new(
                ClockId::CLOCK_MONOTONIC,
                TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK,
            )?),
        };
        // Zero would disarm it. Nothing tells of other limits.
        let wait = TimeSpec::from_duration(wait.clamp(Duration::from_nanos(1), LONGEST_SLEEP));
        timer.set(Expiration::OneShot(wait), TimerSetTimeFlags::empty())
    }

    /// Stops the timer.
    fn stop_timer(&self) -> nix::Result<()> {
        self.timer.as_ref().map_or(Ok(()), TimerFd::unset)
    }

    /// The timer, while requests wait for it.
    pub(super) fn source(&self) -> Option<Source<'_>> {
        let timer = self.timer.as_ref().filter(|_| self.len() > 0);
        timer.map(|timer| Source::readable(timer.as_fd()))
    }
}

impl Block {
    /// Returns those of the requests that may begin now. The others wait.
    ///
    /// # Errors
    /// [`Fault`].
    #[cold]
    pub(super) fn admit<M: DeviceMemory>(
        &mut self,
        queue: usize,
        mut requests: Requests,
        queues: &mut QueueContext<'_, M>,
    ) -> Result<Requests, Fault> {
        // A fault may have left some.
        self.known.clear();
        if !self.common.throttle.is_limited() && self.delays.len() == 0 {
            return Ok(requests);
        }
        self.may_hold_back = true;
        queues.prepare(&requests);
        let (now, earlier) = (Instant::now(), self.delays.len());
        let mut admitted = queues.take_list();
        for request in requests.drain() {
            let memory = queues.memory();
            let may_begin = self.delays.ask(&self.common.throttle, queue, request, memory, now);
            if let Some(Taken { request, command, .. }) = may_begin {
                admitted.push(request);
                self.known.push_back(command);
            }
        }
        queues.recycle(requests);
        // Those that begin are made reachable with their batch.
        queues.give_back(queue, &[])?;
        if self.delays.len() > earlier {
            DeviceStats::count(&self.common.stats.waits);
            self.set_delay_timer(now)?;
        }
        Ok(admitted)
    }

    /// Begins requests that have waited long enough.
    ///
    /// # Errors
    /// [`Fault`].
    pub(super) fn begin_delayed<M: DeviceMemory>(
        &mut self,
        queues: &mut QueueContext<'_, M>,
    ) -> Result<(), Fault> {
        let now = Instant::now();
        self.delays.need_room = false;
        loop {
            // What is in flight keeps its own limits.
            let (room, most_bytes) = (self.in_flight.room(), self.in_flight.room_bytes());
            let (mut begun, mut bytes) = (Vec::new(), 0);
            while begun.len() < room && bytes < most_bytes {
                let Some(next) = self.delays.next(&self.common.throttle, now) else {
                    self.begin_all(begun, queues)?;
                    return self.set_delay_timer(now);
                };
                bytes += next.request.length();
                begun.push(next);
            }
            if begun.is_empty() {
                // Requests that end make room, and tell; if not here, the deadline looks.
                self.delays.need_room = true;
                let stopped = self.delays.stop_timer();
                return stopped.map_err(|errno| Fault::Host("timer", errno.into()));
            }
            // Those that are answered at once leave their room to others, and tell nobody.
            self.begin_all(begun, queues)?;
            if self.pause.is_paused() {
                // The deadline looks once the disk goes on.
                self.delays.need_room = true;
                return Ok(());
            }
        }
    }

    /// Whether requests are delayed only because others were in flight, which have ended.
    pub(super) fn may_begin_delayed(&self) -> bool {
        self.delays.need_room
            && self.delays.len() > 0
            && !self.pause.is_paused()
            && self.in_flight.room() > 0
            && self.in_flight.room_bytes() > 0
    }

    /// Begins requests that were taken from their queues before.
    ///
    /// # Errors
    /// [`Fault`].
    pub(super) fn begin_all<M: DeviceMemory>(
        &mut self,
        requests: Vec<Taken>,
        queues: &mut QueueContext<'_, M>,
    ) -> Result<(), Fault> {
        let mut requests = requests.into_iter().peekable();
        while let Some(Taken { queue, request, command }) = requests.next() {
            let (mut bytes, mut pages) = (request.length(), request.pages());
            let mut batch = queues.take_list();
            self.known.clear();
            batch.push(request);
            self.known.push_back(command);
            while batch.len() < BATCH && bytes < BATCH_BYTES && pages < BATCH_PAGES {
                let Some(next) = requests.next_if(|taken| taken.queue == queue) else { break };
                bytes += next.request.length();
                pages += next.request.pages();
                batch.push(next.request);
                self.known.push_back(next.command);
            }
            self.begin(queue, batch, queues)?;
        }
        Ok(())
    }

    fn set_delay_timer(&mut self, now: Instant) -> Result<(), Fault> {
        let set = self.delays.set_timer(&self.common.throttle, now);
        set.map_err(|errno| Fault::Host("timer", errno.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: RateLimits = RateLimits { rate: None, iops: None };

    fn rates(rate: Option<&str>, iops: Option<u64>) -> RateLimits {
        RateLimits {
            rate: rate.map(|rate| rate.parse().unwrap()),
            iops: iops.and_then(NonZeroU64::new),
        }
    }

    /// The bytes and requests that a disk which always has requests of these sizes carries out in
    /// ten seconds, of which the first is not counted.
    fn carried_out(throttle: &Throttle, flow: Flow, sizes: &[u64]) -> (u64, u64) {
        let begin = Instant::now() + Duration::from_secs(100);
        let (mut now, mut bytes, mut requests) = (begin, 0, 0);
        for size in sizes.iter().cycle() {
            while let Err(wait) = throttle.admit(flow, *size, now) {
                now += wait;
            }
            if now > begin + Duration::from_secs(10) {
                break;
            }
            if now > begin + Duration::from_secs(1) {
                (bytes, requests) = (bytes + size, requests + 1);
            }
        }
        (bytes / 9, requests / 9)
    }

    fn is_near(value: u64, limit: u64) -> bool {
        value >= limit * 95 / 100 && value <= limit * 105 / 100
    }

    #[test]
    fn limits_hold_within_five_percent() {
        let mixed = [4096, 65536, 512, 1 << 20, 4096];
        let of_reads = DiskRates { reads: rates(Some("10MiB/s"), None), ..DiskRates::default() };
        let (bytes, _) = carried_out(&Throttle::new(of_reads), Flow::Read, &mixed);
        assert!(is_near(bytes, 10 << 20), "{bytes}");
        let of_all = DiskRates { all: rates(None, Some(500)), ..DiskRates::default() };
        let (_, requests) = carried_out(&Throttle::new(of_all), Flow::Write, &mixed);
        assert!(is_near(requests, 500), "{requests}");
        let both = DiskRates {
            all: rates(Some("1GiB/s"), None),
            writes: rates(Some("2MB/s"), Some(400)),
            ..DiskRates::default()
        };
        let (bytes, requests) = carried_out(&Throttle::new(both), Flow::Write, &[4096]);
        assert!(is_near(requests, 400) && bytes < 2_000_000, "{requests}, {bytes}");
    }

    #[test]
    fn limits_of_a_direction_do_not_concern_the_other() {
        let reads = DiskRates { reads: rates(None, Some(1)), ..DiskRates::default() };
        let (throttle, now) = (Throttle::new(reads), Instant::now());
        throttle.admit(Flow::Read, 512, now).unwrap();
        throttle.admit(Flow::Read, 512, now).unwrap_err();
        for _ in 0..1000 {
            throttle.admit(Flow::Write, 512, now).unwrap();
        }
    }

    #[test]
    fn idle_disk_accumulates_no_more_than_its_burst() {
        let two_seconds = Duration::from_secs(2);
        let set =
            DiskRates { all: rates(None, Some(10)), burst: two_seconds, ..DiskRates::default() };
        let (throttle, now) = (Throttle::new(set), Instant::now() + Duration::from_secs(3600));
        let at_once = (0..100).filter(|_| throttle.admit(Flow::Read, 0, now).is_ok()).count();
        // One more makes the debt.
        assert_eq!(at_once, 21);
    }

    #[test]
    fn other_limits_apply_at_once_and_are_named() {
        let throttle = Throttle::default();
        assert!(!throttle.is_limited());
        let set = DiskRates {
            all: rates(Some("1MiB/s"), None),
            writes: rates(None, Some(7)),
            ..DiskRates::default()
        };
        throttle.set(set);
        assert!(throttle.is_limited());
        assert_eq!(set.to_string(), "rate 1048576 B/s, write-iops 7, burst 100ms");
        throttle.set(DiskRates::default());
        assert!(!throttle.is_limited());
        assert_eq!(DiskRates::default().to_string(), "unlimited");
        let burst_alone = DiskRates { all: NONE, burst: Duration::ZERO, ..DiskRates::default() };
        assert!(!Throttle::new(burst_alone).is_limited());
    }
}
