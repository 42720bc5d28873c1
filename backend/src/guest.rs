//! What all devices of one guest share: its log lines and its room, however often devices come and go.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::budget::{DaemonBudget, GuestBudget};
use crate::guest_log::GuestLog;
use crate::xen::DomId;

/// A guest, as far as its devices share something.
#[derive(Clone, Debug)]
pub struct Guest {
    /// Log lines that it can cause.
    pub log: Arc<GuestLog>,
    /// Its room for mappings.
    pub budget: Arc<GuestBudget>,
}

impl Guest {
    /// A guest that has used nothing of what it may.
    pub fn new(daemon: Arc<DaemonBudget>) -> Self {
        Self { log: Arc::default(), budget: Arc::new(GuestBudget::new(daemon)) }
    }
}

/// The guests that have devices.
#[derive(Debug)]
pub struct Guests {
    daemon: Arc<DaemonBudget>,
    all: BTreeMap<DomId, Guest>,
}

impl Guests {
    /// No guest yet.
    pub fn new(daemon: DaemonBudget) -> Self {
        Self { daemon: Arc::new(daemon), all: BTreeMap::new() }
    }

    /// The guest with this number.
    pub fn get(&mut self, id: DomId) -> Guest {
        let daemon = &self.daemon;
        self.all.entry(id).or_insert_with(|| Guest::new(Arc::clone(daemon))).clone()
    }

    /// Forgets the guests of which `has_devices` says that they have none any more.
    pub fn keep(&mut self, has_devices: impl Fn(DomId) -> bool) {
        self.all.retain(|id, _| has_devices(*id));
    }
}
