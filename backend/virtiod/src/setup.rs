//! What the toolstack wrote for a device, turned into the device.

mod console;
mod disk;
pub mod network;
mod socket;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use crate::bus::DevicePath;
use crate::bus::Keys;
use crate::config::{Config, ConfigError, ConfigFile, DeviceSettings, Misplaced, RateLimit};
use crate::device::blk::TargetError;
use crate::device::console::ConsoleError;
use crate::device::rng::{Entropy, EntropyError};
use crate::device::vsock::HostError;
use crate::device::{DeviceId, DeviceMemory, VirtioDevice};
use crate::stats::DeviceStats;
use crate::tap::network::{Network, NetworkError};
use xen::{StoreError, XenStore};

/// Device classes that xl writes for virtio devices, and that this daemon serves.
pub const CLASSES: [&str; 2] = ["virtio_disk", "virtio"];

/// Numbers of the disks beyond xvdp start here. Linux guests ignore a device whose class and number
/// have 20 characters or more (`XEN_BUS_ID_SIZE`), and `virtio_disk/268439552` has 21.
const EXTENDED_DISKS: u32 = 1 << 28;

/// Why a device cannot be served. The text stands in the backend's `error` key and in the log.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// XenStore's fault.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The disk's target.
    #[error(transparent)]
    Target(#[from] TargetError),
    /// No target in the disk line.
    #[error("the disk has no target: give target=/path, last, in the domain's disk line")]
    NoTarget,
    /// `mode` is neither `r` nor `w`.
    #[error("the disk's mode is {0:?}, neither r nor w")]
    Mode(String),
    /// Not a disk.
    #[error("a {0} cannot be served: only devtype=disk can")]
    DeviceType(String),
    /// The configuration file.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// What stands in it does not fit the device.
    #[error(transparent)]
    Misplaced(#[from] Misplaced),
    /// The console.
    #[error(transparent)]
    Console(#[from] ConsoleError),
    /// The entropy device.
    #[error(transparent)]
    Entropy(#[from] EntropyError),
    /// The host's network.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// An address for a network device.
    #[error("cannot make up a MAC address")]
    Address(#[source] io::Error),
    /// The socket device.
    #[error(transparent)]
    Socket(#[from] HostError),
    /// No file can have the guest's name in its own.
    #[error("no socket can be named after the guest {0:?}: rename it")]
    SocketName(String),
    /// A directory for sockets.
    #[error("cannot make the directory {path:?}")]
    Directory {
        /// Its path.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// A device type that nothing here serves.
    #[error(
        "virtio device type {0:?} is not supported; supported are \"virtio,device1\" (network), \
         \"virtio,device3\" (console), \"virtio,device4\" (entropy), \"virtio,device13\" (vsock) and \
         a disk (in a disk line with specification=virtio)"
    )]
    Unsupported(String),
}

/// Opens the device at `path`.
///
/// # Errors
/// [`DeviceError`].
pub fn open<S: XenStore, M: DeviceMemory>(
    keys: &mut Keys<S>,
    path: &DevicePath,
    config: &ConfigFile,
    network: &dyn Network,
    stats: &Arc<DeviceStats>,
) -> Result<Box<dyn VirtioDevice<M>>, DeviceError> {
    note_grant_usage(keys)?;
    if path.class == "virtio_disk" {
        if path.number >= EXTENDED_DISKS {
            tracing::warn!("no disk beyond xvdp is found by Linux guests; name it xvda1 to xvdp15");
        }
        return Ok(Box::new(disk::open(keys, path, config, stats)?));
    }
    let kind = keys.backend("type")?.unwrap_or_default();
    let Some(id) = device_id(&kind) else { return Err(DeviceError::Unsupported(kind)) };
    let settings = settings(keys, path, config, id)?;
    match id {
        DeviceId::Network => Ok(Box::new(network::open(keys, path, settings.net, network, stats)?)),
        DeviceId::Console => Ok(Box::new(console::open(keys, path, settings.console, stats)?)),
        DeviceId::Entropy => {
            let rate = settings.rng.rate.and_then(RateLimit::rate);
            tracing::info!(rate = rate.map(tracing::field::display), "entropy device opened");
            let said = rate.map_or_else(|| "unlimited".to_owned(), |rate| rate.to_string());
            stats.note("rate", &said);
            Ok(Box::new(Entropy::open(rate, Arc::clone(stats))?))
        }
        DeviceId::Socket => Ok(Box::new(socket::open(keys, path, settings.vsock, stats)?)),
        // A disk has a line and a class of its own.
        DeviceId::Block => Err(DeviceError::Unsupported(kind)),
    }
}

/// Says so where the toolstack's table does not ask for grants. It decides nothing: there is no
/// other way to the guest's memory here, so a device that is served is served by grants [3.12].
fn note_grant_usage<S: XenStore>(keys: &mut Keys<S>) -> Result<(), StoreError> {
    if keys.backend("grant_usage")?.is_some_and(|usage| usage.trim() == "0") {
        tracing::info!("grant_usage=0 changes nothing: only what the guest grants is reached");
    }
    Ok(())
}

/// What the configuration file says of the device at `path`.
fn settings<S: XenStore>(
    keys: &mut Keys<S>,
    path: &DevicePath,
    config: &ConfigFile,
    id: DeviceId,
) -> Result<DeviceSettings, DeviceError> {
    let (config, name) = config_and_name(keys, config)?;
    Ok(config.device(name.as_deref(), path.number, id)?)
}

/// The configuration, and the name by which it knows the guest.
fn config_and_name<S: XenStore>(
    keys: &mut Keys<S>,
    config: &ConfigFile,
) -> Result<(Config, Option<String>), DeviceError> {
    let config = config.load()?.unwrap_or_default();
    let name = keys.guest_name()?;
    if name.is_none() && config.names_domains() {
        tracing::warn!(
            "the guest's name cannot be read: only [default] of the configuration counts"
        );
    }
    Ok((config, name))
}

/// The device that xl's `type=virtio,deviceN` asks for, N in hexadecimal, if there is such a device
/// here.
fn device_id(kind: &str) -> Option<DeviceId> {
    let digits = kind.strip_prefix("virtio,device")?;
    // Parsing alone would take a sign.
    let plain = digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    let number = u32::from_str_radix(digits, 16).ok().filter(|_| plain)?;
    [DeviceId::Network, DeviceId::Block, DeviceId::Console, DeviceId::Entropy, DeviceId::Socket]
        .into_iter()
        .find(|id| *id as u32 == number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_type_is_its_number_in_hexadecimal() {
        assert_eq!(device_id("virtio,device4"), Some(DeviceId::Entropy));
        assert_eq!(device_id("virtio,device04"), Some(DeviceId::Entropy));
        assert_eq!(device_id("virtio,device3"), Some(DeviceId::Console));
        assert_eq!(device_id("virtio,device1"), Some(DeviceId::Network));
        assert_eq!(device_id("virtio,device13"), Some(DeviceId::Socket));
        for kind in ["", "virtio", "virtio,device", "virtio,device+4", "virtio,device40", "device4"]
        {
            assert_eq!(device_id(kind), None, "{kind}");
        }
    }
}
