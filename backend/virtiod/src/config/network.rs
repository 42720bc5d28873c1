//! Settings of network devices.

use std::net::IpAddr;

use serde::Deserialize;

use super::RateLimit;
use crate::device::net::{MacAddress, QueuePairs};
use crate::tap::name::InterfaceName;
use crate::tap::network::Bridge;
use crate::tap::script::ScriptPath;
use crate::tap::vlan::{PortVlans, Vlans};

/// Settings of one network device.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct NetworkSettings {
    /// The bridge to attach the interface to.
    pub bridge: Option<Bridge>,
    /// The VLANs that it is in, as the bridge's port.
    pub vlan: Option<PortVlans>,
    /// The script that attaches it, in place of the daemon.
    pub script: Option<ScriptPath>,
    /// The interface whose address the script uses.
    pub gateway: Option<InterfaceName>,
    /// The guest's MAC address.
    pub mac: Option<MacAddress>,
    /// Number of queue pairs.
    pub queues: Option<QueuePairs>,
    /// Name of the interface in this domain.
    pub tap: Option<InterfaceName>,
    /// Limit of packets to the guest.
    pub rate_to_guest: Option<RateLimit>,
    /// Limit of packets from the guest.
    pub rate_from_guest: Option<RateLimit>,
    /// Whether packets from the guest may come from its own MAC address alone.
    pub lock_mac: Option<bool>,
    /// The IP addresses that they may come from; they come from its own MAC address alone then.
    pub lock_addresses: Option<Vec<IpAddr>>,
}

/// Settings of a network device that cannot hold together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Contradiction {
    /// VLANs, and no bridge.
    #[error("vlan = \"...\" needs a bridge: set vlan = \"none\" with bridge = \"none\"")]
    VlansAlone,
    /// VLANs, and a script that attaches the interface.
    #[error("vlan = \"...\" has no effect on a script: set vlan = \"none\" with script = \"...\"")]
    VlansOfScript,
}

impl NetworkSettings {
    /// The VLANs that the interface is in; `None` for those of the bridge.
    pub fn vlans(&self) -> Option<&Vlans> {
        match &self.vlan {
            Some(PortVlans::Named(vlans)) => Some(vlans),
            Some(PortVlans::Usual) | None => None,
        }
    }

    /// What cannot hold together.
    pub fn contradiction(&self) -> Option<Contradiction> {
        self.vlans()?;
        match (&self.script, &self.bridge) {
            (Some(_), _) => Some(Contradiction::VlansOfScript),
            (None, Some(Bridge::Alone)) => Some(Contradiction::VlansAlone),
            (None, _) => None,
        }
    }

    /// Whether they say to which network the guest belongs, or what it may send.
    pub(super) fn isolate(&self) -> bool {
        self.bridge.is_some()
            || self.script.is_some()
            || self.vlans().is_some()
            || self.lock_mac == Some(true)
            || self.lock_addresses.is_some()
    }
}

/// Settings of all network devices. They have no address and no name, which must be unique.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct NetworkDefaults {
    bridge: Option<Bridge>,
    vlan: Option<PortVlans>,
    script: Option<ScriptPath>,
    gateway: Option<InterfaceName>,
    queues: Option<QueuePairs>,
    rate_to_guest: Option<RateLimit>,
    rate_from_guest: Option<RateLimit>,
    lock_mac: Option<bool>,
}

impl NetworkDefaults {
    /// Merges a device's own settings with these defaults, key by key.
    pub(super) fn under(&self, own: NetworkSettings) -> NetworkSettings {
        NetworkSettings {
            bridge: own.bridge.or_else(|| self.bridge.clone()),
            vlan: own.vlan.or_else(|| self.vlan.clone()),
            script: own.script.or_else(|| self.script.clone()),
            gateway: own.gateway.or_else(|| self.gateway.clone()),
            queues: own.queues.or(self.queues),
            rate_to_guest: own.rate_to_guest.or(self.rate_to_guest),
            rate_from_guest: own.rate_from_guest.or(self.rate_from_guest),
            lock_mac: own.lock_mac.or(self.lock_mac),
            ..own
        }
    }
}
