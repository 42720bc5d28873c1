//! Grants that guests may have, as libxl's records say: their devices' pools take them.

use serde_json::Value;

use super::finding::Finding;
use super::host::Host;
use super::inventory::LibxlGuest;
use super::libxl_record;

/// Frames of a guest for which nobody has set another number.
const FRAMES: u64 = 64;
/// The number in a record that stands for none.
const UNSET: u64 = u32::MAX as u64;
/// Pages that a device's pool has at most by default; those that one device's may have for each
/// frame of the guest, which are an eighth of a frame's grants, and those of all, three eighths.
const POOL: u64 = 2048;
const EACH: u64 = 512 / 8;
const ALL: u64 = 512 / 8 * 3;

pub(super) fn examine(host: &Host) -> Vec<Finding> {
    if !host.is_dom0() {
        return vec![Finding::ok("the limits of guests are Dom0's")];
    }
    let inventory = match host.inventory() {
        Ok(inventory) => inventory,
        Err(unknown) => return vec![unknown],
    };
    let (mut findings, mut count) = (Vec::new(), 0_usize);
    for guest in inventory.guests.iter().filter(|guest| devices(guest) > 0) {
        count += 1;
        match libxl_record::read(host, guest) {
            Err(_) => return vec![Finding::root_only("libxl's records of guests")],
            Ok(record) => findings.extend(examine_guest(guest, record.as_ref())),
        }
    }
    match findings.is_empty() {
        true => vec![Finding::ok(format!("{count} guest(s) may grant the pools of their devices"))],
        false => findings,
    }
}

fn devices(guest: &LibxlGuest) -> u64 {
    (guest.virtio_disks.len() + guest.other_devices) as u64
}

fn examine_guest(guest: &LibxlGuest, record: Option<&Value>) -> Option<Finding> {
    let frames = record.and_then(|record| record.get("b_info")?.get("max_grant_frames")?.as_u64());
    let frames = frames.filter(|frames| *frames != UNSET).unwrap_or(FRAMES);
    let devices = devices(guest);
    let needed = POOL.div_ceil(EACH).max((devices * POOL).div_ceil(ALL));
    let LibxlGuest { id, name, .. } = guest;
    (frames < needed).then(|| {
        let text = format!(
            "{name} has {devices} device(s) and max_grant_frames = {frames}: their pools stay \
             below {POOL} pages each, and are slower under load"
        );
        Finding::warning(text).mend(format!(
            "editor FILE   # its configuration: max_grant_frames = {needed}; then xl shutdown -w \
             {id}; xl create FILE"
        ))
    })
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::super::host;
    use super::super::inventory::StoreFailure;
    use super::super::tests::{RECORD, TestHost};

    const CHECK: &str = "grants";

    fn set_frames(host: &TestHost, frames: u64) {
        host.write(RECORD, &format!("{{\"b_info\": {{\"max_grant_frames\": {frames}}}}}\n\0"));
    }

    #[test]
    fn few_frames_are_a_warning() {
        let host = TestHost::healthy();
        host.expect(CHECK, &["ok: 1 guest(s) may grant"]);
        set_frames(&host, 31);
        host.expect(
            CHECK,
            &["warning: web has 3 device(s) and max_grant_frames = 31", "= 32; then"],
        );
        for frames in [32, u32::MAX.into()] {
            set_frames(&host, frames);
            host.expect(CHECK, &["ok: 1 guest(s)"]);
        }
    }

    #[test]
    fn many_devices_need_more_frames_than_the_default() {
        let host = TestHost::healthy();
        for number in 1..=4 {
            host.hypervisor.store_write(&format!("/libxl/3/device/virtio/1{number}/state"), "1");
        }
        host.expect(
            CHECK,
            &["warning: web has 7 device(s) and max_grant_frames = 64", "= 75; then"],
        );
        set_frames(&host, 75);
        host.expect(CHECK, &["ok: 1 guest(s)"]);
    }

    #[test]
    fn records_are_roots_and_dom0s() {
        let mut host = TestHost::healthy();
        host.host.open = |path| match path.to_string_lossy().ends_with("libxl-json") {
            true => Err(io::ErrorKind::PermissionDenied.into()),
            false => host::open(path),
        };
        host.expect(CHECK, &["unknown: libxl's records of guests: only root"]);
        host.fail_store(StoreFailure::NotPermitted);
        host.expect(CHECK, &["unknown: XenStore does not show"]);
        host.become_driver_domain();
        host.expect(CHECK, &["ok: the limits of guests are Dom0's"]);
    }
}
