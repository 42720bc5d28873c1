//! What can be said of a network device.

use serde::Deserialize;

use crate::device::net::{MacAddress, QueuePairs};
use crate::tap::name::InterfaceName;
use crate::tap::network::Bridge;

/// Of one device.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NetworkSettings {
    /// Where its interface belongs.
    pub bridge: Option<Bridge>,
    /// The guest's address.
    pub mac: Option<MacAddress>,
    /// How many queue pairs it has.
    pub queues: Option<QueuePairs>,
    /// Its interface's name.
    pub tap: Option<InterfaceName>,
}

/// Of all devices: an address or a name would be that of several.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct NetworkDefaults {
    bridge: Option<Bridge>,
    queues: Option<QueuePairs>,
}

impl NetworkDefaults {
    /// What counts for a device, key by key.
    pub(super) fn under(&self, own: NetworkSettings) -> NetworkSettings {
        NetworkSettings {
            bridge: own.bridge.or_else(|| self.bridge.clone()),
            queues: own.queues.or(self.queues),
            ..own
        }
    }
}
