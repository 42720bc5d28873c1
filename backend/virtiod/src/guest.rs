//! What all devices of one guest share: its log lines and its room, however often devices come and
//! go.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::dma::budget::{DaemonBudget, GuestBudget};
use crate::guest_log::GuestLog;
use xen::DomId;

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_is_the_same_however_often_its_devices_come_and_until_all_are_gone() {
        let mut guests = Guests::new(DaemonBudget::of_this_process());
        let (first, other) = (guests.get(DomId(1)), guests.get(DomId(2)));
        guests.keep(|_| true);
        let again = guests.get(DomId(1));
        assert!(Arc::ptr_eq(&first.log, &again.log) && Arc::ptr_eq(&first.budget, &again.budget));
        assert!(!Arc::ptr_eq(&first.log, &other.log));
        guests.keep(|id| id == DomId(2));
        assert!(!Arc::ptr_eq(&first.log, &guests.get(DomId(1)).log));
    }
}
