//! Settings of network devices.

use serde::Deserialize;

use crate::device::net::{MacAddress, QueuePairs};
use crate::tap::name::InterfaceName;
use crate::tap::network::Bridge;

/// Settings of one network device.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NetworkSettings {
    /// The bridge to attach the interface to.
    pub bridge: Option<Bridge>,
    /// The guest's MAC address.
    pub mac: Option<MacAddress>,
    /// Number of queue pairs.
    pub queues: Option<QueuePairs>,
    /// Name of the interface in this domain.
    pub tap: Option<InterfaceName>,
}

/// Settings of all network devices. They have no address and no name, which must be unique.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct NetworkDefaults {
    bridge: Option<Bridge>,
    queues: Option<QueuePairs>,
}

impl NetworkDefaults {
    /// Merges a device's own settings with these defaults, key by key.
    pub(super) fn under(&self, own: NetworkSettings) -> NetworkSettings {
        NetworkSettings {
            bridge: own.bridge.or_else(|| self.bridge.clone()),
            queues: own.queues.or(self.queues),
            ..own
        }
    }
}
