//! A simulated hypervisor behind the traits of the crate `xen`: grant tables with permissions and
//! revocation, event channels, XenStore with watches.
//!
//! Guests' pages are real shared memory and mappings are real mappings, so an access that the
//! hypervisor would not allow faults in the test process. The simulation notes violations by a
//! guest or a backend, and [`Hypervisor::assert_clean`] fails the test for them. The handles have
//! the limits of the real ones ([`Limits`]), and delay calls at random if the environment asks for
//! it.
//!
//! ```
//! use xen::{Access, DomId, GrantTable, Xen};
//! use xen_sim::Hypervisor;
//!
//! # fn main() -> std::io::Result<()> {
//! let hypervisor = Hypervisor::default();
//! let mut guest = hypervisor.guest(1, 16);
//! let page = guest.allocate();
//! let reference = guest.grant(&[page], Access::ReadOnly);
//!
//! let grants = hypervisor.grants(DomId(1))?;
//! assert!(grants.map(&[reference], Access::ReadOnly).is_ok());
//! assert!(grants.map(&[reference], Access::ReadWrite).is_err(), "the grant is read-only");
//!
//! // A guest cannot end a grant that is mapped; the simulator reports it.
//! assert_eq!(hypervisor.mapped_pages(DomId(1)), 0);
//! guest.revoke(reference, 1);
//! hypervisor.assert_clean();
//! # Ok(())
//! # }
//! ```
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "only tests and benchmarks use this crate"
)]

mod delays;
mod events;
mod frames;
mod grants;
mod guest;
mod limits;
mod store;

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

pub use self::events::{GuestPort, SimEvents};
pub use self::frames::{FramePages, SimFrames};
pub use self::grants::SimGrants;
pub use self::guest::{Addresses, Guest, GuestPage};
pub use self::limits::{Limits, StoreQuota};
pub use self::store::{SimStore, Watch};
use xen::{DomId, StoreError, Xen};

/// The state of the hypervisor and of xenstored.
#[derive(Default)]
struct World {
    grants: grants::GrantTables,
    channels: events::Channels,
    store: store::Tree,
    memories: BTreeMap<DomId, SimFrames>,
    limits: Limits,
    violations: Vec<String>,
}

/// The simulated hypervisor; clones share one state.
#[derive(Clone, Default)]
pub struct Hypervisor(Arc<Mutex<World>>);

impl Hypervisor {
    fn world(&self) -> MutexGuard<'_, World> {
        // A test that panics with the lock held must not make every clean-up after it panic too.
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Creates a domain with `pages` pages of memory.
    pub fn guest(&self, id: u16, pages: usize) -> Guest {
        Guest::new(self.clone(), DomId(id), pages)
    }

    /// Returns the memory of an existing domain, for a platform without grants.
    pub fn frames(&self, guest: DomId) -> SimFrames {
        self.world().memories[&guest].clone()
    }

    /// Number of pages of `guest` that this domain has mapped through grants. A page counts once
    /// for each of its mappings.
    pub fn mapped_pages(&self, guest: DomId) -> usize {
        self.world().grants.mapped(guest)
    }

    /// Number of successful map calls so far: on real Xen one hypercall each.
    pub fn map_calls(&self) -> usize {
        self.world().grants.map_calls
    }

    /// Limits this domain to `pages` mapped pages, as its map tracking does.
    pub fn limit_mapped(&self, pages: usize) {
        self.limit(|limits| limits.tracked_pages = pages);
    }

    /// Changes the limits of this domain's handles.
    pub fn limit(&self, change: impl FnOnce(&mut Limits)) {
        change(&mut self.world().limits);
    }

    /// Number of event channels that are bound to this domain.
    pub fn bound_ports(&self) -> usize {
        self.world().channels.bound()
    }

    /// Fails the test if a grant still exists or is mapped, a port is still bound, or somebody
    /// broke a rule.
    pub fn assert_clean(&self) {
        let world = self.world();
        assert_eq!(world.violations, Vec::<String>::new(), "rules broken");
        assert_eq!(world.grants.describe(), Vec::<String>::new(), "grants left");
        assert_eq!(world.channels.bound(), 0, "event channels left bound");
    }
}

/// Opens Dom0's handles.
impl Xen for Hypervisor {
    type Grants = SimGrants;
    type Events = SimEvents;
    type Store = SimStore;

    fn grants(&self, guest: DomId) -> io::Result<SimGrants> {
        Ok(SimGrants::new(self.clone(), guest))
    }

    fn events(&self, guest: DomId) -> io::Result<SimEvents> {
        SimEvents::new(self.clone(), guest)
    }

    fn store(&self) -> Result<SimStore, StoreError> {
        SimStore::new(self.clone())
    }
}
