//! Xen's map tracking, and the kernel's limit of a process's mappings, against the pools of
//! devices.

use std::collections::BTreeMap;

use super::finding::Finding;
use super::host::Host;
use super::inventory::Inventory;

/// Entries of a frame, and frames of a domain for which nobody has set another number.
pub(super) const ENTRIES: u64 = 256;
pub(super) const FRAMES: u64 = 1024;
/// Pages of the pools of a guest, and of all guests (`dma/budget.rs`).
pub(super) const GUEST_POOLS: u64 = 24_576;
pub(super) const ALL_POOLS: u64 = 65_536;
/// Pages that a device's driver shares by default.
pub(super) const DRIVER_POOL: u64 = 2048;
/// Linux' default limit of a process's mappings.
const MAPPINGS: u64 = 65_530;

pub(super) fn examine(host: &Host) -> Vec<Finding> {
    let inventory = match host.inventory() {
        Ok(inventory) => inventory,
        Err(unknown) => return vec![unknown],
    };
    let pool = host.config.load().ok().flatten().unwrap_or_default().service().pool.pages().into();
    let most = pages(inventory, pool).min(ALL_POOLS) * if host.is_pv() { 2 } else { 1 };
    // A driver domain cannot read its own limit.
    let set = host.xen_option("gnttab_max_maptrack_frames");
    let capacity = set.unwrap_or(FRAMES) * ENTRIES;
    if most > capacity {
        let text = format!(
            "the pools of all devices may take {most} entries, and this domain has {capacity} \
             (gnttab_max_maptrack_frames): then guests' requests fail"
        );
        let frames = FRAMES.max(most.div_ceil(ENTRIES));
        let option =
            format!("GRUB_CMDLINE_XEN=\"$GRUB_CMDLINE_XEN gnttab_max_maptrack_frames={frames}\"");
        let mend = format!("echo '{option}' >>/etc/default/grub; update-grub; reboot");
        return vec![Finding::error(text).mend(mend)];
    }
    let usual = pages(inventory, pool.min(DRIVER_POOL));
    if usual > ALL_POOLS {
        let text = format!(
            "the pools of all devices may have {usual} pages, and have {ALL_POOLS} at most: those \
             that come last get less, and are slower"
        );
        let fair = (pool.min(DRIVER_POOL) * ALL_POOLS / usual / 64 * 64).max(64);
        let path = host.config.path().display();
        let mend = format!("editor {path}   # [default], then a line pool = {fair}");
        return vec![Finding::warning(text).mend(mend)];
    }
    let source = match set {
        Some(_) => "as Xen's command line says",
        None if host.is_dom0() => "unless gnttab_max_maptrack_frames is set",
        None => "unless this domain's configuration has max_maptrack_frames",
    };
    vec![Finding::ok(format!("pools take {most} entries at most, of {capacity}, {source}"))]
}

/// The pages of all pools, if each device has at most `pool`.
fn pages(inventory: &Inventory, pool: u64) -> u64 {
    let mut devices = BTreeMap::<u16, u64>::new();
    for device in &inventory.served {
        *devices.entry(device.guest).or_default() += 1;
    }
    devices.values().map(|count| (count * pool).min(GUEST_POOLS)).sum()
}

pub(super) fn examine_mappings(host: &Host) -> Vec<Finding> {
    let path = "/proc/sys/vm/max_map_count";
    vec![match host.number(path) {
        Some(count) if count < MAPPINGS => {
            let text = format!(
                "a process may have {count} mappings (vm.max_map_count), fewer than the kernel's \
                 default: pools stay smaller"
            );
            let file = "/etc/sysctl.d/60-xen-virtiod.conf";
            Finding::warning(text)
                .mend(format!("echo vm.max_map_count={MAPPINGS} >>{file}; sysctl --system"))
                .mend("systemctl restart xen-virtiod")
        }
        Some(count) => Finding::ok(format!("a process may have {count} mappings")),
        None => Finding::unknown(format!("{path} cannot be read")),
    }]
}

#[cfg(test)]
mod tests {
    use super::super::inventory::StoreFailure;
    use super::super::tests::TestHost;

    const CHECK: &str = "map tracking";

    fn set_frames(host: &mut TestHost, frames: u64) {
        let option = format!("gnttab_max_maptrack_frames=9 gnttab_max_maptrack_frames={frames}");
        host.answer("xl info", &format!("host : h\nxen_commandline : placeholder {option} com1\n"));
    }

    #[test]
    fn limit_below_the_need_of_pools_is_an_error() {
        let mut host = TestHost::healthy();
        host.expect(CHECK, &["ok: pools take 24576 entries at most, of 262144, unless gnttab_max"]);
        // Three devices with 4096 pages, two entries for each in a PV domain.
        set_frames(&mut host, 95);
        host.expect(
            CHECK,
            &["error: the pools", "24576 entries, and this domain has 24320", "=1024"],
        );
        set_frames(&mut host, 96);
        host.expect(CHECK, &["ok: pools take 24576 entries at most, of 24576, as Xen's command"]);
        set_frames(&mut host, 48);
        host.write("/sys/hypervisor/guest_type", "PVH\n");
        host.expect(CHECK, &["ok: pools take 12288 entries at most, of 12288"]);
        host.configure("[default]\npool = 64\n");
        host.expect(CHECK, &["ok: pools take 192 entries"]);
        host.fail_store(StoreFailure::NotPermitted);
        host.expect(CHECK, &["unknown: XenStore does not show"]);
        host.failure = None;
        host.become_driver_domain();
        host.expect(CHECK, &["of 262144, unless this domain's configuration has"]);
    }

    #[test]
    fn pools_of_many_guests_share_a_limit() {
        let host = TestHost::healthy();
        // With the three of the first guest: 33 devices.
        for guest in 10..40 {
            host.disk(guest, 51712, "/images/web.img");
        }
        host.expect(CHECK, &["warning: the pools of all devices may have 67584", "pool = 1984"]);
        host.configure("[default]\npool = 1984\n");
        host.expect(CHECK, &["ok: pools take 130944 entries"]);
        // A guest has 24576 pages at most.
        for disk in 0..100 {
            host.disk(3, 51728 + disk * 16, "/images/web.img");
        }
        host.expect(CHECK, &["warning: the pools of all devices may have 84096 pages"]);
    }

    #[test]
    fn limit_of_mappings_below_the_default_is_a_warning() {
        let host = TestHost::healthy();
        host.expect("memory maps", &["ok: a process may have 1048576"]);
        host.write("/proc/sys/vm/max_map_count", "65529\n");
        host.expect(
            "memory maps",
            &["warning: a process may have 65529", "vm.max_map_count=65530"],
        );
        host.write("/proc/sys/vm/max_map_count", "65530\n");
        host.expect("memory maps", &["ok: a process may have 65530"]);
        host.remove("/proc/sys/vm/max_map_count");
        host.expect("memory maps", &["unknown: "]);
    }
}
