//! The terminals of consoles in guests' processes. They stay when a process dies.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};

use crate::bus::DevicePath;
use crate::device::console::Pty;

/// The open terminals.
#[derive(Clone, Debug, Default)]
pub(super) struct KeptTerminals(Arc<Mutex<BTreeMap<DevicePath, Pty>>>);

impl KeptTerminals {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<DevicePath, Pty>> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Opens the terminal of a device, unless it is open; returns its path and copies of both ends.
    ///
    /// # Errors
    /// The kernel's.
    pub(super) fn open(&self, device: &DevicePath) -> io::Result<(PathBuf, [OwnedFd; 2])> {
        let mut all = self.lock();
        if let Some(known) = all.get(device) {
            return Ok((known.path().to_owned(), known.ends()?));
        }
        let new = Pty::open()?;
        let opened = (new.path().to_owned(), new.ends()?);
        all.insert(device.clone(), new);
        Ok(opened)
    }

    /// Closes the terminal of a device that has ended.
    pub(super) fn close(&self, device: &DevicePath) {
        self.lock().remove(device);
    }
}
