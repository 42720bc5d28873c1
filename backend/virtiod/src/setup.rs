//! Opens a device from the keys that the toolstack wrote and from the configuration file.

mod console;
pub mod disk;
pub mod network;
pub mod rates;
mod socket;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use self::rates::{DeviceRates, GuestRates};
use crate::bus::DevicePath;
use crate::bus::Keys;
use crate::config::{
    Config, ConfigError, ConfigFile, Contradiction, DeviceSettings, Misplaced, NoGroup,
};
use crate::device::blk::{Images, SizeWatcher, TargetError};
use crate::device::console::{ConsoleError, Terminals};
use crate::device::net::NetLimits;
use crate::device::rng::Entropy;
use crate::device::{DeviceId, DeviceMemory, VirtioDevice};
use crate::listener::{ListenError, SocketDirectory, Sockets};
use crate::stats::DeviceStats;
use crate::tap::network::{InterfaceRequest, Network, NetworkError};
use crate::tap::script::Script;
use xen::{StoreError, XenStore};

/// The device classes of virtio devices in XenStore.
pub const CLASSES: [&str; 2] = [DISKS, "virtio"];
pub(crate) const DISKS: &str = "virtio_disk";

/// First number of the disks beyond xvdp. Linux guests ignore a device whose class and number have
/// 20 characters or more (`XEN_BUS_ID_SIZE`), and `virtio_disk/268439552` has 21.
const EXTENDED_DISKS: u32 = 1 << 28;

/// A device that cannot be served. The daemon writes the text to the backend's `error` key and to
/// the log.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// A XenStore operation failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The disk's target cannot be opened.
    #[error(transparent)]
    Target(#[from] TargetError),
    /// The disk line has no target.
    #[error("the disk has no target: give target=/path, last, in the domain's disk line")]
    NoTarget,
    /// The backend's key `mode` is neither `r` nor `w`.
    #[error("the disk's mode is {0:?}, neither r nor w")]
    Mode(String),
    /// The disk line has another devtype than disk.
    #[error("a {0} cannot be served: only devtype=disk can")]
    DeviceType(String),
    /// The configuration file cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A section of the configuration file does not fit the device.
    #[error(transparent)]
    Misplaced(#[from] Misplaced),
    /// The settings of a network device cannot hold together.
    #[error(transparent)]
    Contradiction(#[from] Contradiction),
    /// A disk's group has no section in the configuration file.
    #[error(transparent)]
    Group(#[from] NoGroup),
    /// The console cannot be opened.
    #[error(transparent)]
    Console(#[from] ConsoleError),
    /// The host's network has no interface for the device.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// The kernel returned no random bytes for a MAC address.
    #[error("cannot generate a MAC address")]
    Address(#[source] io::Error),
    /// The socket device cannot be opened.
    #[error(transparent)]
    Socket(#[from] ListenError),
    /// A section of the configuration file may be for this guest, whose name cannot be read.
    #[error(
        "the guest's name cannot be read, and a section [domain.NAME] with its bridge, vlan, script, \
         lock-mac or lock-addresses may be meant for it: take these out of the configuration of \
         this domain; all but lock-addresses can be in [default.net]"
    )]
    Nameless,
    /// The guest's name cannot be part of a file name.
    #[error("guest name {0:?} cannot be part of a socket's name: rename the guest")]
    SocketName(String),
    /// The daemon does not implement the device type.
    #[error(
        "virtio device type {0:?} is not supported; supported are \"virtio,device1\" (network), \
         \"virtio,device3\" (console), \"virtio,device4\" (entropy), \"virtio,device13\" (vsock) \
         and a disk (in a disk line with specification=virtio)"
    )]
    Unsupported(String),
}

/// What devices use of the host.
#[derive(Clone)]
pub struct Host {
    /// Its network interfaces.
    pub network: Arc<dyn Network>,
    /// The sizes of its files and block devices.
    pub sizes: Arc<dyn SizeWatcher>,
    /// The images of disks.
    pub images: Arc<dyn Images>,
    /// The terminals of consoles.
    pub terminals: Arc<dyn Terminals>,
    /// The sockets that programs connect to.
    pub sockets: Arc<dyn Sockets>,
    /// The limits of the rates of the guest's devices.
    pub rates: Arc<GuestRates>,
}

/// The interface that the network device at `path` needs.
///
/// # Errors
/// [`DeviceError`], also for another device.
pub fn interface_of<S: XenStore>(
    keys: &mut Keys<S>,
    path: &DevicePath,
    config: &ConfigFile,
) -> Result<InterfaceRequest, DeviceError> {
    match kind(keys, path)? {
        DeviceId::Network => {
            network::interface(path, &settings(keys, path, config, DeviceId::Network)?.net)
        }
        _ => Err(DeviceError::Unsupported("network".to_owned())),
    }
}

/// Publishes what the script of the network device at `path` looks for in XenStore, and returns it:
/// names and values.
///
/// # Errors
/// [`DeviceError`].
pub fn publish_for_script<S: XenStore>(
    keys: &mut Keys<S>,
    path: &DevicePath,
    config: &ConfigFile,
    script: &Script,
) -> Result<Vec<(&'static str, String)>, DeviceError> {
    let settings = settings(keys, path, config, DeviceId::Network)?.net;
    network::publish_for_script(keys, path, &settings, script)
}

/// The sockets of a device.
#[derive(Debug, Default)]
pub struct DeviceSockets {
    /// Those that it listens on, and whose their directories are.
    pub all: Vec<(PathBuf, SocketDirectory)>,
    /// Whether it connects to those beside them.
    pub may_connect: bool,
}

/// The sockets of the device at `path`.
///
/// # Errors
/// [`DeviceError`].
pub fn sockets_of<S: XenStore>(
    keys: &mut Keys<S>,
    path: &DevicePath,
    config: &ConfigFile,
) -> Result<DeviceSockets, DeviceError> {
    let id = kind(keys, path)?;
    let settings = settings(keys, path, config, id)?;
    match id {
        DeviceId::Console => {
            let ports = console::ports(keys, path, &settings.console)?.into_iter();
            let all = ports.map(|(_, socket)| (socket, SocketDirectory::Own)).collect();
            Ok(DeviceSockets { all, may_connect: false })
        }
        DeviceId::Socket => {
            let all = vec![socket::path(keys, path, &settings.vsock)?];
            Ok(DeviceSockets { all, may_connect: true })
        }
        DeviceId::Network | DeviceId::Block | DeviceId::Entropy => Ok(DeviceSockets::default()),
    }
}

/// The device type of a device other than a disk.
fn kind<S: XenStore>(keys: &mut Keys<S>, path: &DevicePath) -> Result<DeviceId, DeviceError> {
    let kind = keys.backend("type")?.unwrap_or_default();
    let id = device_id(&kind).filter(|_| path.class != DISKS);
    id.ok_or(DeviceError::Unsupported(kind))
}

/// Opens the device at `path`.
///
/// # Errors
/// [`DeviceError`].
pub fn open<S: XenStore, M: DeviceMemory>(
    keys: &mut Keys<S>,
    path: &DevicePath,
    config: &ConfigFile,
    host: &Host,
    stats: &Arc<DeviceStats>,
) -> Result<Box<dyn VirtioDevice<M>>, DeviceError> {
    note_grant_usage(keys)?;
    if path.class == DISKS {
        if path.number >= EXTENDED_DISKS {
            tracing::warn!("no disk beyond xvdp is found by Linux guests; name it xvda1 to xvdp15");
        }
        let mut disk = disk::open(keys, path, config, host, stats)?;
        disk.watch_size(&*host.sizes);
        return Ok(Box::new(disk));
    }
    let id = kind(keys, path)?;
    let settings = settings(keys, path, config, id)?;
    let rates = DeviceRates::of(id, &settings);
    let limits = rates.map(|rates| host.rates.of_device(path, rates, stats));
    let [first, second] = limits.unwrap_or_default();
    match id {
        DeviceId::Network => {
            let limits = NetLimits::new(first, second);
            Ok(Box::new(network::open(keys, path, &settings.net, limits, &*host.network, stats)?))
        }
        DeviceId::Console => {
            Ok(Box::new(console::open(keys, path, &settings.console, host, stats)?))
        }
        DeviceId::Entropy => {
            tracing::info!("entropy device opened");
            Ok(Box::new(Entropy::new(first, Arc::clone(stats))))
        }
        DeviceId::Socket => {
            let sockets = &host.sockets;
            Ok(Box::new(socket::open(keys, path, settings.vsock, sockets, stats)?))
        }
        // A disk has a disk line and the class virtio_disk.
        DeviceId::Block => Err(DeviceError::Unsupported("virtio,device2".to_owned())),
    }
}

/// Logs a toolstack's `grant_usage=0`. The key changes nothing: the daemon reaches a guest's memory
/// through grants only [3.12].
fn note_grant_usage<S: XenStore>(keys: &mut Keys<S>) -> Result<(), StoreError> {
    if keys.backend("grant_usage")?.is_some_and(|usage| usage.trim() == "0") {
        tracing::info!("grant_usage=0 ignored: the device reaches granted memory only");
    }
    Ok(())
}

/// Returns the configuration file's settings for the device at `path`.
fn settings<S: XenStore>(
    keys: &mut Keys<S>,
    path: &DevicePath,
    config: &ConfigFile,
    id: DeviceId,
) -> Result<DeviceSettings, DeviceError> {
    let (config, name) = config_and_name(keys, config)?;
    // The guest would be in another network than its own, or be free to send what it likes.
    if name.is_none() && id == DeviceId::Network && config.isolates_domains() {
        return Err(DeviceError::Nameless);
    }
    Ok(config.device(name.as_deref(), path.number, id)?)
}

/// Loads the configuration and reads the guest's name, if this domain may read it.
fn config_and_name<S: XenStore>(
    keys: &mut Keys<S>,
    config: &ConfigFile,
) -> Result<(Config, Option<String>), DeviceError> {
    let config = config.load()?.unwrap_or_default();
    let name = keys.guest_name()?;
    if name.is_none() && config.names_domains() {
        tracing::warn!("cannot read the guest's name: only [default] of the configuration applies");
    }
    Ok((config, name))
}

/// Returns the device for xl's `type=virtio,deviceN`, N in hexadecimal; `None` if the daemon does
/// not implement it.
pub fn device_id(kind: &str) -> Option<DeviceId> {
    let digits = kind.strip_prefix("virtio,device")?;
    // `from_str_radix` alone would accept a sign.
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
    fn device_type_is_parsed_as_hexadecimal() {
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
