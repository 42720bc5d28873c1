//! The configuration file: settings that a guest's `xl` configuration cannot express.
//!
//! `xen-virtiod.toml` beside this crate's manifest explains every key to users.

mod console;
mod disk;
mod file;
mod in_flight;
mod limits;
mod network;
mod poll;
mod service;
mod socket;
mod threads;

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::{Deserializer, Error};

pub use self::console::{ConsoleSettings, MAX_PORTS, PortName};
pub use self::disk::{CacheMode, DiskSettings, Serial};
use self::disk::{DiskDefaults, DiskName};
pub use self::file::{ConfigError, ConfigFile, DEFAULT_PATH};
pub use self::in_flight::{ByteLimit, RequestLimit};
pub use self::limits::LimitSettings;
use self::network::NetworkDefaults;
pub use self::network::{Contradiction, NetworkSettings};
pub use self::poll::PollTime;
pub use self::service::{PoolLimit, ServiceSettings};
pub use self::socket::{Cid, SocketPath, SocketSettings};
pub use self::threads::ThreadLimit;
use crate::device::DeviceId;
use crate::device::blk::DiskRates;
use crate::device::rate::Rate;
use crate::tap::network::Bridge;

/// The content of a configuration file. Every key has a default: all devices work without a file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    default: DefaultSettings,
    domain: BTreeMap<String, DomainSettings>,
}

/// The devices of one domain.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct DomainSettings {
    virtio: BTreeMap<DeviceIndex, DeviceSettings>,
    disk: BTreeMap<DiskName, DiskSettings>,
    /// Groups of disks that share limits.
    group: BTreeMap<String, LimitSettings>,
}

/// Position of a device in a guest's `virtio = [ … ]`, from 0: the device's number in XenStore.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct DeviceIndex(u32);

/// Settings of all devices, and of all devices of a type.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct DefaultSettings {
    poll: PollTime,
    pool: PoolLimit,
    threads: ThreadLimit,
    rng: EntropySettings,
    net: NetworkDefaults,
    disk: DiskDefaults,
}

/// Settings of one device, by its type.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DeviceSettings {
    /// Settings of an entropy device.
    pub rng: EntropySettings,
    /// Settings of a network device.
    pub net: NetworkSettings,
    /// Settings of a console device.
    pub console: ConsoleSettings,
    /// Settings of a socket device.
    pub vsock: SocketSettings,
}

/// A section for another device type than the device has.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "section {section} of the configuration file is for another type of device: \
     this one has type {number:x} (hexadecimal)",
    number = *.id as u32
)]
pub struct Misplaced {
    section: String,
    id: DeviceId,
}

/// A disk's section names a group without a section.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "a disk's group {group:?} has no limits: add a section [domain.{domain}.group.{group}] to the \
     configuration"
)]
pub struct NoGroup {
    domain: String,
    group: String,
}

/// Settings of an entropy device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EntropySettings {
    /// Maximum rate of the device's output.
    pub rate: Option<RateLimit>,
}

/// A rate limit, or none, to exempt a device from the default.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RateLimit {
    /// `"unlimited"`.
    Unlimited,
    /// A limit, as in `"64KiB/s"`.
    Limited(Rate),
}

impl Config {
    /// Returns the settings of device `index` of type `id` in the named domain: key by key the
    /// device's own, else the default.
    ///
    /// # Errors
    /// [`Misplaced`] if the device's own section is for another type.
    pub fn device(
        &self,
        domain: Option<&str>,
        index: u32,
        id: DeviceId,
    ) -> Result<DeviceSettings, Misplaced> {
        let domain = domain.and_then(|name| Some((name, self.domain.get(name)?)));
        let own = domain
            .and_then(|(name, settings)| Some((name, settings.virtio.get(&DeviceIndex(index))?)));
        let own = match own {
            Some((name, own)) => own.for_type(id).map_err(|section| Misplaced {
                section: format!("domain.{name}.virtio.{index}.{section}"),
                id,
            })?,
            None => DeviceSettings::default(),
        };
        Ok(DeviceSettings {
            rng: EntropySettings { rate: own.rng.rate.or(self.default.rng.rate) },
            net: self.default.net.under(own.net),
            ..own
        })
    }

    /// Returns the settings of the disk `vdev` in the named domain: key by key its own, else the
    /// default.
    pub fn disk(&self, domain: Option<&str>, vdev: &str) -> DiskSettings {
        let own = domain.and_then(|name| self.domain.get(name)?.disk.get(vdev));
        self.default.disk.under(own.cloned().unwrap_or_default())
    }

    /// Returns the limits of the rate of the disk `vdev` in the named domain, and its group if it
    /// shares them with other disks.
    ///
    /// # Errors
    /// [`NoGroup`] if the domain has no such group.
    pub fn disk_rates(
        &self,
        domain: Option<&str>,
        vdev: &str,
    ) -> Result<(DiskRates, Option<String>), NoGroup> {
        let settings = self.disk(domain, vdev);
        let Some(group) = settings.group else { return Ok((settings.limits.rates(), None)) };
        let found = domain.and_then(|name| self.domain.get(name)?.group.get(&group));
        match found {
            Some(limits) => Ok((limits.rates(), Some(group))),
            None => Err(NoGroup { domain: domain.unwrap_or_default().to_owned(), group }),
        }
    }

    /// Returns the settings that apply to every device of any type.
    pub fn service(&self) -> ServiceSettings {
        let DefaultSettings { poll, pool, threads, .. } = self.default;
        ServiceSettings { poll, pool, threads }
    }

    /// The bridges that the file has for network devices, of all and of specific ones, and whether
    /// their ports have VLANs of their own.
    pub fn bridges(&self) -> impl Iterator<Item = (Bridge, bool)> {
        // To a script the key names something else.
        let of = |own: NetworkSettings| {
            let settings = self.default.net.under(own);
            let has_vlans = settings.vlans().is_some();
            let bridge = settings.bridge.or_else(|| has_vlans.then_some(Bridge::Usual));
            bridge.filter(|_| settings.script.is_none()).map(|bridge| (bridge, has_vlans))
        };
        let own = self.devices().map(|device| device.net.clone());
        [NetworkSettings::default()].into_iter().chain(own).filter_map(of)
    }

    /// The network devices whose settings cannot hold together, by section.
    pub fn contradictions(&self) -> impl Iterator<Item = (String, Contradiction)> + '_ {
        let of = |own: NetworkSettings| self.default.net.under(own).contradiction();
        let default = of(NetworkSettings::default());
        let default = default.map(|contradiction| ("default.net".to_owned(), contradiction));
        let devices = self.domain.iter().flat_map(move |(name, domain)| {
            domain.virtio.iter().filter_map(move |(index, device)| {
                let own = Some(device.net.clone()).filter(|net| *net != NetworkSettings::default());
                Some((format!("domain.{name}.virtio.{}.net", index.0), of(own?)?))
            })
        });
        default.into_iter().chain(devices)
    }

    /// Whether the file keeps the network of specific domains apart from others.
    pub fn isolates_domains(&self) -> bool {
        self.devices().any(|device| device.net.isolate())
    }

    /// The settings of all specific devices.
    fn devices(&self) -> impl Iterator<Item = &DeviceSettings> {
        self.domain.values().flat_map(|domain| domain.virtio.values())
    }

    /// Whether the file has settings for specific domains.
    pub fn names_domains(&self) -> bool {
        !self.domain.is_empty()
    }
}

impl DeviceSettings {
    /// Returns these settings, or the name of a section that is for another device type.
    fn for_type(&self, id: DeviceId) -> Result<Self, &'static str> {
        let none = Self::default();
        let sections = [
            ("rng", self.rng != none.rng, DeviceId::Entropy),
            ("net", self.net != none.net, DeviceId::Network),
            ("console", self.console != none.console, DeviceId::Console),
            ("vsock", self.vsock != none.vsock, DeviceId::Socket),
        ];
        match sections.into_iter().find(|(_, is_there, of)| *is_there && *of != id) {
            Some((section, ..)) => Err(section),
            None => Ok(self.clone()),
        }
    }
}

impl RateLimit {
    /// The limit, if there is one.
    pub fn rate(self) -> Option<Rate> {
        match self {
            Self::Unlimited => None,
            Self::Limited(rate) => Some(rate),
        }
    }
}

impl<'de> Deserialize<'de> for DeviceIndex {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        // Only the canonical form: two spellings of a number would be two devices.
        let number = text.parse().ok().filter(|number: &u32| number.to_string() == text);
        number.map(Self).ok_or_else(|| {
            D::Error::custom(format_args!(
                "{text:?} is not the position of a device in virtio = [ ... ], 0 for the first"
            ))
        })
    }
}

impl<'de> Deserialize<'de> for RateLimit {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        if text == "unlimited" {
            return Ok(Self::Unlimited);
        }
        let rate = text.parse();
        rate.map(Self::Limited)
            .map_err(|error| D::Error::custom(format_args!("{error}, or \"unlimited\"")))
    }
}
