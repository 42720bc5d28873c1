//! `xen-virtiod doctor`: says what a host lacks to serve virtio devices, and the commands that mend
//! it.
//!
//! It changes nothing: it reads files, XenStore and libxl's records, and asks a daemon that runs.
//! It works in Dom0 and in a driver domain, without a daemon and, as far as the kernel lets it, as
//! any user. Nothing here is used by the daemon.

mod configuration;
mod daemon;
mod descriptors;
mod device_files;
mod devices;
mod domain;
mod driver_domains;
mod event_channels;
mod finding;
mod grants;
mod host;
mod images;
mod inventory;
mod kernel;
mod libxl_record;
mod map_tracking;
mod mixed_disks;
mod network;
mod program;
mod report;
mod systemd;
#[cfg(test)]
mod tests;
mod versions;
mod xenstore;

pub use self::finding::{Finding, Severity};
pub use self::host::Host;
pub use self::report::{Report, print};

/// A check, by the name that its findings have.
struct Check {
    name: &'static str,
    /// Whether it has a meaning only in a domain of Xen's.
    needs_xen: bool,
    examine: fn(&Host) -> Vec<Finding>,
}

const fn always(name: &'static str, examine: fn(&Host) -> Vec<Finding>) -> Check {
    Check { name, needs_xen: false, examine }
}

const fn under_xen(name: &'static str, examine: fn(&Host) -> Vec<Finding>) -> Check {
    Check { name, needs_xen: true, examine }
}

/// All checks, in the order of their findings: first those whose failure explains others.
const CHECKS: [Check; 18] = [
    always(domain::NAME, domain::examine),
    under_xen("devices of Xen", device_files::examine),
    under_xen("XenStore", xenstore::examine),
    under_xen("versions", versions::examine),
    always("configuration", configuration::examine),
    under_xen("daemon", daemon::examine),
    always("systemd", systemd::examine),
    always("kernel", kernel::examine),
    always("network", network::examine),
    under_xen("devices", devices::examine),
    under_xen("images", images::examine),
    under_xen("kinds of disks", mixed_disks::examine),
    always("descriptors", descriptors::examine),
    under_xen("event channels", event_channels::examine),
    under_xen("map tracking", map_tracking::examine),
    under_xen("grants", grants::examine),
    under_xen("driver domains", driver_domains::examine),
    always("memory maps", map_tracking::examine_mappings),
];

/// Carries out all checks that have a meaning on this host.
pub fn examine(host: &Host) -> Report {
    let is_xen = domain::is_xen(host);
    let (done, left): (Vec<_>, Vec<_>) =
        CHECKS.iter().partition(|check| is_xen || !check.needs_xen);
    let mut report = Report::default();
    for check in done {
        (check.examine)(host).into_iter().for_each(|finding| report.add(check.name, finding));
    }
    if !left.is_empty() {
        let names: Vec<_> = left.iter().map(|check| check.name).collect();
        let text = format!("without Xen there is nothing to look at: {}", names.join(", "));
        report.add("other checks", Finding::unknown(text));
    }
    report
}
