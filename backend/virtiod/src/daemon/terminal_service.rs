//! The terminals of consoles in guests' processes. They stay when a process dies, and with systemd
//! when the daemon does.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use super::descriptor_store::StoredDescriptors;
use super::kept::Kept;
use crate::Causes;
use crate::bus::DevicePath;
use crate::device::console::Pty;

/// Ends of the names of a terminal's descriptors in the store; the device's record's is in front.
const OURS: &str = ".terminal";
const THEIRS: &str = ".terminal-program";

/// The open terminals.
#[derive(Clone)]
pub(super) struct KeptTerminals(Kept<Pty>);

impl KeptTerminals {
    /// The terminals that an earlier daemon left.
    pub(super) fn restore(stored: &mut StoredDescriptors) -> Self {
        let kept = Kept::new(BTreeMap::new(), stored.store(), &[OURS, THEIRS]);
        let mut theirs: BTreeMap<_, _> = stored.take_with(THEIRS).into_iter().collect();
        for (device, ours) in stored.take_with(OURS) {
            let terminal = theirs.remove(&device).ok_or(io::ErrorKind::NotFound.into());
            match terminal.and_then(|theirs| Pty::of_ends([ours, theirs])) {
                Ok(terminal) => drop(kept.lock().insert(device, terminal)),
                Err(error) => {
                    tracing::warn!("the terminal of {device} is lost: {}", Causes(&error));
                    kept.forget(&device);
                }
            }
        }
        theirs.keys().for_each(|device| kept.forget(device));
        Self(kept)
    }

    /// Opens the terminal of a device, unless it is open; returns its path and copies of both ends.
    ///
    /// # Errors
    /// The kernel's.
    pub(super) fn open(&self, device: &DevicePath) -> io::Result<(PathBuf, [OwnedFd; 2])> {
        let (name, mut all) = (device.record_name(), self.0.lock());
        if let Some(known) = all.get(&name) {
            known.reset()?;
            return Ok((known.path().to_owned(), known.ends()?));
        }
        let new = Pty::open()?;
        let (path, ends) = (new.path().to_owned(), new.ends()?);
        let [ours, theirs] = &ends;
        self.0.store(&name, OURS, ours.as_fd());
        self.0.store(&name, THEIRS, theirs.as_fd());
        all.insert(name, new);
        Ok((path, ends))
    }

    /// Closes the terminal of a device that has ended.
    pub(super) fn close(&self, device: &DevicePath) {
        drop(self.0.take(device));
    }

    /// Closes the terminals of all devices but these.
    pub(super) fn retain(&self, devices: &BTreeSet<String>) {
        drop(self.0.take_others(devices));
    }
}
