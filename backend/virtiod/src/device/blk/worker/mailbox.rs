//! What a worker reports to one part of its device.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard};

use nix::sys::eventfd::{EfdFlags, EventFd};

use super::{Report, Reports};
use crate::device::blk::facts::DiskFacts;

/// Reports for one part of a device.
pub(super) struct Mailbox {
    state: Mutex<Reports>,
    /// Whether reports wait. A look in passing: who acts on it takes the lock. Relaxed.
    has_reports: AtomicBool,
    /// Readable while reports wait, or when the worker has ended.
    ready: EventFd,
}

impl Mailbox {
    /// # Errors
    /// No descriptor is left.
    pub(super) fn new() -> io::Result<Self> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let ready = EventFd::from_flags(flags)?;
        Ok(Self { state: Mutex::default(), has_reports: AtomicBool::new(false), ready })
    }

    fn state(&self) -> MutexGuard<'_, Reports> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Adds reports, and facts if there are new ones.
    pub(super) fn add(&self, reports: impl IntoIterator<Item = Report>, facts: Option<&DiskFacts>) {
        let mut state = self.state();
        let was_empty = state.is_empty();
        state.list.extend(reports);
        if facts.is_some() {
            state.facts = facts.cloned();
        }
        if was_empty && !state.is_empty() {
            self.signal();
        }
    }

    /// Makes the mailbox readable.
    pub(super) fn signal(&self) {
        self.has_reports.store(true, Ordering::Relaxed);
        // The counter cannot overflow: it is written once for each time it is read.
        let _ = self.ready.write(1);
    }

    pub(super) fn ready(&self) -> &EventFd {
        &self.ready
    }

    pub(super) fn has_reports(&self) -> bool {
        self.has_reports.load(Ordering::Relaxed)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.state().is_empty()
    }

    pub(super) fn take(&self) -> Reports {
        let mut state = self.state();
        if !state.is_empty() {
            // It was written, and only this reads it.
            let _ = self.ready.read();
            self.has_reports.store(false, Ordering::Relaxed);
        }
        std::mem::take(&mut state)
    }
}
