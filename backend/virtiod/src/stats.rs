//! What a device did, counted; the numbers behind `xen-virtiod stat`.

use std::collections::BTreeMap;
use std::error::Error;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use serde::{Deserialize, Serialize};

use crate::Causes;
use crate::excerpt::excerpt;
use crate::guest_log::GuestLog;

/// Counters of one device. The device's thread adds, anyone reads; each counter stands for itself,
/// so all orderings are relaxed.
#[derive(Debug, Default)]
pub struct DeviceStats {
    /// Pages of the guest's that are mapped now, the message page among them.
    pub grants_mapped: AtomicU64,
    /// Of these, pages of the pool.
    pub pool_pages: AtomicU64,
    /// Addresses that were reached through a grant.
    pub grant_addresses: AtomicU64,
    /// Addresses in the pool.
    pub pool_addresses: AtomicU64,
    /// Mappings made of granted pages; each is a hypercall or two, and as many again when it ends.
    pub maps: AtomicU64,
    /// Pages that were mapped by them.
    pub maps_pages: AtomicU64,
    /// Copies that the hypervisor made between granted pages and this side; each is a system call,
    /// and in it a hypercall for every 16 parts of pages.
    pub copies: AtomicU64,
    /// Pages that were copied by them.
    pub copies_pages: AtomicU64,
    /// Signals sent to the driver.
    pub events_sent: AtomicU64,
    /// Signals of the driver's that were taken.
    pub events_received: AtomicU64,
    /// Times that the thread waited for something to do.
    pub sleeps: AtomicU64,
    /// Bytes copied from or into buffers, beside what the kernel moves.
    pub bytes_copied: AtomicU64,
    /// Addresses that were refused: raw, not granted, or not for writing.
    pub refused_addresses: AtomicU64,
    /// Messages received, malformed ones among them.
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
    /// Packets for the guest that it was not given.
    pub dropped_to_guest: AtomicU64,
    /// Packets of the guest's that were not sent on.
    pub dropped_from_guest: AtomicU64,
    /// Times that a rate held the device up.
    pub waits: AtomicU64,
    /// Bytes the guest read from the device.
    pub bytes_read: AtomicU64,
    /// Bytes the guest wrote to the device.
    pub bytes_written: AtomicU64,
    /// Connections that a socket device made.
    pub connections: AtomicU64,
    /// Of these, those that are there now.
    pub connections_open: AtomicU64,
    /// Log lines that the guest can cause.
    pub log: Arc<GuestLog>,
    state: Mutex<DeviceState>,
}

/// The part that is not a number.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceState {
    /// What kind of device it is: blk, console, net, rng, vsock. Empty until it is opened.
    pub kind: String,
    /// What the device is doing, in a word: starting, waiting, connected, closed, failed.
    pub state: String,
    /// What a person needs to know to use the device, or set for it: its terminal, its rate.
    pub details: BTreeMap<String, String>,
    /// Negotiated features by name.
    pub features: Vec<String>,
    /// The fault that made the device need a reset, if one did since it was connected.
    pub needs_reset: Option<String>,
    /// Why it is not served, as in the key `error` of the backend's directory.
    pub error: Option<String>,
}

impl DeviceStats {
    /// Nothing counted yet, of a device of the guest that has this log.
    pub fn new(log: Arc<GuestLog>) -> Self {
        Self { log, ..Self::default() }
    }

    /// Adds one.
    pub fn count(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// Changes the part that is not a number.
    pub fn update(&self, change: impl FnOnce(&mut DeviceState)) {
        // A poisoned lock still holds a state worth showing.
        change(&mut self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner()));
    }

    /// The device cannot be served.
    pub fn fail(&self, error: &dyn Error) {
        let text = excerpt(&Causes(error).to_string());
        self.update(|state| (state.state, state.error) = ("failed".to_owned(), Some(text)));
    }

    /// Notes what a person is to know of the device.
    pub fn note(&self, key: &str, value: &str) {
        self.update(|state| drop(state.details.insert(key.to_owned(), value.to_owned())));
    }

    /// What was noted under `key`.
    pub fn noted(&self, key: &str) -> Option<String> {
        let mut value = None;
        self.update(|state| value = state.details.get(key).cloned());
        value
    }

    /// The numbers and states as they are now.
    pub fn snapshot(&self) -> StatsSnapshot {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let mut state = DeviceState::default();
        self.update(|current| state = current.clone());
        StatsSnapshot {
            state,
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

/// A moment of a device's life, as `xen-virtiod stat --json` prints it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StatsSnapshot {
    /// State, features, fault.
    #[serde(flatten)]
    pub state: DeviceState,
    /// Requests by kind.
    pub requests: Requests,
    /// Packets lost by a network device, of which a packet is a request.
    pub dropped: Dropped,
    /// Bytes of data moved.
    pub bytes: ByteCounts,
    /// Times that a rate held the device up.
    pub waits: u64,
    /// A socket device's connections.
    pub connections: Connections,
    /// Guest addresses seen.
    pub addresses: Addresses,
    /// Pages of the guest's that are mapped now.
    pub grants_mapped: u64,
    /// Of these, pages of the pool.
    pub pool_pages: u64,
    /// What serving the device cost.
    pub counts: Counts,
    /// virtio-msg messages received.
    pub messages: MessageCounts,
}

/// Requests by kind.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names of the requests say it")]
pub struct Requests {
    pub read: u64,
    pub write: u64,
    pub flush: u64,
    pub discard: u64,
    pub get_id: u64,
    pub failed: u64,
}

/// Packets lost.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Dropped {
    /// For the guest: too large for its buffers, or these could not be reached.
    pub to_guest: u64,
    /// Of the guest's: malformed, or the host did not take them.
    pub from_guest: u64,
}

/// Bytes of data moved.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ByteCounts {
    /// To the guest.
    pub read: u64,
    /// From the guest.
    pub written: u64,
}

/// A socket device's connections.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Connections {
    /// All so far.
    pub made: u64,
    /// Those there now.
    pub open: u64,
}

/// Guest addresses seen.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Addresses {
    /// Reached through a grant.
    pub grant: u64,
    /// In the pool.
    pub pool: u64,
    /// Refused.
    pub refused: u64,
}

/// What serving the device cost.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Counts {
    /// Mappings made of granted pages; each is a hypercall or two, and as many again when it ends.
    pub maps: u64,
    /// Pages that were mapped by them.
    pub maps_pages: u64,
    /// Copies that the hypervisor made between granted pages and this side; each is a system call,
    /// and in it a hypercall for every 16 parts of pages.
    pub copies: u64,
    /// Pages that were copied by them.
    pub copies_pages: u64,
    /// Signals sent to the driver.
    pub events_sent: u64,
    /// Signals of the driver's that were taken.
    pub events_received: u64,
    /// Times that the thread waited for something to do.
    pub sleeps: u64,
    /// Bytes copied from or into buffers, beside what the kernel moves.
    pub bytes_copied: u64,
}

/// virtio-msg messages received.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MessageCounts {
    /// All.
    pub received: u64,
    /// Of these, dropped.
    pub malformed: u64,
}
