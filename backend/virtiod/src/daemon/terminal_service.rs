//! The terminals of consoles in guests' processes. They stay when a process dies, and with systemd
//! when the daemon does.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};

use super::descriptor_store::{DescriptorStore, StoredDescriptors};
use crate::Causes;
use crate::bus::DevicePath;
use crate::device::console::Pty;

/// Ends of the names of a terminal's descriptors in the store; the device's record's is in front.
const OURS: &str = ".terminal";
const THEIRS: &str = ".terminal-program";

/// The open terminals.
#[derive(Clone)]
pub(super) struct KeptTerminals {
    /// By the names of the devices' records.
    all: Arc<Mutex<BTreeMap<String, Pty>>>,
    store: Arc<dyn DescriptorStore>,
}

impl KeptTerminals {
    /// The terminals that an earlier daemon left.
    pub(super) fn restore(stored: &mut StoredDescriptors) -> Self {
        let store = stored.store();
        let mut theirs: BTreeMap<_, _> = stored.take_with(THEIRS).into_iter().collect();
        let mut all = BTreeMap::new();
        for (device, ours) in stored.take_with(OURS) {
            let terminal = theirs.remove(&device).ok_or(io::ErrorKind::NotFound.into());
            match terminal.and_then(|theirs| Pty::of_ends([ours, theirs])) {
                Ok(terminal) => drop(all.insert(device, terminal)),
                Err(error) => {
                    tracing::warn!("the terminal of {device} is lost: {}", Causes(&error));
                    forget(&*store, &device);
                }
            }
        }
        theirs.keys().for_each(|device| forget(&*store, device));
        Self { all: Arc::new(Mutex::new(all)), store }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Pty>> {
        self.all.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Opens the terminal of a device, unless it is open; returns its path and copies of both ends.
    ///
    /// # Errors
    /// The kernel's.
    pub(super) fn open(&self, device: &DevicePath) -> io::Result<(PathBuf, [OwnedFd; 2])> {
        let (name, mut all) = (device.record_name(), self.lock());
        if let Some(known) = all.get(&name) {
            known.reset()?;
            return Ok((known.path().to_owned(), known.ends()?));
        }
        let new = Pty::open()?;
        let (path, ends) = (new.path().to_owned(), new.ends()?);
        let [ours, theirs] = &ends;
        self.store.keep(&format!("{name}{OURS}"), ours.as_fd());
        self.store.keep(&format!("{name}{THEIRS}"), theirs.as_fd());
        all.insert(name, new);
        Ok((path, ends))
    }

    /// Closes the terminal of a device that has ended.
    pub(super) fn close(&self, device: &DevicePath) {
        self.close_all_but(|name| name != device.record_name());
    }

    /// Closes the terminals of all devices but these.
    pub(super) fn retain(&self, devices: &BTreeSet<String>) {
        self.close_all_but(|name| devices.contains(name));
    }

    fn close_all_but(&self, stays: impl Fn(&str) -> bool) {
        let closed: Vec<_> = self.lock().extract_if(.., |name, _| !stays(name)).collect();
        closed.iter().for_each(|(name, _)| forget(&*self.store, name));
    }
}

fn forget(store: &dyn DescriptorStore, device: &str) {
    [OURS, THEIRS].iter().for_each(|end| store.forget(&format!("{device}{end}")));
}
