//! A simulated hypervisor behind the handles: grant tables with permissions and revocation, event
//! channels, XenStore with watches.
//!
//! Guests' pages are real shared memory and mappings are real mappings, so an access that the
//! hypervisor would not allow is a fault of the test process. What a guest or a backend must not do
//! is noted, and [`Hypervisor::assert_clean`] fails the test for it. The handles have the limits of
//! the real ones ([`Limits`]), and answer late at random where the environment asks for it.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "it is for tests and benchmarks"
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

/// What the hypervisor knows.
#[derive(Default)]
struct World {
    grants: grants::GrantTables,
    channels: events::Channels,
    store: store::Tree,
    memories: BTreeMap<DomId, SimFrames>,
    limits: Limits,
    violations: Vec<String>,
}

/// The hypervisor; clones are the same one.
#[derive(Clone, Default)]
pub struct Hypervisor(Arc<Mutex<World>>);

impl Hypervisor {
    fn world(&self) -> MutexGuard<'_, World> {
        // A test that failed with the lock held must not fail everything that cleans up after it.
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// A new domain with `pages` pages of memory.
    pub fn guest(&self, id: u16, pages: usize) -> Guest {
        Guest::new(self.clone(), DomId(id), pages)
    }

    /// The memory of a domain that was made, for a platform that does without grants.
    pub fn frames(&self, guest: DomId) -> SimFrames {
        self.world().memories[&guest].clone()
    }

    /// Pages of `guest` that are mapped by this domain by grants, a page counting as often as it is
    /// mapped.
    pub fn mapped_pages(&self, guest: DomId) -> usize {
        self.world().grants.mapped(guest)
    }

    /// Mappings made so far, refused ones left out: on real Xen a hypercall each.
    pub fn map_calls(&self) -> usize {
        self.world().grants.map_calls
    }

    /// Lets this domain have no more than `pages` pages mapped, as its map tracking does.
    pub fn limit_mapped(&self, pages: usize) {
        self.limit(|limits| limits.tracked_pages = pages);
    }

    /// Changes what this domain's handles have room for.
    pub fn limit(&self, change: impl FnOnce(&mut Limits)) {
        change(&mut self.world().limits);
    }

    /// Event channels that are bound to this domain.
    pub fn bound_ports(&self) -> usize {
        self.world().channels.bound()
    }

    /// Fails the test if a grant is still there or mapped, a port is still bound, or a rule was
    /// broken.
    pub fn assert_clean(&self) {
        let world = self.world();
        assert_eq!(world.violations, Vec::<String>::new(), "rules broken");
        assert_eq!(world.grants.describe(), Vec::<String>::new(), "grants left");
        assert_eq!(world.channels.bound(), 0, "event channels left bound");
    }
}

/// Dom0's handles.
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
