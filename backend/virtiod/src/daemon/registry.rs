//! The list of present devices, of removed ones that still wait for storage, and of the latest
//! other removed ones, for `xen-virtiod stat`.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::bus::DevicePath;
use crate::guest_log::GuestLog;
use crate::stats::{DeviceStats, StatsSnapshot};

/// Number of removed devices to keep; a further one replaces the oldest.
const HISTORY: usize = 64;
/// Maximum number of removed devices that wait for storage; beyond it the oldest are listed as
/// those that do not.
const MOST_WAITING: usize = 1024;
/// Time after which no further device's statistics are fetched for a report.
const REFRESH_LIMIT: Duration = Duration::from_secs(2);

/// All devices by their paths.
#[derive(Debug, Default)]
pub struct Registry(Mutex<Devices>);

#[derive(Debug, Default)]
struct Devices {
    there: BTreeMap<DevicePath, Arc<DeviceStats>>,
    /// Removed devices whose image is not free yet. A new device may have the same path.
    waiting: Vec<(DevicePath, Arc<DeviceStats>)>,
    gone: VecDeque<(DevicePath, Arc<DeviceStats>)>,
}

impl Devices {
    /// Moves removed devices whose image is free to the others.
    fn sort_out(&mut self) {
        let waits = |(_, stats): &(DevicePath, Arc<DeviceStats>)| stats.holds_storage();
        let (waiting, over) = std::mem::take(&mut self.waiting).into_iter().partition(waits);
        self.waiting = waiting;
        let excess = self.waiting.len().saturating_sub(MOST_WAITING);
        self.gone.extend(self.waiting.drain(..excess));
        self.gone.extend::<Vec<_>>(over);
        while self.gone.len() > HISTORY {
            self.gone.pop_front();
        }
    }
}

/// One device, as `stat` shows it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RegisteredDevice {
    /// The guest's domain id.
    pub domid: u16,
    /// The guest's name when the device was set up; `None` if this domain may not read it, as in a
    /// driver domain.
    pub guest: Option<String>,
    /// Class and number, as in XenStore.
    pub device: String,
    /// Whether the device is removed.
    pub removed: bool,
    /// Counters and state.
    #[serde(flatten)]
    pub stats: StatsSnapshot,
}

/// The answer to `stat`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The present devices by guest, class and number, then the removed ones: those that wait for
    /// storage, then the others, the latest first.
    pub devices: Vec<RegisteredDevice>,
}

impl Report {
    /// Leaves only the devices of one guest, which has this name or domain id.
    pub fn retain_guest(&mut self, named: &str) {
        let is_its = |device: &RegisteredDevice| {
            device.guest.as_deref() == Some(named) || device.domid.to_string() == named
        };
        self.devices.retain(is_its);
    }
}

impl Registry {
    fn lock(&self) -> MutexGuard<'_, Devices> {
        // A panic elsewhere may poison the lock; the list itself is consistent after every step.
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Adds a device of a guest with this log; returns the statistics for its thread.
    pub fn begin(&self, path: &DevicePath, log: Arc<GuestLog>) -> Arc<DeviceStats> {
        let stats = Arc::new(DeviceStats::new(log));
        self.lock().there.insert(path.clone(), Arc::clone(&stats));
        stats
    }

    /// Moves a device to the removed ones.
    pub fn end(&self, path: &DevicePath) {
        let mut devices = self.lock();
        if let Some(stats) = devices.there.remove(path) {
            devices.waiting.push((path.clone(), stats));
        }
        devices.sort_out();
    }

    /// Forgets a device that begins anew at once, in another process.
    pub fn forget(&self, path: &DevicePath) {
        self.lock().there.remove(path);
    }

    /// Lets a paused device go on: `5 virtio_disk/51712`. Returns whether there is one that was
    /// told.
    pub fn resume(&self, named: &str) -> bool {
        let devices = self.lock();
        let is_it =
            |(path, _): &(&DevicePath, _)| format!("{} {}", path.guest.0, path.name()) == named;
        let found = devices.there.iter().find(is_it).map(|(_, stats)| Arc::clone(stats));
        drop(devices);
        found.is_some_and(|stats| stats.resume())
    }

    /// Returns the other present devices whose note under `key` equals that of the device at
    /// `path`.
    pub fn others_with_same(&self, key: &str, path: &DevicePath) -> Vec<DevicePath> {
        let devices = self.lock();
        let Some(noted) = devices.there.get(path).and_then(|stats| stats.noted(key)) else {
            return Vec::new();
        };
        let others = devices.there.iter().filter(|(other, _)| *other != path);
        let same = others.filter(|(_, stats)| stats.noted(key).as_ref() == Some(&noted));
        same.map(|(other, _)| other.clone()).collect()
    }

    /// Returns a snapshot of all devices. Waits for the processes that serve them, but not for
    /// long.
    pub fn report(&self) -> Report {
        let devices = self.lock();
        let waiting = devices.waiting.iter().map(|(_, stats)| stats);
        let all: Vec<_> = waiting.chain(devices.there.values()).cloned().collect();
        drop(devices);
        let end = Instant::now() + REFRESH_LIMIT;
        all.iter().take_while(|_| Instant::now() < end).for_each(|stats| stats.refresh());
        let mut devices = self.lock();
        devices.sort_out();
        let mut present: Vec<_> = devices.there.iter().collect();
        // Stable: the paths are in the order of classes and numbers.
        present.sort_by_key(|(path, _)| path.guest.0);
        let present = present.into_iter().map(|(path, stats)| device(path, stats, false));
        let removed = devices.waiting.iter().chain(devices.gone.iter().rev());
        let removed = removed.map(|(path, stats)| device(path, stats, true));
        Report { devices: present.chain(removed).collect() }
    }
}

fn device(path: &DevicePath, stats: &DeviceStats, removed: bool) -> RegisteredDevice {
    RegisteredDevice {
        domid: path.guest.0,
        guest: stats.guest().map(str::to_owned),
        device: path.name(),
        removed,
        stats: stats.snapshot(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::StorageUse;
    use xen::DomId;

    fn path(number: u32) -> DevicePath {
        DevicePath { class: "virtio_disk".to_owned(), guest: DomId(1), number }
    }

    #[test]
    fn removed_device_is_listed_while_storage_holds_its_image() {
        let registry = Registry::default();
        let storage = Arc::new(StorageUse::new("/image".to_owned(), 1));
        let begin = |number| registry.begin(&path(number), Arc::<GuestLog>::default());
        begin(0).set_storage(&storage);
        registry.end(&path(0));
        // A new device with the same path, and more removed ones than the history has.
        for number in (1..=HISTORY as u32).chain([0]) {
            begin(number);
            registry.end(&path(number));
        }
        begin(0);
        let waiting = || {
            let devices = registry.report().devices;
            devices.iter().filter(|device| device.stats.storage.is_some()).count()
        };
        assert_eq!((waiting(), registry.report().devices.len()), (1, HISTORY + 2));
        let removed: Vec<_> =
            registry.report().devices.iter().map(|device| device.removed).collect();
        assert!(!removed[0] && removed[1..].iter().all(|removed| *removed), "{removed:?}");
        drop(storage);
        assert_eq!((waiting(), registry.report().devices.len()), (0, HISTORY + 1));
    }

    #[test]
    fn report_begins_with_present_devices_by_guest_and_ends_with_the_first_removed() {
        let registry = Registry::default();
        let begin = |class: &str, guest, number| {
            let path = DevicePath { class: class.to_owned(), guest: DomId(guest), number };
            registry.begin(&path, Arc::<GuestLog>::default()).set_guest(&format!("guest-{guest}"));
            path
        };
        let removed = [begin("virtio_disk", 1, 1), begin("virtio_disk", 1, 2)];
        removed.iter().for_each(|path| registry.end(path));
        for (class, guest) in [("virtio_disk", 1), ("virtio", 3), ("virtio_disk", 2)] {
            begin(class, guest, 0);
        }
        let mut report = registry.report();
        let order = |report: &Report| {
            let shown = |device: &RegisteredDevice| {
                let guest = device.guest.clone().unwrap();
                format!("{guest} {} {}", device.device, device.removed)
            };
            report.devices.iter().map(shown).collect::<Vec<_>>()
        };
        let expected = [
            "guest-1 virtio_disk/0 false",
            "guest-2 virtio_disk/0 false",
            "guest-3 virtio/0 false",
            "guest-1 virtio_disk/2 true",
            "guest-1 virtio_disk/1 true",
        ];
        assert_eq!(order(&report), expected);
        let mut by_id = report.clone();
        report.retain_guest("guest-1");
        assert_eq!(order(&report), [expected[0], expected[3], expected[4]]);
        by_id.retain_guest("1");
        assert_eq!(by_id, report);
        by_id.retain_guest("guest-2");
        assert!(by_id.devices.is_empty());
    }
}
