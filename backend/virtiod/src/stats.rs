//! Counters and state of a device, which `xen-virtiod stat` shows.

mod latency;
mod storage;

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, Weak};

use serde::{Deserialize, Serialize};
use tracing::Level;

pub use self::latency::{BUCKETS, Latencies, LatencySnapshot, LatencySnapshots, Operation, bound};
pub use self::storage::{PartUse, StorageSnapshot, StorageUse, Tick};
use crate::Causes;
use crate::device::blk::PauseSwitch;
use crate::excerpt::{excerpt, one_line};
use crate::guest_log::GuestLog;

/// The kind of disks.
const DISK: &str = "blk";

/// Counters of one device. The device's thread adds, any thread reads; the counters are independent
/// of each other, so all orderings are relaxed.
#[derive(Debug, Default)]
pub struct DeviceStats {
    /// Currently mapped pages of the guest, the message page included.
    pub grants_mapped: AtomicU64,
    /// The pool's part of `grants_mapped`.
    pub pool_pages: AtomicU64,
    /// Addresses reached through a grant.
    pub grant_addresses: AtomicU64,
    /// Addresses reached in the pool.
    pub pool_addresses: AtomicU64,
    /// Mappings of granted pages; each costs a hypercall or two, and as many again when it ends.
    pub maps: AtomicU64,
    /// Pages in these mappings.
    pub maps_pages: AtomicU64,
    /// Copies by the hypervisor between granted pages and this process; each costs a system call,
    /// and in it a hypercall for every 16 parts of pages.
    pub copies: AtomicU64,
    /// Pages in these copies.
    pub copies_pages: AtomicU64,
    /// Events sent to the driver.
    pub events_sent: AtomicU64,
    /// Events received from the driver.
    pub events_received: AtomicU64,
    /// Times that the device's thread slept.
    pub sleeps: AtomicU64,
    /// Bytes that the daemon copied from or into buffers, without the kernel's own copies.
    pub bytes_copied: AtomicU64,
    /// Refused addresses: raw, not granted, or not granted for writing.
    pub refused_addresses: AtomicU64,
    /// Received messages, malformed ones included.
    pub messages: AtomicU64,
    /// Messages dropped as malformed or unknown.
    pub malformed_messages: AtomicU64,
    /// Read requests served.
    pub reads: AtomicU64,
    /// Write requests served.
    pub writes: AtomicU64,
    /// Flush requests served.
    pub flushes: AtomicU64,
    /// Discard and write-zeroes requests served.
    pub discards: AtomicU64,
    /// Identity requests served.
    pub identities: AtomicU64,
    /// Requests answered with an error.
    pub failed: AtomicU64,
    /// Packets to the guest that were dropped.
    pub dropped_to_guest: AtomicU64,
    /// Packets from the guest that were dropped.
    pub dropped_from_guest: AtomicU64,
    /// Times that a rate limit delayed the device.
    pub waits: AtomicU64,
    /// Bytes the guest read from the device.
    pub bytes_read: AtomicU64,
    /// Bytes the guest wrote to the device.
    pub bytes_written: AtomicU64,
    /// Connections that a socket device made.
    pub connections: AtomicU64,
    /// Currently open connections.
    pub connections_open: AtomicU64,
    /// The times that a disk's requests take.
    pub latency: Latencies,
    /// The rate-limited log of lines that the guest can cause.
    pub log: Arc<GuestLog>,
    /// The guest's name.
    guest: OnceLock<String>,
    state: Mutex<DeviceState>,
    /// A disk's use of its image, until the image is free.
    storage: Mutex<Weak<StorageUse>>,
    /// A disk's switch that pauses it.
    pause: Mutex<Weak<PauseSwitch>>,
    /// The statistics of a device that another process serves.
    remote: Mutex<Remote>,
}

/// Statistics in another process.
pub trait RemoteStats: Send + Sync {
    /// Fetches them.
    fn fetch(&self) -> Fetched;

    /// Lets the device go on, if it is paused. Returns whether the process was told.
    fn resume(&self) -> bool;
}

/// The outcome of fetching statistics.
#[derive(Clone, Debug, PartialEq)]
pub enum Fetched {
    /// These are the latest.
    Latest(Box<StatsSnapshot>),
    /// The process does not answer.
    Silent,
    /// The process is gone, or has no such device any more.
    Gone,
}

/// The statistics of a device that another process serves.
#[derive(Default)]
struct Remote {
    source: Option<Arc<dyn RemoteStats>>,
    latest: Option<StatsSnapshot>,
}

impl fmt::Debug for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Remote").field("latest", &self.latest).finish_non_exhaustive()
    }
}

/// The part of the statistics that is not a counter.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceState {
    /// The kind of device: blk, console, net, rng, vsock. Empty until it is opened.
    pub kind: String,
    /// The device's state: starting, waiting, connected, closed, failed.
    pub state: String,
    /// Notes for users of the device, such as its terminal or its rate.
    pub details: BTreeMap<String, String>,
    /// Negotiated features by name.
    pub features: Vec<String>,
    /// The fault behind DEVICE_NEEDS_RESET, if the device has needed a reset since it connected.
    pub needs_reset: Option<String>,
    /// Why the disk is paused until an operator resumes it.
    #[serde(default)]
    pub paused: Option<String>,
    /// The reason why the device is not served, as in the key `error` of the backend's directory.
    pub error: Option<String>,
}

impl DeviceStats {
    /// Returns zeroed statistics for a device of the guest with this log.
    pub fn new(log: Arc<GuestLog>) -> Self {
        Self { log, ..Self::default() }
    }

    /// Increments `counter`.
    pub fn count(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// Notes the guest's name, which the first call sets.
    pub fn set_guest(&self, name: &str) {
        // A device keeps the name that it had first.
        let _ = self.guest.set(excerpt(name));
    }

    /// Returns the guest's name, if it is known.
    pub fn guest(&self) -> Option<&str> {
        self.guest.get().map(String::as_str)
    }

    /// Changes the state.
    pub fn update(&self, change: impl FnOnce(&mut DeviceState)) {
        // A poisoned lock still holds a consistent state.
        change(&mut self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner()));
    }

    /// Sets the state to failed, with the error.
    pub fn fail(&self, error: &dyn Error) {
        self.fail_because(&Causes(error).to_string());
    }

    /// As [`DeviceStats::fail`], with the text of the error.
    pub fn fail_because(&self, reason: &str) {
        let text = excerpt(reason);
        self.update(|state| (state.state, state.error) = ("failed".to_owned(), Some(text)));
    }

    /// Adds a note for users of the device.
    pub fn note(&self, key: &str, value: &str) {
        self.update(|state| drop(state.details.insert(key.to_owned(), value.to_owned())));
    }

    /// Returns the note under `key`.
    pub fn noted(&self, key: &str) -> Option<String> {
        let mut value = None;
        self.update(|state| value = state.details.get(key).cloned());
        let in_remote = || self.remote().latest.as_ref()?.state.details.get(key).cloned();
        value.or_else(in_remote)
    }

    fn remote(&self) -> MutexGuard<'_, Remote> {
        self.remote.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Sets where the statistics of a device are that another process serves.
    pub fn set_source(&self, source: Option<Arc<dyn RemoteStats>>) {
        self.remote().source = source;
    }

    /// Sets the statistics that another process reports.
    pub fn set_remote(&self, latest: StatsSnapshot) {
        self.remote().latest = Some(latest.harmless());
    }

    /// Fetches the statistics from another process, if that serves the device and answers.
    pub fn refresh(&self) {
        let Some(source) = self.remote().source.clone() else { return };
        match source.fetch() {
            Fetched::Latest(latest) => self.set_remote(*latest),
            Fetched::Silent => {}
            Fetched::Gone => self.note_process_gone(),
        }
    }

    /// Notes that the process which served the device is gone, and what it had mapped with it.
    pub fn note_process_gone(&self) {
        let mut remote = self.remote();
        remote.source = None;
        if let Some(latest) = &mut remote.latest {
            (latest.grants_mapped, latest.pool_pages, latest.storage) = (0, 0, None);
            latest.state.state = "closed".to_owned();
            latest.state.paused = None;
        }
    }

    /// Whether the device's storage has not let go of its image.
    pub fn holds_storage(&self) -> bool {
        let remote = self.remote().latest.as_ref().map(|latest| latest.storage.is_some());
        remote.unwrap_or_else(|| self.storage().is_some())
    }

    /// Refers to a disk's use of its image.
    pub fn set_storage(&self, storage: &Arc<StorageUse>) {
        *self.storage.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) =
            Arc::downgrade(storage);
    }

    /// Refers to the switch that pauses a disk.
    pub fn set_pause(&self, switch: &Arc<PauseSwitch>) {
        *self.pause.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) =
            Arc::downgrade(switch);
    }

    fn pause(&self) -> Option<Arc<PauseSwitch>> {
        self.pause.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).upgrade()
    }

    /// Lets a paused disk go on, here or in the process that serves it. Returns whether it was
    /// paused, or its process was told.
    pub fn resume(&self) -> bool {
        let source = self.remote().source.clone();
        match source {
            Some(source) => source.resume(),
            None => self.pause().is_some_and(|switch| switch.resume()),
        }
    }

    /// Returns a disk's use of its image; `None` if the device has no image, or has given it up.
    pub fn storage(&self) -> Option<Arc<StorageUse>> {
        self.storage.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).upgrade()
    }

    /// Logs that a closed device waits for storage, once for each driver [SPEC 2.7].
    pub fn log_storage_wait(&self) {
        let storage = self.storage();
        if storage.as_ref().is_some_and(|storage| !storage.takes_log_line()) {
            return;
        }
        let shown = storage.map_or_else(String::new, |it| format!(": {}", it.snapshot()));
        self.log.line(
            Level::WARN,
            format_args!(
                "storage does not answer; the device is closed, and its driver's pages stay \
                 mapped until storage does{shown}"
            ),
        );
    }

    /// Returns a snapshot of the counters and the state: those of another process as it reported
    /// them last, with what this one knows besides.
    pub fn snapshot(&self) -> StatsSnapshot {
        let Some(mut latest) = self.remote().latest.clone() else { return self.own_snapshot() };
        self.update(|own| {
            latest.state.details.extend(own.details.clone());
            if own.error.is_some() {
                latest.state.state.clone_from(&own.state);
                latest.state.error.clone_from(&own.error);
            }
        });
        latest
    }

    fn own_snapshot(&self) -> StatsSnapshot {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let mut state = DeviceState::default();
        self.update(|current| state = current.clone());
        state.paused = self.pause().and_then(|switch| switch.reason());
        let latency = (state.kind == DISK).then(|| self.latency.snapshot());
        StatsSnapshot {
            state,
            latency,
            requests: Requests {
                read: read(&self.reads),
                write: read(&self.writes),
                flush: read(&self.flushes),
                discard: read(&self.discards),
                get_id: read(&self.identities),
                failed: read(&self.failed),
            },
            dropped: Dropped {
                to_guest: read(&self.dropped_to_guest),
                from_guest: read(&self.dropped_from_guest),
            },
            bytes: ByteCounts { read: read(&self.bytes_read), written: read(&self.bytes_written) },
            waits: read(&self.waits),
            connections: Connections {
                made: read(&self.connections),
                open: read(&self.connections_open),
            },
            addresses: Addresses {
                grant: read(&self.grant_addresses),
                pool: read(&self.pool_addresses),
                refused: read(&self.refused_addresses),
            },
            storage: self.storage().map(|storage| storage.snapshot()),
            grants_mapped: read(&self.grants_mapped),
            pool_pages: read(&self.pool_pages),
            counts: Counts {
                maps: read(&self.maps),
                maps_pages: read(&self.maps_pages),
                copies: read(&self.copies),
                copies_pages: read(&self.copies_pages),
                events_sent: read(&self.events_sent),
                events_received: read(&self.events_received),
                sleeps: read(&self.sleeps),
                bytes_copied: read(&self.bytes_copied),
            },
            messages: MessageCounts {
                received: read(&self.messages),
                malformed: read(&self.malformed_messages),
            },
        }
    }
}

/// A snapshot of a device's statistics, as `xen-virtiod stat --json` prints it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StatsSnapshot {
    /// State, features and fault.
    #[serde(flatten)]
    pub state: DeviceState,
    /// Requests by kind.
    pub requests: Requests,
    /// The times that a disk's requests take; none for other devices.
    pub latency: Option<LatencySnapshots>,
    /// Dropped packets of a network device, whose requests are packets.
    pub dropped: Dropped,
    /// Bytes of data transferred.
    pub bytes: ByteCounts,
    /// Times that a rate limit delayed the device.
    pub waits: u64,
    /// A socket device's connections.
    pub connections: Connections,
    /// Guest addresses by the way they were reached.
    pub addresses: Addresses,
    /// A disk's use of its image; none after the image is free.
    pub storage: Option<StorageSnapshot>,
    /// Currently mapped pages of the guest.
    pub grants_mapped: u64,
    /// The pool's part of `grants_mapped`.
    pub pool_pages: u64,
    /// The costs of serving the device.
    pub counts: Counts,
    /// Counts of virtio-msg messages.
    pub messages: MessageCounts,
}

impl StatsSnapshot {
    /// The same with texts that a terminal can show: another process wrote them.
    fn harmless(self) -> Self {
        let DeviceState { kind, state, details, features, needs_reset, error, paused } = self.state;
        let details =
            details.iter().take(MOST_DETAILS).map(|(key, value)| (shown(key), shown(value)));
        let state = DeviceState {
            kind: shown(&kind),
            state: shown(&state),
            details: details.collect(),
            features: features.iter().take(64).map(|name| shown(name)).collect(),
            needs_reset: needs_reset.as_deref().map(shown),
            paused: paused.as_deref().map(shown),
            error: error.as_deref().map(shown),
        };
        let storage =
            self.storage.map(|storage| StorageSnapshot { image: shown(&storage.image), ..storage });
        let latency = self.latency.map(LatencySnapshots::harmless);
        Self { state, storage, latency, ..self }
    }
}

/// Maximum number of notes that another process may have for users of a device.
const MOST_DETAILS: usize = 64;

/// A text of at most the usual length, with control characters escaped.
fn shown(text: &str) -> String {
    one_line(&excerpt(text))
}

/// Requests by kind.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names say the kinds of requests")]
pub struct Requests {
    pub read: u64,
    pub write: u64,
    pub flush: u64,
    pub discard: u64,
    pub get_id: u64,
    pub failed: u64,
}

/// Dropped packets.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Dropped {
    /// To the guest: too large for its buffers, or the device could not reach these.
    pub to_guest: u64,
    /// From the guest: malformed, or the host refused them.
    pub from_guest: u64,
}

/// Bytes of data transferred.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ByteCounts {
    /// Bytes that the guest read.
    pub read: u64,
    /// Bytes that the guest wrote.
    pub written: u64,
}

/// A socket device's connections.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Connections {
    /// Connections made so far.
    pub made: u64,
    /// Currently open connections.
    pub open: u64,
}

/// Guest addresses by the way they were reached.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Addresses {
    /// Addresses reached through a grant.
    pub grant: u64,
    /// Addresses reached in the pool.
    pub pool: u64,
    /// Refused addresses.
    pub refused: u64,
}

/// The costs of serving the device.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Counts {
    /// Mappings of granted pages; each costs a hypercall or two, and as many again when it ends.
    pub maps: u64,
    /// Pages in these mappings.
    pub maps_pages: u64,
    /// Copies by the hypervisor between granted pages and this process; each costs a system call,
    /// and in it a hypercall for every 16 parts of pages.
    pub copies: u64,
    /// Pages in these copies.
    pub copies_pages: u64,
    /// Events sent to the driver.
    pub events_sent: u64,
    /// Events received from the driver.
    pub events_received: u64,
    /// Times that the device's thread slept.
    pub sleeps: u64,
    /// Bytes that the daemon copied from or into buffers, without the kernel's own copies.
    pub bytes_copied: u64,
}

/// Counts of virtio-msg messages.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MessageCounts {
    /// Received messages, malformed ones included.
    pub received: u64,
    /// Messages dropped as malformed or unknown.
    pub malformed: u64,
}
