//! Opens a network device. Publishes `tap`, `mac` and, if its interface is a bridge's port,
//! `bridge` in the backend's directory.

use std::sync::Arc;

use super::DeviceError;
use crate::bus::{DevicePath, Keys};
use crate::config::NetworkSettings;
use crate::device::net::{AddressLock, MacAddress, Net, NetLimits};
use crate::stats::DeviceStats;
use crate::tap::name::InterfaceName;
use crate::tap::network::{InterfaceRequest, Network, NetworkError};
use xen::XenStore;

/// The key of a device's MAC address in the backend's directory and in its notes.
pub const MAC_NOTE: &str = "mac";

/// The interface that a device needs.
///
/// # Errors
/// [`DeviceError`].
pub(super) fn interface(
    path: &DevicePath,
    settings: &NetworkSettings,
) -> Result<InterfaceRequest, DeviceError> {
    let usual_name = || InterfaceName::of_device(path.guest, path.number);
    let name = settings.tap.clone().map_or_else(usual_name, Ok).map_err(NetworkError::Name)?;
    let bridge = settings.bridge.clone().unwrap_or_default();
    let pairs = settings.queues.unwrap_or_default();
    Ok(InterfaceRequest { name, bridge, pairs, device: path.record_name() })
}

pub(super) fn open<S: XenStore>(
    keys: &mut Keys<S>,
    path: &DevicePath,
    settings: &NetworkSettings,
    limits: NetLimits,
    network: &dyn Network,
    stats: &Arc<DeviceStats>,
) -> Result<Net, DeviceError> {
    let request = interface(path, settings)?;
    let (name, pairs) = (request.name.clone(), request.pairs);
    let mac = match settings.mac {
        Some(mac) => mac,
        None => address(keys, path)?,
    };
    let attached = network.attach(request)?;
    let (mac_text, bridge) = (mac.to_string(), attached.bridge.as_ref());
    let found = [("tap", Some(name.as_str())), (MAC_NOTE, Some(mac_text.as_str()))];
    for (key, value) in found.into_iter().chain([("bridge", bridge.map(InterfaceName::as_str))]) {
        let Some(value) = value else { continue };
        keys.publish(key, value)?;
        stats.note(key, value);
    }
    let bridge = bridge.map(tracing::field::display);
    tracing::info!(tap = %name, bridge, %mac, queues = pairs.count(), "network device opened");
    let net = Net::new(attached.interface, mac, pairs, limits, Arc::clone(stats));
    Ok(net.locked(lock(settings, mac)))
}

/// The addresses that the guest's packets may come from.
fn lock(settings: &NetworkSettings, mac: MacAddress) -> Option<AddressLock> {
    match &settings.lock_addresses {
        Some(addresses) => Some(AddressLock::to_addresses(mac, addresses.clone())),
        None => settings.lock_mac.unwrap_or(false).then(|| AddressLock::to_mac(mac)),
    }
}

/// Returns the MAC address of a device whose configuration has none.
fn address<S: XenStore>(keys: &mut Keys<S>, path: &DevicePath) -> Result<MacAddress, DeviceError> {
    if let Some(uuid) = keys.guest_uuid()? {
        return Ok(MacAddress::of_device(&uuid, path.number));
    }
    tracing::warn!("cannot read the guest's UUID: its MAC address changes at each start");
    MacAddress::random().map_err(DeviceError::Address)
}
