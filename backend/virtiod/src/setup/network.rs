//! Opens a network device. Publishes `tap`, `mac` and, if its interface is a bridge's port,
//! `bridge` in the backend's directory.

use std::net::IpAddr;
use std::sync::Arc;

use super::DeviceError;
use crate::bus::{DevicePath, Keys};
use crate::config::NetworkSettings;
use crate::device::net::{AddressLock, MacAddress, Net, NetLimits};
use crate::stats::DeviceStats;
use crate::tap::name::InterfaceName;
use crate::tap::network::{Attachment, Bridge, InterfaceRequest, Network, NetworkError};
use crate::tap::script::Script;
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
    if let Some(contradiction) = settings.contradiction() {
        return Err(contradiction.into());
    }
    let attachment = match settings.script.clone() {
        None => Attachment::Bridge { bridge, vlans: settings.vlans().cloned() },
        Some(path) => {
            let bridge = match bridge {
                Bridge::Named(bridge) => Some(bridge),
                Bridge::Usual | Bridge::Alone => None,
            };
            Attachment::Script(Script { path, bridge, gateway: settings.gateway.clone() })
        }
    };
    let pairs = settings.queues.unwrap_or_default();
    Ok(InterfaceRequest { name, attachment, pairs, device: path.record_name() })
}

/// Publishes what the script of an interface looks for in XenStore, as libxl does for a vif, and
/// returns it.
///
/// # Errors
/// [`DeviceError`].
pub(super) fn publish_for_script<S: XenStore>(
    keys: &mut Keys<S>,
    path: &DevicePath,
    settings: &NetworkSettings,
    script: &Script,
) -> Result<Vec<(&'static str, String)>, DeviceError> {
    let mac = match settings.mac {
        Some(mac) => Some(mac),
        None => keys.guest_uuid()?.map(|uuid| MacAddress::of_device(&uuid, path.number)),
    };
    let addresses = settings.lock_addresses.iter().flatten().map(IpAddr::to_string);
    let addresses = addresses.collect::<Vec<_>>().join(" ");
    let values = [
        ("script", Some(script.path.to_string())),
        (MAC_NOTE, mac.map(|mac| mac.to_string())),
        ("bridge", script.bridge.as_ref().map(InterfaceName::to_string)),
        ("ip", Some(addresses).filter(|addresses| !addresses.is_empty())),
    ];
    let mut given = Vec::new();
    for (key, value) in values {
        match value {
            Some(value) => {
                keys.publish(key, &value)?;
                given.push((key, value));
            }
            // One of an earlier configuration.
            None => keys.withdraw(key)?,
        }
    }
    given.extend(script.gateway.iter().map(|gateway| ("netdev", gateway.to_string())));
    Ok(given)
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
