//! Histograms of the times that requests take, by operation.
//!
//! The bounds of the buckets are fixed: 1 µs, twice that, and so on up to 2^24 µs, which is 16.8 s.
//! So histograms of several devices and moments can be added and subtracted, and they are
//! histograms of OpenMetrics as they are.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Number of buckets that have a bound.
const BOUNDS: usize = 25;
/// Number of buckets: the last one has no bound.
pub const BUCKETS: usize = BOUNDS + 1;

/// An operation of a disk whose requests are timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names say the operations")]
pub enum Operation {
    Read,
    Write,
    Flush,
    /// Discard or write zeroes.
    Discard,
}

impl Operation {
    /// All of them, by their numbers.
    pub const ALL: [Self; 4] = [Self::Read, Self::Write, Self::Flush, Self::Discard];

    /// The name, as in labels of metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Flush => "flush",
            Self::Discard => "discard",
        }
    }
}

/// The histograms of one device. The device's threads add, any thread reads; all orderings are
/// relaxed, so that a snapshot may lack a part of what is being added.
#[derive(Debug, Default)]
pub struct Latencies {
    read: Histogram,
    write: Histogram,
    flush: Histogram,
    discard: Histogram,
}

impl Latencies {
    /// Adds a number of requests that took this time each.
    #[inline]
    pub fn record(&self, operation: Operation, nanoseconds: u64, requests: u64) {
        let histogram = match operation {
            Operation::Read => &self.read,
            Operation::Write => &self.write,
            Operation::Flush => &self.flush,
            Operation::Discard => &self.discard,
        };
        histogram.record(nanoseconds, requests);
    }

    /// Returns a snapshot.
    pub fn snapshot(&self) -> LatencySnapshots {
        LatencySnapshots {
            read: self.read.snapshot(),
            write: self.write.snapshot(),
            flush: self.flush.snapshot(),
            discard: self.discard.snapshot(),
        }
    }
}

/// The histogram of one operation.
#[derive(Debug, Default)]
struct Histogram {
    buckets: [AtomicU64; BUCKETS],
    nanoseconds: AtomicU64,
}

impl Histogram {
    #[inline]
    fn record(&self, nanoseconds: u64, requests: u64) {
        if let Some(bucket) = self.buckets.get(bucket_of(nanoseconds)) {
            bucket.fetch_add(requests, Ordering::Relaxed);
        }
        self.nanoseconds.fetch_add(nanoseconds.saturating_mul(requests), Ordering::Relaxed);
    }

    fn snapshot(&self) -> LatencySnapshot {
        let mut buckets = [0; BUCKETS];
        let counts = self.buckets.iter().map(|bucket| bucket.load(Ordering::Relaxed));
        buckets.iter_mut().zip(counts).for_each(|(to, count)| *to = count);
        LatencySnapshot { buckets, sum_ns: self.nanoseconds.load(Ordering::Relaxed) }
    }
}

/// The first bucket whose bound is not less than a time.
#[inline]
fn bucket_of(nanoseconds: u64) -> usize {
    let microseconds = nanoseconds.div_ceil(1000).max(1);
    let bucket = u64::BITS - (microseconds - 1).leading_zeros();
    (bucket as usize).min(BOUNDS)
}

/// The bound of a bucket; `None` for the last one.
pub fn bound(bucket: usize) -> Option<Duration> {
    (bucket < BOUNDS).then(|| Duration::from_micros(1 << bucket))
}

/// A snapshot of the histograms of a device.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names say the operations")]
pub struct LatencySnapshots {
    pub read: LatencySnapshot,
    pub write: LatencySnapshot,
    pub flush: LatencySnapshot,
    /// Of discards and of requests to write zeroes.
    pub discard: LatencySnapshot,
}

impl LatencySnapshots {
    /// The same with numbers that can be added: another process wrote them.
    pub(super) fn harmless(mut self) -> Self {
        for histogram in [&mut self.read, &mut self.write, &mut self.flush, &mut self.discard] {
            histogram.buckets = histogram.buckets.map(|count| count.min(u64::MAX / BUCKETS as u64));
        }
        self
    }

    /// The histogram of an operation.
    pub fn of(&self, operation: Operation) -> &LatencySnapshot {
        match operation {
            Operation::Read => &self.read,
            Operation::Write => &self.write,
            Operation::Flush => &self.flush,
            Operation::Discard => &self.discard,
        }
    }
}

/// A snapshot of the histogram of an operation. As JSON it also has the number of requests and
/// percentiles of their times, all in nanoseconds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "LatencyFields", from = "LatencyFields")]
pub struct LatencySnapshot {
    /// Number of requests in each bucket alone.
    pub buckets: [u64; BUCKETS],
    /// The times of all requests together, in nanoseconds.
    pub sum_ns: u64,
}

impl LatencySnapshot {
    /// No requests.
    pub const EMPTY: Self = Self { buckets: [0; BUCKETS], sum_ns: 0 };

    /// Number of requests.
    pub fn count(&self) -> u64 {
        saturating_sum(&self.buckets)
    }

    /// The time that this share of the requests took at most, from 0 to 1: estimated inside its
    /// bucket, as Prometheus does, so that it may be wrong by a factor of 2. The bound of the last
    /// bucket that has one, if it is beyond that. `None` without requests.
    pub fn percentile(&self, share: f64) -> Option<Duration> {
        let count = self.count();
        if count == 0 {
            return None;
        }
        let rank = (count as f64 * share).max(f64::MIN_POSITIVE);
        let mut below = 0_u64;
        for (number, in_bucket) in self.buckets.iter().enumerate() {
            let up_to = below.saturating_add(*in_bucket);
            if up_to as f64 >= rank {
                let Some(Range { start, end }) = range(number) else { break };
                let part = (rank - below as f64) / (*in_bucket).max(1) as f64;
                return Some(start + (end - start).mul_f64(part.clamp(0.0, 1.0)));
            }
            below = up_to;
        }
        bound(BOUNDS - 1)
    }

    /// The requests of this snapshot that an earlier one has not; all, if the earlier one is no
    /// earlier one of the same process.
    pub fn since(&self, earlier: &Self) -> Self {
        let mut difference = Self::default();
        let pairs = self.buckets.iter().zip(&earlier.buckets);
        for (to, (now, before)) in difference.buckets.iter_mut().zip(pairs) {
            let Some(more) = now.checked_sub(*before) else { return self.clone() };
            *to = more;
        }
        difference.sum_ns = self.sum_ns.saturating_sub(earlier.sum_ns);
        difference
    }
}

/// The times of a bucket; `None` for the last one.
fn range(bucket: usize) -> Option<Range<Duration>> {
    let start = bucket.checked_sub(1).and_then(bound).unwrap_or_default();
    Some(start..bound(bucket)?)
}

fn saturating_sum(counts: &[u64]) -> u64 {
    counts.iter().fold(0, |sum, count| sum.saturating_add(*count))
}

/// A [`LatencySnapshot`] as JSON.
#[derive(Serialize, Deserialize)]
struct LatencyFields {
    count: u64,
    sum_ns: u64,
    p50_ns: Option<u64>,
    p99_ns: Option<u64>,
    p999_ns: Option<u64>,
    buckets: [u64; BUCKETS],
}

impl From<LatencySnapshot> for LatencyFields {
    fn from(snapshot: LatencySnapshot) -> Self {
        let percentile = |share| snapshot.percentile(share).map(|time| time.as_nanos() as u64);
        Self {
            count: snapshot.count(),
            sum_ns: snapshot.sum_ns,
            p50_ns: percentile(0.5),
            p99_ns: percentile(0.99),
            p999_ns: percentile(0.999),
            buckets: snapshot.buckets,
        }
    }
}

impl From<LatencyFields> for LatencySnapshot {
    fn from(LatencyFields { buckets, sum_ns, .. }: LatencyFields) -> Self {
        Self { buckets, sum_ns }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recorded(times: &[(u64, u64)]) -> LatencySnapshot {
        let latencies = Latencies::default();
        times.iter().for_each(|(time, requests)| {
            latencies.record(Operation::Write, *time, *requests);
        });
        let LatencySnapshots { read, write, flush, discard } = latencies.snapshot();
        assert_eq!([read, flush, discard], [const { LatencySnapshot::EMPTY }; 3]);
        write
    }

    #[test]
    fn each_bucket_has_the_times_up_to_its_bound() {
        for bucket in 0..BOUNDS {
            let bound = bound(bucket).unwrap().as_nanos() as u64;
            assert_eq!((bucket_of(bound), bucket_of(bound + 1)), (bucket, bucket + 1));
        }
        assert_eq!([0, 1, 1000, 1001].map(bucket_of), [0, 0, 0, 1]);
        assert_eq!((bucket_of(u64::MAX), bound(BOUNDS)), (BOUNDS, None));
    }

    #[test]
    fn percentiles_are_inside_the_buckets_of_their_requests() {
        let micros = |micros| Some(Duration::from_micros(micros));
        assert_eq!(recorded(&[]).percentile(0.5), None);
        // 90 of (64, 128] µs, 9 of (1024, 2048] µs, one beyond all bounds.
        let times = recorded(&[(100_000, 90), (1_500_000, 9), (60_000_000_000, 1)]);
        assert_eq!(times.count(), 100);
        assert_eq!(times.percentile(0.45), micros(96), "half of the bucket");
        assert_eq!(times.percentile(0.9), micros(128));
        assert_eq!(times.percentile(0.99), micros(2048));
        assert_eq!(times.percentile(0.999), micros(1 << 24));
        assert_eq!(times.sum_ns, 90 * 100_000 + 9 * 1_500_000 + 60_000_000_000);
    }

    #[test]
    fn difference_has_the_later_requests_and_all_of_another_process() {
        let (before, now) = (recorded(&[(5_000, 3)]), recorded(&[(5_000, 4), (900_000, 2)]));
        let since = now.since(&before);
        assert_eq!((since.count(), since.sum_ns), (3, 5_000 + 2 * 900_000));
        assert_eq!(before.since(&now), before);
    }

    #[test]
    fn counts_of_a_hostile_process_do_not_overflow() {
        let most = LatencySnapshot { buckets: [u64::MAX; BUCKETS], sum_ns: u64::MAX };
        assert_eq!((most.count(), most.percentile(1.0).is_some()), (u64::MAX, true));
        assert_eq!(most.since(&most), LatencySnapshot::EMPTY);
    }

    #[test]
    fn numbers_of_another_process_can_be_added() {
        let most = LatencySnapshot { buckets: [u64::MAX; BUCKETS], sum_ns: u64::MAX };
        let all = LatencySnapshots { read: most, ..LatencySnapshots::default() }.harmless();
        let sum = all.read.buckets.iter().try_fold(0u64, |sum, count| sum.checked_add(*count));
        assert!(sum.is_some());
    }

    #[test]
    fn json_keeps_a_snapshot_and_shows_its_percentiles() {
        let times = recorded(&[(100_000, 2)]);
        let json = serde_json::to_value(&times).unwrap();
        assert_eq!((&json["count"], &json["p50_ns"]), (&2.into(), &96_000.into()));
        assert_eq!(serde_json::from_value::<LatencySnapshot>(json.clone()).unwrap(), times);
        let mut short = json;
        short["buckets"].as_array_mut().unwrap().pop();
        assert!(serde_json::from_value::<LatencySnapshot>(short).is_err());
    }
}
