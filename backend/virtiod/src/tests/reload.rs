//! Tests of a configuration file that changes while disks run.

use virtio_bindings::virtio_blk::{VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT};

use super::block::{OK, request};
use super::driver::Driver;
use super::host::{Host, XVDA, numbered_disk};
use xen::DomId;

/// A limit that each write of a sector exceeds.
const SLOW: &str = "[default.disk.limits]\nwrite-rate = \"8kB/s\"\nburst = \"0ms\"\n";

fn write_three(driver: &mut Driver) {
    for sector in 0..3 {
        assert_eq!(request(driver, VIRTIO_BLK_T_OUT, sector, &[9; 512], 0).0, OK);
    }
}

fn waits(host: &Host) -> u64 {
    host.stat(DomId(1)).stats.waits
}

#[test]
fn limits_change_while_a_disk_runs_and_stay_when_its_process_dies() {
    let ((host, processes), file) = (Host::start_in_processes(), numbered_disk(8));
    host.hypervisor.store_write("/local/domain/1/name", "web");
    let ends = host.add_disk(1, XVDA, file.path(), "w");
    let mut driver = host.connect(&ends);
    driver.start();
    write_three(&mut driver);
    assert_eq!((waits(&host), host.reload()), (0, Ok(Vec::new())));
    host.configure(SLOW);
    write_three(&mut driver);
    assert_eq!(waits(&host), 0, "before it is reloaded");
    let changes = host.reload().unwrap();
    let lines: Vec<_> = changes.iter().map(ToString::to_string).collect();
    assert_eq!(lines, ["web xvda: unlimited -> write-rate 8000 B/s, burst 0ns"]);
    assert_eq!(host.reload(), Ok(Vec::new()), "once more");
    write_three(&mut driver);
    assert!(waits(&host) > 0);
    processes.kill();
    write_three(&mut driver);
    assert!(waits(&host) > 0, "in the next process");
    host.configure("");
    let changes = host.reload().unwrap();
    assert_eq!(changes.first().map(|change| change.to.as_str()), Some("unlimited"));
    assert_eq!(request(&mut driver, VIRTIO_BLK_T_IN, 7, &[], 512), (OK, vec![7; 512]));
    driver.close();
    host.remove(&ends);
    host.finish();
}

#[test]
fn invalid_file_changes_nothing_and_its_error_names_the_line() {
    let ((host, _processes), file) = (Host::start_in_processes(), numbered_disk(8));
    host.configure(SLOW);
    let ends = host.add_disk(1, XVDA, file.path(), "w");
    let mut driver = host.connect(&ends);
    driver.start();
    host.configure("[default.disk.limits]\niops = 0\n");
    let error = host.reload().unwrap_err();
    assert!(error.contains(":2: default.disk.limits.iops: "), "{error}");
    write_three(&mut driver);
    assert!(waits(&host) > 0);
    host.configure("[domain.web.disk.xvda]\ngroup = \"none\"\n");
    host.hypervisor.store_write("/local/domain/1/name", "web");
    let changes = host.reload().unwrap();
    let kept = changes.first().and_then(|change| change.kept.as_deref()).unwrap();
    assert!(kept.contains("[domain.web.group.none]"), "{kept}");
    driver.close();
    host.remove(&ends);
    host.finish();
}
