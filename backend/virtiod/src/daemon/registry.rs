//! The list of present devices and of the latest removed ones, for `xen-virtiod stat`.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};

use serde::{Deserialize, Serialize};

use crate::bus::DevicePath;
use crate::guest_log::GuestLog;
use crate::stats::{DeviceStats, StatsSnapshot};

/// Number of removed devices to keep; a further one replaces the oldest.
const HISTORY: usize = 64;

/// All devices by their paths.
#[derive(Debug, Default)]
pub struct Registry(Mutex<Devices>);

#[derive(Debug, Default)]
struct Devices {
    there: BTreeMap<DevicePath, Arc<DeviceStats>>,
    gone: VecDeque<(DevicePath, Arc<DeviceStats>)>,
}

/// One device, as `stat` shows it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RegisteredDevice {
    /// The guest's domain id.
    pub domid: u16,
    /// Class and number, as in XenStore.
    pub device: String,
    /// Counters and state.
    #[serde(flatten)]
    pub stats: StatsSnapshot,
}

/// The answer to `stat`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The removed devices, oldest first, then the present ones.
    pub devices: Vec<RegisteredDevice>,
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
            devices.gone.push_back((path.clone(), stats));
        }
        while devices.gone.len() > HISTORY {
            devices.gone.pop_front();
        }
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

    /// Returns a snapshot of all devices.
    pub fn report(&self) -> Report {
        let devices = self.lock();
        let gone = devices.gone.iter().map(|(path, stats)| (path, stats));
        let device = |(path, stats): (&DevicePath, &Arc<DeviceStats>)| RegisteredDevice {
            domid: path.guest.0,
            device: path.name(),
            stats: stats.snapshot(),
        };
        Report { devices: gone.chain(&devices.there).map(device).collect() }
    }
}
