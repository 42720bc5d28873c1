//! State that all devices of one guest share: its log lines and its budget, across removals of
//! devices.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::dma::budget::{DaemonBudget, GuestBudget};
use crate::guest_log::GuestLog;
use xen::DomId;

/// The shared state of a guest's devices.
#[derive(Clone, Debug)]
pub struct Guest {
    /// The rate-limited log of lines that the guest can cause.
    pub log: Arc<GuestLog>,
    /// The guest's budget for mappings.
    pub budget: Arc<GuestBudget>,
}

impl Guest {
    /// Returns a guest with an unused log and budget.
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
    /// Returns an empty list of guests.
    pub fn new(daemon: DaemonBudget) -> Self {
        Self { daemon: Arc::new(daemon), all: BTreeMap::new() }
    }

    /// Returns the guest with this id; adds it if it is new.
    pub fn get(&mut self, id: DomId) -> Guest {
        let daemon = &self.daemon;
        self.all.entry(id).or_insert_with(|| Guest::new(Arc::clone(daemon))).clone()
    }

    /// Drops a guest, which has no device any more.
    pub fn drop(&mut self, id: DomId) {
        self.all.remove(&id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_of_a_guest_share_its_state_until_it_is_dropped() {
        let mut guests = Guests::new(DaemonBudget::of_this_process());
        let (first, other) = (guests.get(DomId(1)), guests.get(DomId(2)));
        let again = guests.get(DomId(1));
        assert!(Arc::ptr_eq(&first.log, &again.log) && Arc::ptr_eq(&first.budget, &again.budget));
        assert!(!Arc::ptr_eq(&first.log, &other.log));
        guests.drop(DomId(1));
        assert!(!Arc::ptr_eq(&first.log, &guests.get(DomId(1)).log));
        assert!(Arc::ptr_eq(&other.log, &guests.get(DomId(2)).log));
    }
}
