//! Detects two network devices with one MAC address.

use tracing::Level;

use super::registry::Registry;
use crate::bus::DevicePath;
use crate::setup::network::MAC_NOTE;
use crate::stats::DeviceStats;

/// Logs a warning if another device has the MAC address of this one: two guests with one `uuid`
/// line. The daemon refuses neither, since a guest that migrates on one host looks the same.
pub fn warn_of_same_address(registry: &Registry, path: &DevicePath, stats: &DeviceStats) {
    for other in registry.others_with_same(MAC_NOTE, path) {
        let other = format!("{} of {}", other.name(), other.guest);
        stats.note("same mac as", &other);
        let said = format_args!(
            "{other} has the same MAC address: on one bridge neither gets its packets; give each \
             guest a uuid of its own, or a mac in the configuration file"
        );
        stats.log.line(Level::WARN, said);
    }
}
