//! The limits of the rates of a guest's devices, which may change while the devices are used.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use serde::{Deserialize, Serialize};

use crate::bus::DevicePath;
use crate::config::{Config, DeviceSettings, NoGroup, RateLimit};
use crate::device::DeviceId;
use crate::device::blk::{DiskRates, Throttle};
use crate::device::rate::{Rate, SharedRate};
use crate::stats::DeviceStats;

/// The note of a device's limits.
const NOTE: &str = "limits";

/// The limits of a device's rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DeviceRates {
    /// Of a disk.
    Disk(DiskRates),
    /// Of a network device.
    Network {
        /// Of packets to the guest.
        to_guest: Option<Rate>,
        /// Of packets from the guest.
        from_guest: Option<Rate>,
    },
    /// Of an entropy device.
    Entropy(Option<Rate>),
}

impl DeviceRates {
    /// The limits of a device that is no disk; `None` for a type without limits.
    pub fn of(id: DeviceId, settings: &DeviceSettings) -> Option<Self> {
        let rate = |limit: Option<RateLimit>| limit.and_then(RateLimit::rate);
        match id {
            DeviceId::Network => Some(Self::Network {
                to_guest: rate(settings.net.rate_to_guest),
                from_guest: rate(settings.net.rate_from_guest),
            }),
            DeviceId::Entropy => Some(Self::Entropy(rate(settings.rng.rate))),
            DeviceId::Block | DeviceId::Console | DeviceId::Socket => None,
        }
    }

    /// The rates of a device that is no disk, in the order of [`GuestRates::of_device`].
    fn streams(self) -> [Option<Rate>; 2] {
        match self {
            Self::Disk(_) => [None, None],
            Self::Network { to_guest, from_guest } => [to_guest, from_guest],
            Self::Entropy(rate) => [rate, None],
        }
    }
}

/// Formats the limits by the names of the configuration's keys.
impl fmt::Display for DeviceRates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Disk(rates) => rates.fmt(f),
            Self::Network { to_guest: None, from_guest: None } | Self::Entropy(None) => {
                f.write_str("unlimited")
            }
            Self::Network { to_guest: Some(to), from_guest: None } => {
                write!(f, "rate-to-guest {to}")
            }
            Self::Network { to_guest: None, from_guest: Some(from) } => {
                write!(f, "rate-from-guest {from}")
            }
            Self::Network { to_guest: Some(to), from_guest: Some(from) } => {
                write!(f, "rate-to-guest {to}, rate-from-guest {from}")
            }
            Self::Entropy(Some(rate)) => rate.fmt(f),
        }
    }
}

/// The limits of all devices of a guest. The disks of a group have one [`Throttle`].
#[derive(Debug, Default)]
pub struct GuestRates(Mutex<Rates>);

#[derive(Debug, Default)]
struct Rates {
    disks: Vec<Disk>,
    /// The limits of other devices.
    streams: Vec<(DevicePath, [Weak<SharedRate>; 2])>,
    /// Limits that replace those of the configuration with which the device was set up.
    replaced: BTreeMap<DevicePath, DeviceRates>,
}

#[derive(Debug)]
struct Disk {
    path: DevicePath,
    group: Option<String>,
    throttle: Weak<Throttle>,
}

impl GuestRates {
    /// The limits of the disk at `path`, which the configuration file calls `vdev` of `guest`.
    /// Notes them for `stat`.
    ///
    /// # Errors
    /// [`NoGroup`].
    pub fn of_disk(
        &self,
        path: &DevicePath,
        config: &Config,
        (guest, vdev): (Option<&str>, &str),
        stats: &DeviceStats,
    ) -> Result<Arc<Throttle>, NoGroup> {
        let (rates, group) = config.disk_rates(guest, vdev)?;
        let mut all = self.lock();
        let rates = match all.replaced.get(path) {
            Some(DeviceRates::Disk(replaced)) => *replaced,
            _ => rates,
        };
        all.disks.retain(|disk| disk.throttle.strong_count() > 0);
        let of_group = |disk: &Disk| {
            let throttle = disk.throttle.upgrade()?;
            (group.is_some() && disk.group == group).then_some(throttle)
        };
        // A group has the limits of its first disk, or those of the last reload.
        let shared = all.disks.iter().find_map(of_group);
        let throttle = shared.unwrap_or_else(|| Arc::new(Throttle::new(rates)));
        stats.note(NOTE, &throttle.rates().to_string());
        all.disks.push(Disk { path: path.clone(), group, throttle: Arc::downgrade(&throttle) });
        Ok(throttle)
    }

    /// The limits of a device that is no disk: of a network device to the guest and from it, of an
    /// entropy device the first one. Notes them for `stat`.
    pub fn of_device(
        &self,
        path: &DevicePath,
        rates: DeviceRates,
        stats: &DeviceStats,
    ) -> [Arc<SharedRate>; 2] {
        let mut all = self.lock();
        let rates = all.replaced.get(path).copied().unwrap_or(rates);
        let shared = rates.streams().map(|rate| Arc::new(SharedRate::new(rate)));
        all.streams.retain(|(_, [first, _])| first.strong_count() > 0);
        all.streams.push((path.clone(), shared.each_ref().map(Arc::downgrade)));
        stats.note(NOTE, &rates.to_string());
        shared
    }

    /// Replaces the limits of a device, and of a disk's group, also of one that is set up later;
    /// `None`: those of its configuration apply when it is set up. Notes them for `stat`.
    pub fn replace(
        &self,
        path: DevicePath,
        rates: Option<DeviceRates>,
        stats: Option<&DeviceStats>,
    ) {
        let mut all = self.lock();
        let Some(rates) = rates else {
            all.replaced.remove(&path);
            return;
        };
        stats.into_iter().for_each(|stats| stats.note(NOTE, &rates.to_string()));
        if let DeviceRates::Disk(rates) = rates {
            let of_disk = all.disks.iter().filter(|disk| disk.path == path);
            let throttles: Vec<_> = of_disk.filter_map(|disk| disk.throttle.upgrade()).collect();
            throttles.iter().for_each(|throttle| throttle.set(rates));
        }
        for (_, shared) in all.streams.iter().filter(|(of, _)| *of == path) {
            for (shared, rate) in shared.iter().zip(rates.streams()) {
                shared.upgrade().into_iter().for_each(|shared| shared.set(rate));
            }
        }
        all.replaced.insert(path, rates);
    }

    fn lock(&self) -> MutexGuard<'_, Rates> {
        // The lists are consistent after every step.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::ConfigFile;
    use xen::DomId;

    fn path(number: u32) -> DevicePath {
        DevicePath { class: "virtio_disk".to_owned(), guest: DomId(1), number }
    }

    fn config(text: &str) -> Config {
        ConfigFile::new(Some(Path::new("f").into())).with_text(text).load().unwrap().unwrap()
    }

    #[test]
    fn replaced_limits_of_a_network_device_apply_by_direction() {
        let (all, stats) = (GuestRates::default(), DeviceStats::default());
        let path = DevicePath { class: "virtio".to_owned(), guest: DomId(1), number: 2 };
        let rate = |text: &str| Some(text.parse::<Rate>().unwrap());
        let network = |to: &str, from: &str| DeviceRates::Network {
            to_guest: rate(to),
            from_guest: rate(from),
        };
        let shared = all.of_device(&path, network("1MiB/s", "2MiB/s"), &stats);
        let now = |shared: &[Arc<SharedRate>; 2]| shared.each_ref().map(|shared| shared.rate());
        assert_eq!(now(&shared), [rate("1MiB/s"), rate("2MiB/s")]);
        all.replace(path.clone(), Some(network("3MiB/s", "4MiB/s")), Some(&stats));
        assert_eq!(now(&shared), [rate("3MiB/s"), rate("4MiB/s")]);
        // Also those of a device that is set up again, until nothing is replaced any more.
        let again = all.of_device(&path, network("1MiB/s", "2MiB/s"), &stats);
        assert_eq!(now(&again), [rate("3MiB/s"), rate("4MiB/s")]);
        all.replace(path.clone(), None, None);
        let anew = all.of_device(&path, network("1MiB/s", "2MiB/s"), &stats);
        assert_eq!(now(&anew), [rate("1MiB/s"), rate("2MiB/s")]);
    }

    #[test]
    fn disks_of_a_group_share_limits() {
        let config = config(
            "[domain.db.group.data]\niops = 100\n\
             [domain.db.disk.xvda]\ngroup = \"data\"\n[domain.db.disk.xvdb]\ngroup = \"data\"\n\
             [domain.db.disk.xvdd]\ngroup = \"none\"\n\
             [default.disk]\nlimits = { iops = 7 }",
        );
        let rates = GuestRates::default();
        let of = |number, vdev| {
            rates.of_disk(&path(number), &config, (Some("db"), vdev), &DeviceStats::default())
        };
        let (a, b, c) = (of(0, "xvda").unwrap(), of(1, "xvdb").unwrap(), of(2, "xvdc").unwrap());
        assert!(Arc::ptr_eq(&a, &b) && !Arc::ptr_eq(&a, &c));
        assert_eq!(a.rates().to_string(), "iops 100, burst 100ms");
        assert_eq!(c.rates().to_string(), "iops 7, burst 100ms");
        let error = of(3, "xvdd").unwrap_err().to_string();
        assert!(error.contains("[domain.db.group.none]"), "{error}");
        drop((a, b));
        let anew = of(0, "xvda").unwrap();
        assert_eq!(anew.rates().to_string(), "iops 100, burst 100ms");
    }

    #[test]
    fn replaced_limits_apply_to_the_group_and_to_the_next_set_up() {
        let before = config(
            "[domain.db.group.data]\niops = 100\n\
             [domain.db.disk.xvda]\ngroup = \"data\"\n[domain.db.disk.xvdb]\ngroup = \"data\"",
        );
        let rates = GuestRates::default();
        let of = |number, vdev| {
            rates
                .of_disk(&path(number), &before, (Some("db"), vdev), &DeviceStats::default())
                .unwrap()
        };
        let (_a, b) = (of(0, "xvda"), of(1, "xvdb"));
        let replaced =
            config("[default.disk]\nlimits = { iops = 5 }").disk(None, "").limits.rates();
        rates.replace(path(0), Some(DeviceRates::Disk(replaced)), None);
        assert_eq!(b.rates(), replaced);
        rates.replace(path(2), Some(DeviceRates::Disk(replaced)), None);
        assert_eq!(of(2, "xvdc").rates(), replaced);
        rates.replace(path(2), None, None);
        assert_eq!(of(2, "xvdc").rates(), DiskRates::default());
    }
}
