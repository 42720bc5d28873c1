//! The configuration file: what a guest's `xl` configuration has no room for.
//!
//! `xen-virtiod.toml` beside this crate's manifest explains every key to the person who writes one.

mod console;
mod disk;
mod file;
mod network;
mod poll;
mod service;
mod socket;

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::{Deserializer, Error};

pub use self::console::{ConsoleSettings, PortName};
pub use self::disk::DiskSettings;
use self::disk::{DiskDefaults, DiskName};
pub use self::file::{ConfigError, ConfigFile, DEFAULT_PATH};
use self::network::NetworkDefaults;
pub use self::network::NetworkSettings;
pub use self::poll::PollTime;
pub use self::service::{PoolLimit, ServiceSettings};
pub use self::socket::{Cid, SocketPath, SocketSettings};
use crate::device::DeviceId;
use crate::device::rate::Rate;

/// A whole file. What is left out has a value that needs no explaining: without a file all devices
/// work.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    default: DefaultSettings,
    domain: BTreeMap<String, DomainSettings>,
}

/// One domain's devices.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct DomainSettings {
    virtio: BTreeMap<DeviceIndex, DeviceSettings>,
    disk: BTreeMap<DiskName, DiskSettings>,
}

/// Position of a device in a guest's `virtio = [ … ]`, from 0: its number in XenStore.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct DeviceIndex(u32);

/// What can be said of all devices of a type.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct DefaultSettings {
    poll: PollTime,
    pool: PoolLimit,
    rng: EntropySettings,
    net: NetworkDefaults,
    disk: DiskDefaults,
}

/// What can be said of a device, by its type.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DeviceSettings {
    /// For the entropy device.
    pub rng: EntropySettings,
    /// For the network device.
    pub net: NetworkSettings,
    /// For the console device.
    pub console: ConsoleSettings,
    /// For the socket device.
    pub vsock: SocketSettings,
}

/// A section that is for another type of device than the one that it names.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the configuration file's {section} does not fit: the device is of type {number:x} (hexadecimal)", number = *.id as u32)]
pub struct Misplaced {
    section: String,
    id: DeviceId,
}

/// What can be said of an entropy device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EntropySettings {
    /// What it gives at most.
    pub rate: Option<RateLimit>,
}

/// A rate, or in words that there is none: to except a device from the default.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RateLimit {
    /// `"unlimited"`.
    Unlimited,
    /// As in `"64KiB/s"`.
    Limited(Rate),
}

impl Config {
    /// What is said of device `index` of the domain with this name, which is of type `id`: key by
    /// key the device's own, then the default.
    ///
    /// # Errors
    /// [`Misplaced`], of the device's own.
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

    /// What is said of the disk `vdev` of the domain with this name: key by key its own, then the
    /// default.
    pub fn disk(&self, domain: Option<&str>, vdev: &str) -> DiskSettings {
        let own = domain.and_then(|name| self.domain.get(name)?.disk.get(vdev));
        self.default.disk.under(own.copied().unwrap_or_default())
    }

    /// What holds for every device, of whatever type.
    pub fn service(&self) -> ServiceSettings {
        ServiceSettings { poll: self.default.poll, pool: self.default.pool }
    }

    /// Whether it says something about some domain in particular.
    pub fn names_domains(&self) -> bool {
        !self.domain.is_empty()
    }
}

impl DeviceSettings {
    /// These settings, unless one of them is for another type of device: its section's name then.
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
    /// The rate, if there is one.
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
        // One way to write a number: two ways would be two devices.
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
