//! The requests of a disk that its storage has not answered, for `stat` and the log.
//!
//! The parts of a device and its worker share a [`StorageUse`], which ends when the image is free
//! again. `DeviceStats` only refers to it.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

/// A moment in milliseconds since the machine started, modulo 2^32; never 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tick(u32);

impl Tick {
    /// The kernel's last tick, at most 10 ms ago: reading it is no system call.
    pub fn now() -> Self {
        let time = clock_gettime(ClockId::CLOCK_MONOTONIC_COARSE).map(Duration::from);
        // Without a clock, all ages are 0.
        Self::at(time.unwrap_or_default())
    }

    /// The tick at this time since the machine started.
    pub(crate) fn at(time: Duration) -> Self {
        Self((time.as_millis() as u32).max(1))
    }

    /// The time from an earlier tick, less than 49 days ago, to this one.
    pub fn after(self, earlier: Self) -> Duration {
        self.since(earlier.0)
    }

    /// The time from `begun`, an earlier tick less than 49 days ago, to this one.
    fn since(self, begun: u32) -> Duration {
        Duration::from_millis(self.0.wrapping_sub(begun).into())
    }
}

/// The use of an image by a disk.
#[derive(Debug, Default)]
pub struct StorageUse {
    image: String,
    /// The most requests that are in flight at a time.
    limit: usize,
    /// The parts of the device, some of which may have ended.
    parts: Mutex<Vec<Weak<PartUse>>>,
    /// Whether the log has a line about the current driver's requests.
    is_logged: AtomicBool,
}

/// The requests of a part of a disk in flight. The part's thread writes, any thread reads; the
/// values are independent of each other, so all orderings are relaxed.
#[derive(Debug, Default)]
pub struct PartUse {
    storage: Arc<StorageUse>,
    /// For each slot, the tick at which its request began, or 0.
    begun: Box<[AtomicU32]>,
    /// Whether a reset, or the end of the device, waits for storage.
    is_waiting: AtomicBool,
}

impl StorageUse {
    /// The use of the image at a path, by at most `limit` requests at a time.
    pub fn new(image: String, limit: usize) -> Self {
        Self { image, limit, ..Self::default() }
    }

    /// Adds a part of the device.
    pub fn add_part(storage: &Arc<Self>) -> Arc<PartUse> {
        let part = Arc::new(PartUse {
            storage: Arc::clone(storage),
            begun: (0..storage.limit).map(|_| AtomicU32::default()).collect(),
            ..PartUse::default()
        });
        let mut parts = storage.lock();
        parts.retain(|part| part.strong_count() > 0);
        parts.push(Arc::downgrade(&part));
        part
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Weak<PartUse>>> {
        self.parts.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Notes that a driver begins to use the disk.
    pub fn begin_use(&self) {
        self.is_logged.store(false, Ordering::Relaxed);
    }

    /// Whether this is the first call for a driver.
    pub(super) fn takes_log_line(&self) -> bool {
        !self.is_logged.swap(true, Ordering::Relaxed)
    }

    /// Returns a snapshot.
    pub fn snapshot(&self) -> StorageSnapshot {
        self.snapshot_at(Tick::now())
    }

    fn snapshot_at(&self, now: Tick) -> StorageSnapshot {
        let parts: Vec<_> = self.lock().iter().filter_map(Weak::upgrade).collect();
        let begun = parts.iter().flat_map(|part| part.begun.iter());
        let begun = begun.map(|begun| begun.load(Ordering::Relaxed));
        let ages = begun.filter(|begun| *begun != 0).map(|begun| now.since(begun));
        let (in_flight, oldest) =
            ages.fold((0, None), |(count, oldest), age| (count + 1, oldest.max(Some(age))));
        StorageSnapshot {
            image: self.image.clone(),
            in_flight,
            limit: self.limit as u64,
            oldest_ms: oldest.map(|age| age.as_millis() as u64),
            // Without a part, the device has ended, and the image is being closed.
            waiting: parts.is_empty() || parts.iter().any(|part| part.is_waiting()),
        }
    }
}

impl PartUse {
    /// The use of the image by all parts.
    pub fn storage(&self) -> &Arc<StorageUse> {
        &self.storage
    }

    /// Notes that the request in a slot is in flight since a tick.
    pub fn begin(&self, slot: usize, at: Tick) {
        self.set(slot, at.0);
    }

    /// Notes that the request in a slot has ended.
    pub fn end(&self, slot: usize) {
        self.set(slot, 0);
    }

    fn set(&self, slot: usize, begun: u32) {
        // A request beyond the limit is not counted.
        self.begun.get(slot).into_iter().for_each(|entry| entry.store(begun, Ordering::Relaxed));
    }

    /// Notes whether a reset, or the end of the device, waits for storage.
    pub fn set_waiting(&self, waits: bool) {
        self.is_waiting.store(waits, Ordering::Relaxed);
    }

    fn is_waiting(&self) -> bool {
        self.is_waiting.load(Ordering::Relaxed)
    }
}

/// A snapshot of a disk's use of its image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StorageSnapshot {
    /// The image's path. The image is locked.
    pub image: String,
    /// Number of requests in flight, those of a driver that is gone included.
    pub in_flight: u64,
    /// The configured limit of that number.
    pub limit: u64,
    /// The age of the oldest of these requests in milliseconds, give or take 10.
    pub oldest_ms: Option<u64>,
    /// Whether a reset, or the end of the device, waits for these requests or for the image to be
    /// closed.
    pub waiting: bool,
}

impl fmt::Display for StorageSnapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} request(s) in flight", self.in_flight, self.limit)?;
        if let Some(age) = self.oldest_ms {
            write!(f, ", the oldest for {}.{} s", age / 1000, age % 1000 / 100)?;
        }
        write!(f, ", image {:?}", self.image)?;
        if self.waiting { write!(f, " locked") } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tick(ms: u64) -> Tick {
        Tick::at(Duration::from_millis(ms))
    }

    #[test]
    fn snapshot_counts_requests_and_tells_the_age_of_the_oldest() {
        let storage = Arc::new(StorageUse::new("/a \"disk\"".to_owned(), 3));
        let (part, other) = (StorageUse::add_part(&storage), StorageUse::add_part(&storage));
        let shown = |ms| storage.snapshot_at(tick(ms)).to_string();
        assert_eq!(shown(5), "0 of 3 request(s) in flight, image \"/a \\\"disk\\\"\"");
        part.begin(2, tick(1000));
        other.begin(0, tick(2000));
        other.begin(3, tick(1));
        let text = "2 of 3 request(s) in flight, the oldest for 2.5 s, image \"/a \\\"disk\\\"\"";
        assert_eq!(shown(3500), text);
        other.set_waiting(true);
        part.end(2);
        let text =
            "1 of 3 request(s) in flight, the oldest for 1.5 s, image \"/a \\\"disk\\\"\" locked";
        assert_eq!(shown(3500), text);
        drop(other);
        assert!(!storage.snapshot().waiting);
        drop(part);
        assert!(storage.snapshot().waiting, "the image is not closed");
    }

    #[test]
    fn ages_are_right_when_the_tick_wraps() {
        let storage = Arc::new(StorageUse::new(String::new(), 1));
        let part = StorageUse::add_part(&storage);
        part.begin(0, tick((1 << 32) - 100));
        assert_eq!(storage.snapshot_at(tick((1 << 32) + 400)).oldest_ms, Some(500));
    }

    #[test]
    fn the_requests_of_a_driver_take_one_line_of_the_log() {
        let storage = StorageUse::default();
        assert!(storage.takes_log_line() && !storage.takes_log_line());
        storage.begin_use();
        assert!(storage.takes_log_line());
    }

    #[test]
    fn kernel_tick_moves() {
        let end = std::time::Instant::now() + Duration::from_secs(10);
        let first = Tick::now();
        while Tick::now() == first {
            assert!(std::time::Instant::now() < end, "waited 10 s for the kernel's tick");
        }
    }
}
