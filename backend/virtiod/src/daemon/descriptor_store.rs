//! Descriptors that outlive the daemon: the next one finds consoles' terminals and the sockets that
//! devices listen on as they were, so that programs keep what they have open.
//!
//! systemd keeps them (`FDSTORE` of sd_notify(3)). Without it, or before version 254 while the unit
//! is stopped, they end with the daemon.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;

use sd_notify::NotifyState;

use crate::Causes;
use uring::inherited::inherited;

/// systemd looks at no descriptor itself.
const NO_POLL: NotifyState<'_> = NotifyState::Custom("FDPOLL=0");

/// Keeps descriptors for the next daemon.
pub trait DescriptorStore: Send + Sync {
    /// Keeps a descriptor under a name, which may have several.
    fn keep(&self, name: &str, descriptor: BorrowedFd<'_>);

    /// Forgets all descriptors with a name.
    fn forget(&self, name: &str);
}

/// systemd's store, which is empty without systemd.
#[derive(Clone, Copy, Debug)]
pub struct SystemdStore;

impl DescriptorStore for SystemdStore {
    fn keep(&self, name: &str, descriptor: BorrowedFd<'_>) {
        let state = [NotifyState::FdStore, NotifyState::FdName(name), NO_POLL];
        warn_of(sd_notify::notify_with_fds(&state, &[descriptor]));
    }

    fn forget(&self, name: &str) {
        warn_of(sd_notify::notify(&[NotifyState::FdStoreRemove, NotifyState::FdName(name)]));
    }
}

fn warn_of(outcome: io::Result<()>) {
    if let Err(error) = outcome {
        tracing::warn!("cannot have systemd keep a descriptor: {}", Causes(&error));
    }
}

/// A store that keeps nothing.
#[derive(Clone, Copy, Debug)]
pub struct NoStore;

impl DescriptorStore for NoStore {
    fn keep(&self, _: &str, _: BorrowedFd<'_>) {}

    fn forget(&self, _: &str) {}
}

/// A store, and what an earlier daemon had it keep.
pub struct StoredDescriptors {
    store: Arc<dyn DescriptorStore>,
    left: Vec<(String, OwnedFd)>,
}

impl StoredDescriptors {
    /// This store, which kept these descriptors.
    pub fn new(store: Arc<dyn DescriptorStore>, left: Vec<(String, OwnedFd)>) -> Self {
        Self { store, left }
    }

    /// Takes what systemd passed to this process. Call it once, before other descriptors are open.
    ///
    /// # Errors
    /// What systemd passed cannot be understood.
    pub fn of_systemd() -> io::Result<Self> {
        let named = sd_notify::listen_fds_with_names()?;
        let names: Vec<_> = named.map(|(_, name)| name).collect();
        let left = names.iter().cloned().zip(inherited(names.len())?).collect();
        Ok(Self::new(Arc::new(SystemdStore), left))
    }

    /// The store.
    pub(super) fn store(&self) -> Arc<dyn DescriptorStore> {
        Arc::clone(&self.store)
    }

    /// Takes those whose names end like this; returns each with the rest of its name.
    pub(super) fn take_with(&mut self, suffix: &str) -> Vec<(String, OwnedFd)> {
        let left = std::mem::take(&mut self.left).into_iter();
        let (taken, left) = left.partition(|(name, _)| name.ends_with(suffix));
        self.left = left;
        let rest = |name: &str| name.strip_suffix(suffix).unwrap_or(name).to_owned();
        let taken: Vec<(String, OwnedFd)> = taken;
        taken.into_iter().map(|(name, descriptor)| (rest(&name), descriptor)).collect()
    }

    /// Has the store forget what is left: nobody knows it.
    pub(super) fn forget_rest(self) {
        for (name, _) in self.left {
            tracing::warn!("an earlier daemon left an unknown descriptor, {name:?}");
            self.store.forget(&name);
        }
    }
}
