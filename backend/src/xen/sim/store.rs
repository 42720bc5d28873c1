//! XenStore: a tree of values, and watches.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::eventfd::EventFd;

use super::Hypervisor;
use super::events::event_fd;
use crate::xen::{StoreError, XenStore};

/// Values by absolute path, and who watches what.
#[derive(Default)]
pub(super) struct Tree {
    values: BTreeMap<String, String>,
    watches: Vec<(String, Arc<EventFd>)>,
    trap: Option<String>,
    vanishing: Option<Vanishing>,
    denied: Option<String>,
}

/// A removal at the worst moment.
struct Vanishing {
    path: String,
    reads_left: usize,
    top: String,
}

/// Whether `path` is `top` or below it.
fn is_below(path: &str, top: &str) -> bool {
    path.strip_prefix(top).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

impl Tree {
    fn changed(&self, path: &str) {
        // A watch fires for what is below it, and when something above it goes.
        let fires = |watch: &str| is_below(path, watch) || is_below(watch, path);
        for (watch, fired) in &self.watches {
            if fires(watch) {
                fired.write(1).unwrap();
            }
        }
    }

    fn write(&mut self, path: &str, value: &str) {
        self.values.insert(path.to_owned(), value.to_owned());
        self.changed(path);
    }

    fn remove(&mut self, path: &str) {
        self.values.retain(|key, _| !is_below(key, path));
        self.changed(path);
    }
}

/// The toolstack's and the guests' view, by absolute path. They write what a test makes them write.
impl Hypervisor {
    /// Writes a value.
    pub fn store_write(&self, path: &str, value: &str) {
        self.world().store.write(path, value);
    }

    /// Has the thread panic that next reads this path from Dom0: a programming error, played.
    pub fn store_trap(&self, path: &str) {
        self.world().store.trap = Some(path.to_owned());
    }

    /// Has the toolstack remove `top` just when Dom0 has read `path`, `reads` times from now.
    pub fn store_remove_after_reads(&self, path: &str, reads: usize, top: &str) {
        let (path, top) = (path.to_owned(), top.to_owned());
        self.world().store.vanishing = Some(Vanishing { path, reads_left: reads, top });
    }

    /// Lets Dom0 no longer read this path, as a driver domain may not read everything.
    pub fn store_deny(&self, path: &str) {
        self.world().store.denied = Some(path.to_owned());
    }

    /// Removes a node and what is below.
    pub fn store_remove(&self, path: &str) {
        self.world().store.remove(path);
    }

    /// A value.
    pub fn store_read(&self, path: &str) -> Option<String> {
        self.world().store.values.get(path).cloned()
    }

    /// Waits until a value is as it should be; fails the test after ten seconds, naming path and
    /// value.
    pub fn store_wait(&self, path: &str, wanted: Option<&str>) {
        self.store_watch(path).wait(wanted);
    }

    /// Watches a value, to wait for it later.
    pub fn store_watch(&self, path: &str) -> Watch {
        let (hypervisor, fired) = (self.clone(), Arc::new(event_fd().unwrap()));
        self.world().store.watches.push((path.to_owned(), Arc::clone(&fired)));
        Watch { hypervisor, path: path.to_owned(), fired }
    }
}

/// A test's watch on a value.
pub struct Watch {
    hypervisor: Hypervisor,
    path: String,
    fired: Arc<EventFd>,
}

impl Watch {
    /// As [`Hypervisor::store_wait`].
    pub fn wait(&self, wanted: Option<&str>) {
        let value = || self.hypervisor.store_read(&self.path);
        let end = Instant::now() + Duration::from_secs(10);
        while value().as_deref() != wanted {
            assert!(Instant::now() < end, "{} is {:?}, not {wanted:?}", self.path, value());
            let entry = nix::poll::PollFd::new(self.fired.as_fd(), nix::poll::PollFlags::POLLIN);
            nix::poll::poll(&mut [entry], 100u16).unwrap();
            let _ = self.fired.read();
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let fired = &self.fired;
        self.hypervisor.world().store.watches.retain(|(_, other)| !Arc::ptr_eq(fired, other));
    }
}

/// Dom0's connection.
pub struct SimStore {
    hypervisor: Hypervisor,
    fired: Arc<EventFd>,
    /// As on the real connection: a watch event that arrives while an answer is waited for is taken
    /// off the descriptor with it.
    noted: bool,
}

impl SimStore {
    pub(super) fn new(hypervisor: Hypervisor) -> Result<Self, StoreError> {
        let fired = event_fd().map_err(|source| StoreError::Connection {
            operation: "open",
            path: "the simulated XenStore".to_owned(),
            source,
        })?;
        Ok(Self { hypervisor, fired: Arc::new(fired), noted: false })
    }
}

fn absolute(path: &str) -> String {
    if path.starts_with('/') { path.to_owned() } else { format!("/local/domain/0/{path}") }
}

impl AsFd for SimStore {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fired.as_fd()
    }
}

impl XenStore for SimStore {
    fn read(&mut self, path: &str) -> Result<Option<String>, StoreError> {
        let path = absolute(path);
        let trapped = self.hypervisor.world().store.trap.take_if(|trap| *trap == path);
        assert!(trapped.is_none(), "{path} is a trap");
        if self.hypervisor.world().store.denied.as_ref() == Some(&path) {
            return Ok(None);
        }
        let value = self.hypervisor.store_read(&path);
        let vanishing = self.hypervisor.world().store.vanishing.take_if(|vanishing| {
            vanishing.reads_left -= usize::from(vanishing.path == path);
            vanishing.reads_left == 0
        });
        if let Some(Vanishing { top, .. }) = vanishing {
            self.hypervisor.store_remove(&top);
        }
        self.noted |= self.fired.read().is_ok();
        Ok(value)
    }

    fn list(&mut self, path: &str) -> Result<Vec<String>, StoreError> {
        let top = format!("{}/", absolute(path));
        let world = self.hypervisor.world();
        let below = world.store.values.keys().filter_map(|key| key.strip_prefix(&top));
        let mut names: Vec<_> =
            below.filter_map(|rest| rest.split('/').next()).map(str::to_owned).collect();
        names.dedup();
        Ok(names)
    }

    fn write(&mut self, path: &str, value: &str) -> Result<(), StoreError> {
        self.hypervisor.store_write(&absolute(path), value);
        Ok(())
    }

    fn write_beside(&mut self, existing: &str, path: &str, value: &str) -> Result<(), StoreError> {
        let store = &mut self.hypervisor.world().store;
        if store.values.contains_key(&absolute(existing)) {
            store.write(&absolute(path), value);
        }
        Ok(())
    }

    fn remove(&mut self, path: &str) -> Result<(), StoreError> {
        self.hypervisor.store_remove(&absolute(path));
        Ok(())
    }

    fn watch(&mut self, path: &str) -> Result<(), StoreError> {
        let watch = (absolute(path), Arc::clone(&self.fired));
        self.hypervisor.world().store.watches.push(watch);
        self.fired.write(1).unwrap();
        Ok(())
    }

    fn take_events(&mut self) -> Result<bool, StoreError> {
        Ok(std::mem::take(&mut self.noted) | self.fired.read().is_ok())
    }
}

impl Drop for SimStore {
    fn drop(&mut self) {
        let fired = &self.fired;
        self.hypervisor.world().store.watches.retain(|(_, other)| !Arc::ptr_eq(fired, other));
    }
}
