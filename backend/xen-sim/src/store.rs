//! Simulated XenStore: a tree of values, and watches.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nix::sys::eventfd::EventFd;

use super::delays::pause;
use super::events::{event_fd, wait_readable};
use super::{Hypervisor, StoreQuota};
use xen::{DomId, Fired, StoreError, ToolstackStore, XenStore};

/// Maximum payload of a request or an answer, without its header (`XENSTORE_PAYLOAD_MAX`).
const MAX_PAYLOAD: usize = 4096;
/// Maximum payload of a request through the kernel's device, which buffers request and header, 16
/// bytes, in `MAX_PAYLOAD` bytes.
const MAX_REQUEST: usize = MAX_PAYLOAD - 16;
/// Maximum length of an absolute path (`XENSTORE_ABS_PATH_MAX`) and of a relative one
/// (`XENSTORE_REL_PATH_MAX`).
const MAX_ABSOLUTE: usize = 3072;
const MAX_RELATIVE: usize = 2048;
/// The directory that counts against this domain's quota.
const OWN: &str = "/local/domain/0";

/// Values by absolute path, and the watches.
#[derive(Default)]
pub(super) struct Tree {
    values: BTreeMap<String, String>,
    watches: Vec<Registered>,
    /// The paths of all reads and lists of Dom0's clients, while they are recorded.
    requests: Option<Vec<String>>,
    trap: Option<String>,
    vanishing: Option<Vanishing>,
    denied: Option<String>,
}

/// A registered watch.
struct Registered {
    /// The absolute path.
    path: String,
    event: Arc<EventFd>,
    /// Where a client's watches fired; `None` for a test's watch.
    fired: Option<Arc<Mutex<Fired>>>,
}

/// A removal of `top` after a number of reads of `path`, to provoke races.
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
        // A watch fires for changes below its path, and when a node above it is removed.
        for Registered { path: watch, event, fired } in &self.watches {
            let fires = is_below(path, watch) || is_below(watch, path);
            if fires {
                let at = if is_below(path, watch) { path } else { watch };
                // xenstored names the path as the client registered it: relative to its own.
                let at = at.strip_prefix(OWN).map_or(at, |rest| rest.trim_start_matches('/'));
                fired.iter().for_each(|fired| fired.lock().unwrap().add(at.to_owned()));
                event.write(1).unwrap();
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

/// The toolstack's and the guests' view, by absolute path, for tests to write what these would.
impl Hypervisor {
    /// Writes a value and fires the watches on it.
    pub fn store_write(&self, path: &str, value: &str) {
        self.world().store.write(path, value);
    }

    /// As [`Hypervisor::store_write`], several values at once, as a transaction does.
    pub fn store_write_all<'a>(&self, values: impl IntoIterator<Item = (&'a str, &'a str)>) {
        let store = &mut self.world().store;
        values.into_iter().for_each(|(path, value)| store.write(path, value));
    }

    /// Makes the thread panic that next reads this path from Dom0, to simulate a programming error.
    pub fn store_trap(&self, path: &str) {
        self.world().store.trap = Some(path.to_owned());
    }

    /// Removes `top`, as the toolstack would, just after Dom0's `reads`th read of `path` from now.
    pub fn store_remove_after_reads(&self, path: &str, reads: usize, top: &str) {
        let (path, top) = (path.to_owned(), top.to_owned());
        self.world().store.vanishing = Some(Vanishing { path, reads_left: reads, top });
    }

    /// Denies Dom0 this path, as a driver domain may not read everything.
    pub fn store_deny(&self, path: &str) {
        self.world().store.denied = Some(path.to_owned());
    }

    /// Removes a node and all nodes below it.
    pub fn store_remove(&self, path: &str) {
        self.world().store.remove(path);
    }

    /// Begins to record the paths of all reads and lists of Dom0's clients. Returns those that were
    /// recorded since it was called last.
    pub fn store_requests(&self) -> Vec<String> {
        self.world().store.requests.replace(Vec::new()).unwrap_or_default()
    }

    /// Number of watches, those of tests included.
    pub fn store_watches(&self) -> usize {
        self.world().store.watches.len()
    }

    /// Returns the value at `path`, if the node exists.
    pub fn store_read(&self, path: &str) -> Option<String> {
        self.world().store.values.get(path).cloned()
    }

    /// Waits until the value equals `wanted`; fails the test after ten seconds with path and value
    /// in the message.
    pub fn store_wait(&self, path: &str, wanted: Option<&str>) {
        self.store_watch(path).wait(wanted);
    }

    /// Registers a watch on a value, to wait for it later.
    pub fn store_watch(&self, path: &str) -> Watch {
        let (hypervisor, fired) = (self.clone(), Arc::new(event_fd().unwrap()));
        let watch = Registered { path: path.to_owned(), event: Arc::clone(&fired), fired: None };
        self.world().store.watches.push(watch);
        Watch { hypervisor, path: path.to_owned(), fired }
    }
}

/// A test's watch on a value.
pub struct Watch {
    hypervisor: Hypervisor,
    path: String,
    fired: Arc<EventFd>,
}

/// Maximum time that a test waits for a value.
const LIMIT: Duration = Duration::from_secs(10);

impl Watch {
    /// As [`Hypervisor::store_wait`].
    pub fn wait(&self, wanted: Option<&str>) {
        let met = self.wait_for(LIMIT, |value| value == wanted);
        let value = self.hypervisor.store_read(&self.path);
        assert!(met, "{} is {value:?}, not {wanted:?}", self.path);
    }

    /// Waits until `holds` accepts the value, for at most `limit`; returns whether it does.
    pub fn wait_for(&self, limit: Duration, holds: impl Fn(Option<&str>) -> bool) -> bool {
        let end = Instant::now() + limit;
        while !holds(self.hypervisor.store_read(&self.path).as_deref()) {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            wait_readable(&self.fired, left);
            let _ = self.fired.read();
        }
        true
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let fired = &self.fired;
        self.hypervisor.world().store.watches.retain(|other| !Arc::ptr_eq(fired, &other.event));
    }
}

/// Dom0's connection to the simulated XenStore.
pub struct SimStore {
    hypervisor: Hypervisor,
    fired: Arc<EventFd>,
    /// Where watches fired.
    at: Arc<Mutex<Fired>>,
}

impl SimStore {
    pub(super) fn new(hypervisor: Hypervisor) -> Result<Self, StoreError> {
        let fired = event_fd().map_err(|source| StoreError::Connection {
            operation: "open",
            path: "the simulated XenStore".to_owned(),
            source,
        })?;
        Ok(Self { hypervisor, fired: Arc::new(fired), at: Arc::default() })
    }
}

/// Returns the absolute path.
///
/// # Errors
/// The client's error for a request that is too long, xenstored's for an invalid path.
fn absolute(operation: &'static str, path: &str, value: &str) -> Result<String, StoreError> {
    if path.len() + 1 + value.len() > MAX_REQUEST || path.contains('\0') {
        return Err(StoreError::TooLong(path.to_owned()));
    }
    // @introduceDomain and @releaseDomain are in no directory.
    let (whole, limit) = match path.starts_with(['/', '@']) {
        true => (path.to_owned(), MAX_ABSOLUTE),
        false => (format!("{OWN}/{path}"), MAX_RELATIVE),
    };
    let known = |letter: char| letter.is_ascii_alphanumeric() || "-/_@".contains(letter);
    let is_path = path.len() <= limit
        && whole.chars().all(known)
        && !whole.contains("//")
        && !whole.ends_with('/');
    if is_path { Ok(whole) } else { Err(refused(operation, path, "EINVAL")) }
}

fn refused(operation: &'static str, path: &str, errno: &str) -> StoreError {
    StoreError::Refused { operation, path: path.to_owned(), errno: errno.to_owned() }
}

impl Tree {
    fn note_request(&mut self, path: &str) {
        if let Some(requests) = &mut self.requests {
            requests.push(path.to_owned());
        }
    }

    /// Checks a write of `value` to `path` against this domain's quota.
    fn check_quota(
        &self,
        quota: Option<StoreQuota>,
        path: &str,
        value: &str,
    ) -> Result<(), StoreError> {
        let Some(quota) = quota else { return Ok(()) };
        let nodes = || self.values.keys().filter(|key| is_below(key, OWN)).count();
        let is_new = !self.values.contains_key(path) && is_below(path, OWN);
        if value.len() >= quota.node_size || is_new && nodes() >= quota.nodes {
            return Err(refused("write", path, "ENOSPC"));
        }
        Ok(())
    }

    /// As [`Tree::write`], within this domain's quota.
    fn write_own(
        &mut self,
        quota: Option<StoreQuota>,
        path: &str,
        value: &str,
    ) -> Result<(), StoreError> {
        self.check_quota(quota, path, value)?;
        self.write(path, value);
        Ok(())
    }
}

impl AsFd for SimStore {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fired.as_fd()
    }
}

impl ToolstackStore for SimStore {
    /// Nobody else changes the store meanwhile; what was done before an error stays.
    fn transact<T, E: From<StoreError>>(
        &mut self,
        mut change: impl FnMut(&mut Self) -> Result<T, E>,
    ) -> Result<T, E> {
        change(self)
    }

    fn create(&mut self, path: &str, _: DomId, _: DomId) -> Result<(), StoreError> {
        self.write(path, "")
    }

    fn share(&mut self, path: &str, _: DomId, _: DomId) -> Result<(), StoreError> {
        absolute("set the permissions of", path, "").map(drop)
    }
}

impl XenStore for SimStore {
    fn read(&mut self, path: &str) -> Result<Option<String>, StoreError> {
        pause();
        let path = absolute("read", path, "")?;
        self.hypervisor.world().store.note_request(&path);
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
        // As on the real connection, an event that arrives together with an answer no longer makes
        // the descriptor readable.
        let _ = self.fired.read();
        Ok(value)
    }

    fn list(&mut self, path: &str) -> Result<Vec<String>, StoreError> {
        pause();
        let path = absolute("list", path, "")?;
        let (top, mut world) = (format!("{path}/"), self.hypervisor.world());
        world.store.note_request(&path);
        let below = world.store.values.keys().filter_map(|key| key.strip_prefix(&top));
        let mut names: Vec<_> =
            below.filter_map(|rest| rest.split('/').next()).map(str::to_owned).collect();
        names.dedup();
        Ok(names)
    }

    fn write(&mut self, path: &str, value: &str) -> Result<(), StoreError> {
        pause();
        let path = absolute("write", path, value)?;
        let mut world = self.hypervisor.world();
        let quota = world.limits.store;
        world.store.write_own(quota, &path, value)
    }

    fn write_beside(&mut self, existing: &str, path: &str, value: &str) -> Result<(), StoreError> {
        pause();
        let existing = absolute("read", existing, "")?;
        let path = absolute("write", path, value)?;
        let mut world = self.hypervisor.world();
        let quota = world.limits.store;
        if world.store.values.contains_key(&existing) {
            world.store.write_own(quota, &path, value)?;
        }
        Ok(())
    }

    fn remove(&mut self, path: &str) -> Result<(), StoreError> {
        pause();
        self.hypervisor.store_remove(&absolute("remove", path, "")?);
        Ok(())
    }

    fn watch(&mut self, path: &str) -> Result<(), StoreError> {
        pause();
        let watched = absolute("watch", path, "watch\0")?;
        let mut world = self.hypervisor.world();
        let quota = world.limits.store;
        if quota.is_some_and(|quota| world.store.watches.len() >= quota.watches) {
            return Err(refused("watch", path, "E2BIG"));
        }
        let (event, fired) = (Arc::clone(&self.fired), Some(Arc::clone(&self.at)));
        world.store.watches.push(Registered { path: watched, event, fired });
        drop(world);
        self.at.lock().unwrap().add(path.to_owned());
        self.fired.write(1).unwrap();
        Ok(())
    }

    fn take_fired(&mut self) -> Result<Fired, StoreError> {
        pause();
        let _ = self.fired.read();
        Ok(std::mem::take(&mut *self.at.lock().unwrap()))
    }
}

impl Drop for SimStore {
    fn drop(&mut self) {
        let fired = &self.fired;
        self.hypervisor.world().store.watches.retain(|other| !Arc::ptr_eq(fired, &other.event));
    }
}
