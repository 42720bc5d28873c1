//! Budgets of guests for mappings.
//!
//! Xen tracks each page that a domain maps in a table of limited size, and Linux limits the
//! mappings of a process. A guest decides how many of both its requests need, so the daemon counts
//! them before it maps: for each guest, so that no guest takes the others' share, and for the whole
//! daemon. Pools may use only a part, which leaves capacity for requests, and requests leave
//! capacity for rings.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::shared_count::SharedCount;

/// The purpose of a mapping. Each purpose may use capacity that those before it may not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// The shared pool of a device. Without it, requests are slower.
    SharedPool,
    /// Buffers of requests. Without them, a request fails.
    Requests,
    /// Rings and message pages. Without them, the device does not work.
    Rings,
}

/// The maximum total use that a reservation for each [`Purpose`] may lead to.
#[derive(Clone, Copy, Debug)]
struct Ceilings {
    pool: u32,
    requests: u32,
    rings: u32,
}

impl Ceilings {
    fn of(self, purpose: Purpose) -> u32 {
        match purpose {
            Purpose::SharedPool => self.pool,
            Purpose::Requests => self.requests,
            Purpose::Rings => self.rings,
        }
    }

    /// Half of `all` for pools, another quarter for requests, and the last quarter for rings.
    const fn sharing(all: u32) -> Self {
        Self { pool: all / 2, requests: all / 4 * 3, rings: all }
    }
}

/// Pages that Xen's map tracking can hold: 1024 frames by default, of 256 entries each. A PV domain
/// needs two entries for each page.
const MAP_TRACKING_PAGES: u32 = 1024 * 256 / 2;
/// Linux' default limit of a process's mappings, used if the kernel's own value cannot be read.
const USUAL_MAPPINGS: u32 = 65_530;
/// Mappings kept for the process itself: libraries, stacks, heaps.
const OWN_MAPPINGS: u32 = 4096;

/// Pages of one guest: as many as it can grant by default, with capacity for a large request of
/// each of a few devices beside its pools. The number of its devices bounds its rings.
const GUEST_PAGES: Ceilings = Ceilings { pool: 24_576, requests: 32_768, rings: u32::MAX };
/// Mappings of one guest. Its driver shares the pool in chunks of 64 pages.
const GUEST_MAPPINGS: Ceilings = Ceilings { pool: 1024, requests: 4096, rings: u32::MAX };

/// A reservation beyond the budget.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BudgetError {
    /// The guest has used up its budget.
    #[error("the guest has {used} {what} mapped; the limit for this purpose is {most}")]
    Guest {
        /// Counted unit: page(s) or range(s).
        what: &'static str,
        /// Units in use.
        used: u32,
        /// The limit for this purpose.
        most: u32,
    },
    /// All guests together have used up the daemon's budget.
    #[error("all guests have {used} {what} mapped; the limit for this purpose is {most}")]
    Daemon {
        /// Counted unit: page(s) or range(s).
        what: &'static str,
        /// Units in use.
        used: u32,
        /// The limit for this purpose.
        most: u32,
    },
}

/// A counter with ceilings. Threads use only its value, and no other memory depends on it, so all
/// orderings are relaxed.
#[derive(Debug)]
struct Counter {
    what: &'static str,
    used: AtomicU32,
    ceilings: Ceilings,
    /// The same units of all processes of the daemon, if there are several.
    shared: Option<SharedCount>,
}

impl Counter {
    const fn new(what: &'static str, ceilings: Ceilings) -> Self {
        Self { what, used: AtomicU32::new(0), ceilings, shared: None }
    }

    /// Takes `count` units, or returns the units in use and the limit.
    fn take(&self, count: u32, purpose: Purpose) -> Result<(), (u32, u32)> {
        let most = self.ceilings.of(purpose);
        if let Some(shared) = &self.shared {
            return shared.take(count, most).map_err(|used| (used, most));
        }
        let more = |used: u32| used.checked_add(count).filter(|all| *all <= most);
        let taken = self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
        taken.map(drop).map_err(|used| (used, most))
    }

    fn give_back(&self, count: u32) {
        match &self.shared {
            Some(shared) => shared.give_back(count),
            None => drop(self.used.fetch_sub(count, Ordering::Relaxed)),
        }
    }
}

/// Counters of pages and of mappings.
#[derive(Debug)]
struct Capacity {
    pages: Counter,
    mappings: Counter,
}

impl Capacity {
    const fn new(pages: Ceilings, mappings: Ceilings) -> Self {
        Self { pages: Counter::new("page(s)", pages), mappings: Counter::new("range(s)", mappings) }
    }

    /// Takes capacity for one mapping of `pages` pages.
    fn take(
        &self,
        pages: u32,
        purpose: Purpose,
        error: impl Fn(&'static str, (u32, u32)) -> BudgetError,
    ) -> Result<(), BudgetError> {
        let taken = self.pages.take(pages, purpose);
        taken.map_err(|numbers| error(self.pages.what, numbers))?;
        self.mappings.take(1, purpose).map_err(|numbers| {
            self.pages.give_back(pages);
            error(self.mappings.what, numbers)
        })
    }

    fn give_back(&self, pages: u32) {
        self.pages.give_back(pages);
        self.mappings.give_back(1);
    }
}

/// The budget of the whole daemon.
#[derive(Debug)]
pub struct DaemonBudget(Capacity);

impl DaemonBudget {
    /// The capacity of this process: Xen's default map tracking and the kernel's limit on mappings.
    pub fn of_this_process() -> Self {
        let most = fs::read_to_string("/proc/sys/vm/max_map_count").ok();
        let most = most.and_then(|text| text.trim().parse().ok()).unwrap_or(USUAL_MAPPINGS);
        let mappings = Ceilings::sharing(most.saturating_sub(OWN_MAPPINGS));
        Self(Capacity::new(Ceilings::sharing(MAP_TRACKING_PAGES), mappings))
    }
}

impl DaemonBudget {
    /// As [`DaemonBudget::of_this_process`], with pages that all processes of the daemon share.
    pub fn of_all_processes(pages: SharedCount) -> Self {
        let mut budget = Self::of_this_process();
        budget.0.pages.shared = Some(pages);
        budget
    }
}

/// The budget of one guest. All devices of the guest share it.
#[derive(Debug)]
pub struct GuestBudget {
    own: Capacity,
    daemon: Arc<DaemonBudget>,
}

impl GuestBudget {
    /// Returns the budget of a guest without mappings.
    pub fn new(daemon: Arc<DaemonBudget>) -> Self {
        Self { own: Capacity::new(GUEST_PAGES, GUEST_MAPPINGS), daemon }
    }

    /// Returns the budget of the only guest of this process.
    pub fn alone() -> Arc<Self> {
        Arc::new(Self::new(Arc::new(DaemonBudget::of_this_process())))
    }

    /// Reserves capacity for one mapping of `pages` pages, until the reservation is dropped.
    ///
    /// # Errors
    /// [`BudgetError`]; then nothing is reserved.
    pub fn reserve(
        self: &Arc<Self>,
        pages: u32,
        purpose: Purpose,
    ) -> Result<Reservation, BudgetError> {
        self.own.take(pages, purpose, |what, (used, most)| BudgetError::Guest {
            what,
            used,
            most,
        })?;
        let daemon = self.daemon.0.take(pages, purpose, |what, (used, most)| BudgetError::Daemon {
            what,
            used,
            most,
        });
        daemon.inspect_err(|_| self.own.give_back(pages))?;
        Ok(Reservation { guest: Arc::clone(self), pages })
    }
}

/// Reserved capacity for one mapping. Dropping this returns it to the budgets.
#[derive(Debug)]
pub struct Reservation {
    guest: Arc<GuestBudget>,
    pages: u32,
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.guest.own.give_back(self.pages);
        self.guest.daemon.0.give_back(self.pages);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn daemon(pages: u32, mappings: u32) -> Arc<DaemonBudget> {
        let capacity = Capacity::new(Ceilings::sharing(pages), Ceilings::sharing(mappings));
        Arc::new(DaemonBudget(capacity))
    }

    fn guest(daemon: &Arc<DaemonBudget>) -> Arc<GuestBudget> {
        Arc::new(GuestBudget::new(Arc::clone(daemon)))
    }

    #[test]
    fn guest_budget_limits_pools_before_requests_and_rings() {
        let daemon = daemon(1 << 20, 1 << 20);
        let guest = guest(&daemon);
        let pool = guest.reserve(GUEST_PAGES.pool, Purpose::SharedPool).unwrap();
        let refused = guest.reserve(1, Purpose::SharedPool).unwrap_err();
        let most = GUEST_PAGES.pool;
        assert_eq!(refused, BudgetError::Guest { what: "page(s)", used: most, most });
        let rest = GUEST_PAGES.requests - GUEST_PAGES.pool;
        let requests = guest.reserve(rest, Purpose::Requests).unwrap();
        assert!(guest.reserve(1, Purpose::Requests).is_err());
        assert!(guest.reserve(1, Purpose::Rings).is_ok());
        drop((pool, requests));
        assert!(
            guest.reserve(GUEST_PAGES.pool, Purpose::SharedPool).is_ok(),
            "the reservation was returned"
        );
    }

    #[test]
    fn guest_budget_counts_mappings_besides_pages() {
        let daemon = daemon(1 << 20, 1 << 20);
        let guest = guest(&daemon);
        let all: Vec<_> = (0..GUEST_MAPPINGS.pool)
            .map(|_| guest.reserve(1, Purpose::SharedPool).unwrap())
            .collect();
        assert!(matches!(
            guest.reserve(1, Purpose::SharedPool),
            Err(BudgetError::Guest { what: "range(s)", .. })
        ));
        drop(all);
        assert_eq!(
            guest.own.pages.used.load(Ordering::Relaxed),
            0,
            "refused reservations do not count"
        );
    }

    #[test]
    fn daemon_budget_keeps_capacity_for_requests_and_rings() {
        let daemon = daemon(40_000, 1 << 20);
        let (greedy, other) = (guest(&daemon), guest(&daemon));
        let _pool = greedy.reserve(20_000, Purpose::SharedPool).unwrap();
        assert!(matches!(other.reserve(1, Purpose::SharedPool), Err(BudgetError::Daemon { .. })));
        assert_eq!(
            other.own.pages.used.load(Ordering::Relaxed),
            0,
            "refused reservations do not count"
        );
        let _requests = greedy.reserve(10_000, Purpose::Requests).unwrap();
        assert!(other.reserve(1, Purpose::Requests).is_err());
        assert!(other.reserve(10_000, Purpose::Rings).is_ok());
    }
}
