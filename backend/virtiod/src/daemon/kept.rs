//! Things of devices that outlive the devices' processes and, where something stores their
//! descriptors, the daemon.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, MutexGuard};

use super::descriptor_store::DescriptorStore;
use crate::bus::DevicePath;

/// One thing for each device, by the name of the device's record.
pub(super) struct Kept<T> {
    all: Arc<Mutex<BTreeMap<String, T>>>,
    store: Arc<dyn DescriptorStore>,
    /// The ends of the names of its descriptors in the store; the record's name is in front.
    ends: &'static [&'static str],
}

impl<T> Clone for Kept<T> {
    fn clone(&self) -> Self {
        Self { all: Arc::clone(&self.all), store: Arc::clone(&self.store), ends: self.ends }
    }
}

impl<T> Kept<T> {
    /// Those that an earlier daemon left in the store.
    pub(super) fn new(
        all: BTreeMap<String, T>,
        store: Arc<dyn DescriptorStore>,
        ends: &'static [&'static str],
    ) -> Self {
        Self { all: Arc::new(Mutex::new(all)), store, ends }
    }

    /// All of them.
    pub(super) fn lock(&self) -> MutexGuard<'_, BTreeMap<String, T>> {
        // They are consistent after every step.
        self.all.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Has the store keep a descriptor of a device's.
    pub(super) fn store(&self, device: &str, end: &str, descriptor: BorrowedFd<'_>) {
        self.store.keep(&format!("{device}{end}"), descriptor);
    }

    /// Has the store forget a device.
    pub(super) fn forget(&self, device: &str) {
        self.ends.iter().for_each(|end| self.store.forget(&format!("{device}{end}")));
    }

    /// Takes that of a device that has ended.
    pub(super) fn take(&self, device: &DevicePath) -> Option<T> {
        let name = device.record_name();
        let taken = self.lock().remove(&name);
        taken.inspect(|_| self.forget(&name))
    }

    /// Takes those of all devices but these.
    pub(super) fn take_others(&self, devices: &BTreeSet<String>) -> Vec<T> {
        let is_other = |name: &String, _: &mut T| !devices.contains(name);
        let taken: Vec<_> = self.lock().extract_if(.., is_other).collect();
        taken.iter().for_each(|(name, _)| self.forget(name));
        taken.into_iter().map(|(_, thing)| thing).collect()
    }
}
