//! Two guests with one address.

use tracing::Level;

use super::registry::Registry;
use crate::bus::DevicePath;
use crate::setup::network::MAC_NOTE;
use crate::stats::DeviceStats;

/// Says so where another guest's device has the address that was noted for this one: two guests
/// with one `uuid` line. Neither is refused, since that is also how a guest migrates on one host.
pub fn warn_of_same_address(registry: &Registry, path: &DevicePath, stats: &DeviceStats) {
    for other in registry.others_with_same(MAC_NOTE, path) {
        let other = format!("{} of {}", other.name(), other.guest);
        stats.note("same mac as", &other);
        let said = format_args!(
            "the MAC address is also that of {other}: at one bridge neither gets its packets; give \
             each guest a uuid of its own, or a mac in the configuration file"
        );
        stats.log.line(Level::WARN, said);
    }
}
