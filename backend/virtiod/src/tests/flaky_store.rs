//! A XenStore that refuses writes, or is lost, on a test's request. Event channels may be refused,
//! too.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

use xen::{DomId, Fired, StoreError, Xen, XenStore};
use xen_sim::{Hypervisor, SimEvents, SimGrants, SimStore};

/// Maximum time to wait for a refusal.
const LIMIT: Duration = Duration::from_secs(10);

/// The outcome of a new connection.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Connecting {
    #[default]
    Good,
    /// It fails: xenstored is gone, or no descriptor is free.
    Refused,
    /// It hangs: xenstored does not answer.
    Hanging,
}

/// The current faults of XenStore.
#[derive(Default)]
struct State {
    /// Refused writes: the end of the key, the error, the number of refusals left.
    refused: Option<(String, &'static str, usize)>,
    /// Connections with a lower number are lost.
    lost_below: usize,
    /// The outcome of a new connection.
    connecting: Connecting,
    connections: usize,
    refusals: usize,
    /// Whether no descriptor is left for event channels.
    lacks_events: bool,
}

/// The simulated hypervisor with a XenStore that fails.
#[derive(Clone, Default)]
pub(super) struct FlakyXen {
    pub(super) hypervisor: Hypervisor,
    state: Arc<Mutex<State>>,
    refused: Arc<Condvar>,
    changed: Arc<Condvar>,
}

impl FlakyXen {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Refuses the next `times` changes of keys that end with `end`.
    pub(super) fn refuse(&self, end: &str, errno: &'static str, times: usize) {
        self.state().refused = Some((end.to_owned(), errno, times));
    }

    /// Refuses to open event channels, for lack of a descriptor, or no longer.
    pub(super) fn lack_events(&self, lacks: bool) {
        self.state().lacks_events = lacks;
    }

    /// Number of refused changes so far.
    pub(super) fn refusals(&self) -> usize {
        self.state().refusals
    }

    /// Waits until `count` changes were refused.
    pub(super) fn wait_refusals(&self, count: usize) {
        let fewer = |state: &mut State| state.refusals < count;
        let (state, waited) = self.refused.wait_timeout_while(self.state(), LIMIT, fewer).unwrap();
        assert!(!waited.timed_out(), "{} of {count} changes refused", state.refusals);
    }

    /// Number of connections made so far.
    pub(super) fn connections(&self) -> usize {
        self.state().connections
    }

    /// Simulates the death of xenstored.
    pub(super) fn lose(&self) {
        let mut state = self.state();
        (state.lost_below, state.connecting) = (state.connections, Connecting::Refused);
    }

    /// Simulates a hung xenstored: connected clients get no answer in time, and new connections
    /// wait.
    pub(super) fn hang(&self) {
        let mut state = self.state();
        (state.lost_below, state.connecting) = (state.connections, Connecting::Hanging);
    }

    /// Refuses new connections; existing ones continue.
    pub(super) fn refuse_connections(&self) {
        self.state().connecting = Connecting::Refused;
    }

    /// Restores xenstored.
    pub(super) fn restore(&self) {
        self.state().connecting = Connecting::Good;
        self.changed.notify_all();
    }
}

impl Xen for FlakyXen {
    type Grants = SimGrants;
    type Events = SimEvents;
    type Store = FlakyStore;

    fn grants(&self, guest: DomId) -> io::Result<SimGrants> {
        self.hypervisor.grants(guest)
    }

    fn events(&self, guest: DomId) -> io::Result<SimEvents> {
        let mut state = self.state();
        if state.lacks_events {
            state.refusals += 1;
            self.refused.notify_all();
            return Err(io::Error::from_raw_os_error(nix::libc::EMFILE));
        }
        self.hypervisor.events(guest)
    }

    fn store(&self) -> Result<FlakyStore, StoreError> {
        let hangs = |state: &mut State| state.connecting == Connecting::Hanging;
        let mut state = self.changed.wait_while(self.state(), hangs).unwrap();
        if state.connecting == Connecting::Refused {
            return Err(lost("connect to"));
        }
        let store = self.hypervisor.store()?;
        state.connections += 1;
        Ok(FlakyStore { store, number: state.connections - 1, xen: self.clone() })
    }
}

fn lost(operation: &'static str) -> StoreError {
    let (path, source) = ("the simulated XenStore".to_owned(), io::ErrorKind::BrokenPipe.into());
    StoreError::Connection { operation, path, source }
}

/// A connection.
pub(super) struct FlakyStore {
    store: SimStore,
    number: usize,
    xen: FlakyXen,
}

impl FlakyStore {
    /// Returns the connection, unless it is lost.
    fn there(&mut self) -> Result<&mut SimStore, StoreError> {
        if self.number < self.xen.state().lost_below {
            return Err(lost("read from"));
        }
        Ok(&mut self.store)
    }

    /// As [`FlakyStore::there`], to change `path`.
    fn changing(&mut self, path: &str) -> Result<&mut SimStore, StoreError> {
        let mut state = self.xen.state();
        let State { refused, refusals, .. } = &mut *state;
        let refused = refused.as_mut().filter(|(end, _, left)| path.ends_with(&**end) && *left > 0);
        if let Some((_, errno, left)) = refused {
            (*left, *refusals) = (*left - 1, *refusals + 1);
            self.xen.refused.notify_all();
            let (operation, errno) = ("change", (*errno).to_owned());
            return Err(StoreError::Refused { operation, path: path.to_owned(), errno });
        }
        drop(state);
        self.there()
    }
}

impl AsFd for FlakyStore {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.store.as_fd()
    }
}

impl XenStore for FlakyStore {
    fn read(&mut self, path: &str) -> Result<Option<String>, StoreError> {
        self.there()?.read(path)
    }

    fn list(&mut self, path: &str) -> Result<Vec<String>, StoreError> {
        self.there()?.list(path)
    }

    fn write(&mut self, path: &str, value: &str) -> Result<(), StoreError> {
        self.changing(path)?.write(path, value)
    }

    fn write_beside(&mut self, existing: &str, path: &str, value: &str) -> Result<(), StoreError> {
        self.changing(path)?.write_beside(existing, path, value)
    }

    fn remove(&mut self, path: &str) -> Result<(), StoreError> {
        self.changing(path)?.remove(path)
    }

    fn watch(&mut self, path: &str) -> Result<(), StoreError> {
        self.there()?.watch(path)
    }

    fn take_fired(&mut self) -> Result<Fired, StoreError> {
        self.there()?.take_fired()
    }
}
