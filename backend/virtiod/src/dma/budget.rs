//! What guests may take of this domain's room for mappings.
//!
//! Xen tracks each page that a domain has mapped in a table of limited size, and Linux each mapping
//! of a process. A guest decides how many of both its requests need, so they are counted before
//! they are made: for each guest, so that none can take what others need, and for the whole daemon,
//! with room kept for requests where pools are full, and for rings where requests are.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// What a mapping is for. Each may use room that those before it may not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// The shared pool of a device: without it requests are slower.
    SharedPool,
    /// Buffers of requests: without them a request fails.
    Requests,
    /// Rings and message pages: without them there is no device.
    Rings,
}

/// The most of something that may be in use after it was taken for each [`Purpose`].
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

    /// Half of `all` for pools, another quarter for requests, and the rest for rings.
    const fn sharing(all: u32) -> Self {
        Self { pool: all / 2, requests: all / 4 * 3, rings: all }
    }
}

/// Entries of Xen's map tracking: 1024 frames by default, of 256 entries each. A PV domain needs
/// two a page.
const MAP_TRACKING_PAGES: u32 = 1024 * 256 / 2;
/// Mappings of a process, where the kernel does not say another number.
const USUAL_MAPPINGS: u32 = 65_530;
/// Mappings that are not of guests' pages: libraries, stacks, heaps.
const OWN_MAPPINGS: u32 = 4096;

/// Pages of one guest: as many as it can grant by default, and room for a large request of each of
/// a few devices beside its pools. What rings need is bounded by its devices.
const GUEST_PAGES: Ceilings = Ceilings { pool: 24_576, requests: 32_768, rings: u32::MAX };
/// Mappings of one guest. Its driver shares a pool in pieces of 64 pages.
const GUEST_MAPPINGS: Ceilings = Ceilings { pool: 1024, requests: 4096, rings: u32::MAX };

/// Capacity that is not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BudgetError {
    /// The guest has its share.
    #[error("the guest has {used} {what} mapped, and may have {most} for this")]
    Guest {
        /// Pages or mappings.
        what: &'static str,
        /// In use.
        used: u32,
        /// The most for this purpose.
        most: u32,
    },
    /// All guests together have theirs.
    #[error("all guests have {used} {what} mapped, and may have {most} for this")]
    Daemon {
        /// Pages or mappings.
        what: &'static str,
        /// In use.
        used: u32,
        /// The most for this purpose.
        most: u32,
    },
}

/// Something that is counted. Only the number matters, and nothing is read because of it, so all
/// orderings are relaxed.
#[derive(Debug)]
struct Counter {
    what: &'static str,
    used: AtomicU32,
    ceilings: Ceilings,
}

impl Counter {
    const fn new(what: &'static str, ceilings: Ceilings) -> Self {
        Self { what, used: AtomicU32::new(0), ceilings }
    }

    /// Takes `count`, or gives what is in use and what may be.
    fn take(&self, count: u32, purpose: Purpose) -> Result<(), (u32, u32)> {
        let most = self.ceilings.of(purpose);
        let more = |used: u32| used.checked_add(count).filter(|all| *all <= most);
        let taken = self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
        taken.map(drop).map_err(|used| (used, most))
    }

    fn give_back(&self, count: u32) {
        self.used.fetch_sub(count, Ordering::Relaxed);
    }
}

/// Pages and mappings.
#[derive(Debug)]
struct Capacity {
    pages: Counter,
    mappings: Counter,
}

impl Capacity {
    const fn new(pages: Ceilings, mappings: Ceilings) -> Self {
        Self { pages: Counter::new("page(s)", pages), mappings: Counter::new("range(s)", mappings) }
    }

    /// Takes a mapping of so many pages.
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

/// The room of the whole daemon.
#[derive(Debug)]
pub struct DaemonBudget(Capacity);

impl DaemonBudget {
    /// As much as Xen and the kernel have for this process.
    pub fn of_this_process() -> Self {
        let most = fs::read_to_string("/proc/sys/vm/max_map_count").ok();
        let most = most.and_then(|text| text.trim().parse().ok()).unwrap_or(USUAL_MAPPINGS);
        let mappings = Ceilings::sharing(most.saturating_sub(OWN_MAPPINGS));
        Self(Capacity::new(Ceilings::sharing(MAP_TRACKING_PAGES), mappings))
    }
}

/// One guest's part of the room. All devices of the guest share it.
#[derive(Debug)]
pub struct GuestBudget {
    own: Capacity,
    daemon: Arc<DaemonBudget>,
}

impl GuestBudget {
    /// A guest that has nothing mapped.
    pub fn new(daemon: Arc<DaemonBudget>) -> Self {
        Self { own: Capacity::new(GUEST_PAGES, GUEST_MAPPINGS), daemon }
    }

    /// The only guest of this process.
    pub fn alone() -> Arc<Self> {
        Arc::new(Self::new(Arc::new(DaemonBudget::of_this_process())))
    }

    /// Capacity for one mapping of `pages` pages, until the reservation is dropped.
    ///
    /// # Errors
    /// [`BudgetError`]; nothing is taken then.
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

/// Capacity for one mapping.
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
        let room = Capacity::new(Ceilings::sharing(pages), Ceilings::sharing(mappings));
        Arc::new(DaemonBudget(room))
    }

    fn guest(daemon: &Arc<DaemonBudget>) -> Arc<GuestBudget> {
        Arc::new(GuestBudget::new(Arc::clone(daemon)))
    }

    #[test]
    fn what_a_guest_takes_is_bounded_and_leaves_room_for_its_requests_and_rings() {
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
        assert!(guest.reserve(GUEST_PAGES.pool, Purpose::SharedPool).is_ok(), "it was given back");
    }

    #[test]
    fn small_mappings_are_counted_as_mappings() {
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
        assert_eq!(guest.own.pages.used.load(Ordering::Relaxed), 0, "refused ones count nothing");
    }

    #[test]
    fn guests_that_fill_the_daemon_leave_others_their_requests_and_rings() {
        let daemon = daemon(40_000, 1 << 20);
        let (greedy, other) = (guest(&daemon), guest(&daemon));
        let _pool = greedy.reserve(20_000, Purpose::SharedPool).unwrap();
        assert!(matches!(other.reserve(1, Purpose::SharedPool), Err(BudgetError::Daemon { .. })));
        assert_eq!(other.own.pages.used.load(Ordering::Relaxed), 0, "refused ones count nothing");
        let _requests = greedy.reserve(10_000, Purpose::Requests).unwrap();
        assert!(other.reserve(1, Purpose::Requests).is_err());
        assert!(other.reserve(10_000, Purpose::Rings).is_ok());
    }
}
