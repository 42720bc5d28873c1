//! The limits of driver domains, which Dom0 sees in libxl's records and they themselves do not.

use std::collections::BTreeMap;

use serde_json::Value;

use super::finding::Finding;
use super::host::Host;
use super::inventory::{Inventory, LibxlGuest};
use super::libxl_record;
use super::map_tracking::{ALL_POOLS, DRIVER_POOL, ENTRIES, FRAMES, GUEST_POOLS};

/// Event channels of a domain whose configuration has no other number.
const CHANNELS: u64 = 1023;
/// Event channels that a device takes, with four queues, and those that a domain takes by itself.
const EACH: u64 = 5;
const OWN: u64 = 64;
/// The number in a record that stands for none.
const UNSET: u64 = u32::MAX as u64;

pub(super) fn examine(host: &Host) -> Vec<Finding> {
    if !host.is_dom0() {
        return vec![Finding::ok("the limits of driver domains are Dom0's")];
    }
    let inventory = match host.inventory() {
        Ok(inventory) => inventory,
        Err(unknown) => return vec![unknown],
    };
    let (mut findings, mut count) = (Vec::new(), 0_usize);
    for (id, devices) in backends(inventory) {
        // A backend in a domain that is gone waits for `xen-virtiod reattach`.
        let Some(domain) = inventory.guests.iter().find(|guest| guest.id == id) else { continue };
        count += 1;
        match libxl_record::read(host, domain) {
            Err(_) => return vec![Finding::root_only("libxl's records of driver domains")],
            Ok(record) => findings.extend(examine_one(domain, &devices, record.as_ref())),
        }
    }
    match findings.is_empty() {
        true => vec![Finding::ok(format!("{count} driver domain(s) may have what devices take"))],
        false => findings,
    }
}

/// The domains that serve devices, with the number of devices of each guest.
fn backends(inventory: &Inventory) -> BTreeMap<u16, BTreeMap<u16, u64>> {
    let mut found = BTreeMap::<u16, BTreeMap<u16, u64>>::new();
    for guest in &inventory.guests {
        for backend in guest.backends.iter().filter(|id| Some(**id) != inventory.own) {
            *found.entry(*backend).or_default().entry(guest.id).or_default() += 1;
        }
    }
    found
}

fn examine_one(
    domain: &LibxlGuest,
    devices: &BTreeMap<u16, u64>,
    record: Option<&Value>,
) -> Vec<Finding> {
    let LibxlGuest { id, name, .. } = domain;
    let number = |key: &str| {
        let value = record?.get("b_info")?.get(key)?.as_u64();
        value.filter(|value| *value != UNSET)
    };
    let kind = record.and_then(|record| record.get("c_info")?.get("type")?.as_str());
    let factor = if kind == Some("pv") { 2 } else { 1 };
    let pages: u64 = devices.values().map(|count| (count * DRIVER_POOL).min(GUEST_POOLS)).sum();
    let all: u64 = devices.values().sum();
    let limits = [
        ("max_maptrack_frames", number("max_maptrack_frames").unwrap_or(FRAMES), {
            (pages.min(ALL_POOLS) * factor).div_ceil(ENTRIES)
        }),
        ("max_event_channels", number("event_channels").unwrap_or(CHANNELS), OWN + EACH * all),
    ];
    let short = limits.into_iter().filter(|(_, limit, needed)| limit < needed);
    let finding = |(key, limit, needed): (&str, u64, u64)| {
        let text = format!(
            "{name} serves {all} device(s), which may take {key} = {needed}, and has {limit}: \
             then it refuses devices, or serves them more slowly"
        );
        let needed = needed.next_power_of_two();
        Finding::warning(text).mend(format!(
            "editor FILE   # its configuration: {key} = {needed}; then xl shutdown -w {id}; \
             xl create FILE; xen-virtiod reattach {name}"
        ))
    };
    short.map(finding).collect()
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::super::host;
    use super::super::inventory::StoreFailure;
    use super::super::tests::TestHost;

    const CHECK: &str = "driver domains";

    fn with_limits(kind: &str, frames: u32, channels: u32) -> TestHost {
        let host = TestHost::healthy();
        host.serve_elsewhere(&format!(
            "{{\"c_info\": {{\"type\": \"{kind}\"}}, \"b_info\": \
             {{\"max_maptrack_frames\": {frames}, \"event_channels\": {channels}}}}}"
        ));
        host
    }

    #[test]
    fn limits_below_the_need_of_devices_are_warnings() {
        // Two devices with 2048 pages each.
        with_limits("pvh", 16, 74).expect(CHECK, &["ok: 1 driver domain(s)"]);
        with_limits("pvh", 15, 74).expect(CHECK, &[
            "warning: storage serves 2 device(s), which may take max_maptrack_frames = 16, and has",
            "mend: editor FILE   # its configuration: max_maptrack_frames = 16; then xl shutdown",
        ]);
        with_limits("pv", 31, 74).expect(CHECK, &["warning: ", "max_maptrack_frames = 32"]);
        with_limits("pvh", 16, 73)
            .expect(CHECK, &["warning: ", "may take max_event_channels = 74, and", " = 128; then"]);
        with_limits("pvh", u32::MAX, u32::MAX).expect(CHECK, &["ok: 1 driver domain(s)"]);
    }

    #[test]
    fn host_without_driver_domains_lacks_nothing() {
        let mut host = TestHost::healthy();
        host.expect(CHECK, &["ok: 0 driver domain(s)"]);
        // One that reboots.
        host.serve_elsewhere("{}");
        host.hypervisor.store_remove("/libxl/5");
        host.expect(CHECK, &["ok: 0 driver domain(s)"]);
        host.fail_store(StoreFailure::NotPermitted);
        host.expect(CHECK, &["unknown: XenStore does not show"]);
        host.become_driver_domain();
        host.expect(CHECK, &["ok: the limits of driver domains are Dom0's"]);
    }

    #[test]
    fn records_of_driver_domains_are_roots() {
        let mut host = with_limits("pvh", 16, 74);
        host.host.open = |path| match path.to_string_lossy().ends_with("libxl-json") {
            true => Err(io::ErrorKind::PermissionDenied.into()),
            false => host::open(path),
        };
        host.expect(CHECK, &["unknown: libxl's records of driver domains: only root"]);
    }
}
