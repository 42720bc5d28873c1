//! Detects two network devices with one MAC address.

use std::sync::Arc;

use tracing::Level;

use super::registry::Registry;
use crate::bus::DevicePath;
use crate::process::device_thread::OpenedHook;
use crate::setup::network::MAC_NOTE;
use crate::stats::DeviceStats;

/// Looks at each opened device in `registry`.
pub fn same_address_hook(registry: Arc<Registry>) -> OpenedHook {
    Arc::new(move |path, stats| warn_of_same_address(&registry, path, stats))
}

/// Logs a warning if another device has the MAC address of this one: two guests with one `uuid`
/// line. The daemon refuses neither, since a guest that migrates on one host looks the same.
fn warn_of_same_address(registry: &Registry, path: &DevicePath, stats: &DeviceStats) {
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
