//! Guests with disks of two kinds. libxl accepts one that is attached to a guest with the other,
//! and then loses all of the guest's disks at the next reboot or save (`xen-configs/README.md`).

use serde_json::Value;

use super::finding::Finding;
use super::host::Host;
use super::inventory::LibxlGuest;
use super::libxl_record;

pub(super) fn examine(host: &Host) -> Vec<Finding> {
    if !host.is_dom0() {
        return vec![Finding::ok("the toolstack's records are Dom0's")];
    }
    let inventory = match host.inventory() {
        Ok(inventory) => inventory,
        Err(unknown) => return vec![unknown],
    };
    let has_disks =
        |guest: &&LibxlGuest| !guest.virtio_disks.is_empty() || !guest.other_disks.is_empty();
    let (mut findings, mut count) = (Vec::new(), 0_usize);
    for guest in inventory.guests.iter().filter(has_disks) {
        count += 1;
        // XenStore has most of it, for those who may not read the record.
        let record = libxl_record::read(host, guest).ok().flatten();
        findings.extend(examine_guest(guest, record.as_ref()));
    }
    match findings.is_empty() {
        true => vec![Finding::ok(format!("none of {count} guest(s) has disks of two kinds"))],
        false => findings,
    }
}

fn examine_guest(guest: &LibxlGuest, record: Option<&Value>) -> Option<Finding> {
    let disks = record.and_then(|record| record.get("disks")?.as_array());
    let (virtio, others): (Vec<_>, Vec<_>) = disks
        .into_iter()
        .flatten()
        .partition(|disk| disk.get("specification").and_then(Value::as_str) == Some("virtio"));
    let names = |disks: Vec<&Value>, more: &[String]| {
        let named =
            disks.into_iter().filter_map(|disk| Some(disk.get("vdev")?.as_str()?.to_owned()));
        let mut names: Vec<_> = named.chain(more.iter().cloned()).collect();
        names.sort_unstable();
        names.dedup();
        names
    };
    let (virtio, others) = (names(virtio, &guest.virtio_disks), names(others, &guest.other_disks));
    if virtio.is_empty() || others.is_empty() {
        return None;
    }
    let LibxlGuest { id, name, .. } = guest;
    let text = format!(
        "{name} has virtio disks ({}) and disks or CD-ROMs of another kind ({}): xl loses all of \
         them at the next reboot, save or migration",
        virtio.join(", "),
        others.join(", ")
    );
    let finding = Finding::warning(text);
    Some(others.iter().fold(finding, |finding, disk| {
        finding.mend(format!("xl block-detach {id} {disk}   # once the guest does not use it"))
    }))
}

#[cfg(test)]
mod tests {
    use super::super::inventory::StoreFailure;
    use super::super::tests::{RECORD, TestHost};

    const CHECK: &str = "kinds of disks";

    #[test]
    fn guest_with_disks_of_two_kinds_is_a_warning() {
        let mut host = TestHost::healthy();
        host.expect(CHECK, &["ok: none of 1 guest(s)"]);
        host.hypervisor.store_write("/libxl/3/device/vbd/51744/dev", "xvdc");
        host.expect(
            CHECK,
            &["warning: web has virtio disks (xvda) and", "(xvdc)", "detach 3 xvdc"],
        );
        host.fail_store(StoreFailure::NotPermitted);
        host.expect(CHECK, &["unknown: XenStore does not show"]);
        host.become_driver_domain();
        host.expect(CHECK, &["ok: the toolstack's records are Dom0's"]);
    }

    #[test]
    fn record_counts_as_well_as_xenstore() {
        let host = TestHost::healthy();
        let disk = |vdev, specification| {
            format!("{{\"vdev\": \"{vdev}\", \"specification\": \"{specification}\"}}")
        };
        let (first, second) = (disk("xvda", "virtio"), disk("hdc", "xen"));
        host.write(RECORD, &format!("{{\"disks\": [{first}]}}"));
        host.expect(CHECK, &["ok: none"]);
        host.write(RECORD, &format!("{{\"disks\": [{first}, {second}]}}"));
        host.expect(CHECK, &["warning: web has virtio disks (xvda)", "block-detach 3 hdc"]);
        host.write(RECORD, "{\"disks\": 3}");
        host.expect(CHECK, &["ok: none"]);
    }
}
