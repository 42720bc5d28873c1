//! A report of devices of each kind, for tests.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use xen::DomId;
use xen_virtiod::bus::DevicePath;
use xen_virtiod::daemon::registry::{Registry, Report};
use xen_virtiod::guest_log::GuestLog;
use xen_virtiod::stats::{DeviceStats, Operation, StorageUse, Tick};

/// Number of present devices in [`full_report`].
pub const PRESENT: usize = 5;

struct Devices(Registry);

impl Devices {
    fn add(&self, kind: &str, guest: u16, number: u32) -> (Arc<DeviceStats>, DevicePath) {
        let class = if kind == "blk" { "virtio_disk" } else { "virtio" }.to_owned();
        let path = DevicePath { class, guest: DomId(guest), number };
        let stats = self.0.begin(&path, Arc::<GuestLog>::default());
        stats.update(|state| {
            (state.kind, state.state) = (kind.to_owned(), "connected".to_owned());
        });
        (stats, path)
    }
}

fn set(counter: &AtomicU64, value: u64) {
    counter.store(value, Ordering::Relaxed);
}

/// A disk of a guest whose name needs escapes, a device of each other kind of a guest without a
/// name, and two disks that are removed.
pub fn full_report() -> Report {
    let devices = Devices(Registry::default());
    let storage = Arc::new(StorageUse::new("/dev/vg/web".to_owned(), 256));
    let part = StorageUse::add_part(&storage);
    for number in [51712, 51728] {
        let (removed, path) = devices.add("blk", 4, number);
        if number == 51712 {
            removed.set_storage(&storage);
        }
        removed.update(|state| state.state = "closed".to_owned());
        devices.0.end(&path);
    }
    let (disk, _) = devices.add("blk", 5, 51712);
    disk.set_guest("web \"1\"\nand \\ more");
    disk.note("target", "/dev/vg/web");
    disk.set_storage(&storage);
    part.begin(0, Tick::now());
    set(&disk.reads, 101);
    set(&disk.bytes_read, 101 << 12);
    disk.latency.record(Operation::Read, 100_000, 100);
    disk.latency.record(Operation::Read, 2_000_000_000, 1);
    disk.update(|state| {
        state.features = vec!["VIRTIO_F_VERSION_1".to_owned()];
        state.needs_reset = Some("descriptor 5: no grant".to_owned());
        state.error = Some("no such file".to_owned());
    });
    for (number, kind) in [(0, "net"), (1, "console"), (2, "rng"), (3, "vsock")] {
        let (device, _) = devices.add(kind, 6, number);
        set(&device.grants_mapped, 1);
        set(&device.dropped_to_guest, 2);
        set(&device.connections, 3);
    }
    // The parts of the disk are there while the report is made.
    let report = devices.0.report();
    drop(part);
    report
}
