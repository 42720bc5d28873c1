//! Tests of a configuration file that changes while disks run.

use virtio_bindings::virtio_blk::{VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT};

use super::block::{OK, request};
use super::driver::Driver;
use super::entropy::random;
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

#[test]
fn missing_file_lifts_no_limit() {
    let ((host, _processes), file) = (Host::start_in_processes(), numbered_disk(8));
    host.configure(SLOW);
    let ends = host.add_disk(1, XVDA, file.path(), "w");
    let mut driver = host.connect(&ends);
    driver.start();
    let missing = || {
        host.remove_configuration();
        let error = host.reload().unwrap_err();
        assert!(error.contains("is missing"), "{error}");
    };
    missing();
    write_three(&mut driver);
    assert!(waits(&host) > 0);
    driver.close();
    host.remove(&ends);
    // Also limits that came by a reload.
    let ends = host.add_disk(2, XVDA, file.path(), "w");
    let mut driver = host.connect(&ends);
    driver.start();
    assert_eq!(host.reload(), Ok(Vec::new()));
    host.configure(SLOW);
    assert_eq!(host.reload().unwrap().len(), 1);
    missing();
    driver.close();
    host.remove(&ends);
    host.finish();
}

#[test]
fn disks_of_a_group_have_the_limits_of_the_file() {
    let ((host, _processes), file) = (Host::start_in_processes(), numbered_disk(8));
    host.hypervisor.store_write("/local/domain/1/name", "web");
    let group = |iops: u64| {
        let disk = |name: &str| format!("[domain.web.disk.{name}]\ngroup = \"all\"\n");
        let (first, second) = (disk("xvda"), disk("xvdb"));
        host.configure(&format!("{first}{second}[domain.web.group.all]\niops = {iops}\n"));
    };
    group(100);
    let first = host.add_disk(1, XVDA, file.path(), "w");
    let mut first_driver = host.connect(&first);
    first_driver.start();
    // The second disk is set up by another file than the first, whose limits it shares.
    group(200);
    let other = numbered_disk(8);
    let second = host.add_disk(1, 51728, other.path(), "w");
    let mut second_driver = host.connect_beside(&second);
    second_driver.start();
    first_driver.close();
    host.remove(&first);
    assert_eq!(host.reload(), Ok(Vec::new()));
    let limits = || host.stat(DomId(1)).stats.state.details["limits"].clone();
    second_driver.until("stat to show the limit", |_| limits().starts_with("iops 200"));
    second_driver.close();
    host.remove(&second);
    host.finish();
}

#[test]
fn limits_of_other_devices_change_while_they_run() {
    let (host, processes) = Host::start_in_processes();
    let entropy = host.add("virtio", 1, 0, &[("type", "virtio,device4")]);
    let mut driver = host.connect(&entropy);
    driver.start();
    let network = host.add("virtio", 2, 1, &[("type", "virtio,device1")]);
    let net_driver = host.connect(&network);
    let console = host.add("virtio", 3, 0, &[("type", "virtio,device3")]);
    let console_driver = host.connect(&console);
    let reload = |text: &str| {
        host.configure(text);
        host.reload().unwrap().iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    let limits = || host.stat(DomId(1)).stats.state.details["limits"].clone();
    assert_eq!((reload(""), limits().as_str()), (vec![], "unlimited"));
    let limited = "[default.rng]\nrate = \"8KiB/s\"\n\
                   [default.net]\nrate-to-guest = \"1MB/s\"\nrate-from-guest = \"2MB/s\"\n";
    let network_limits = "rate-to-guest 1000000 B/s, rate-from-guest 2000000 B/s";
    assert_eq!(
        reload(limited),
        [
            "domain 1 virtio/0: unlimited -> 8192 B/s".to_owned(),
            format!("domain 2 virtio/1: unlimited -> {network_limits}"),
        ]
    );
    driver.until("stat to show the limit", |_| limits() == "8192 B/s");
    random(&mut driver, 9000);
    random(&mut driver, 1);
    assert!(waits(&host) > 0, "in this process");
    processes.kill();
    random(&mut driver, 9000);
    random(&mut driver, 1);
    assert!(waits(&host) > 0, "in the next process");
    // A device of another type keeps its limits, and says why.
    host.hypervisor.store_write("/local/domain/1/name", "web");
    let misplaced = reload(&format!("{limited}[domain.web.virtio.0.net]\nqueues = 1\n"));
    let kept = "web virtio/0: keeps 8192 B/s: section domain.web.virtio.0.net of the configuration";
    assert!(misplaced.len() == 1 && misplaced[0].starts_with(kept), "{misplaced:?}");
    assert_eq!(reload("")[0], "web virtio/0: 8192 B/s -> unlimited");
    for (driver, ends) in [(driver, entropy), (net_driver, network), (console_driver, console)] {
        driver.close();
        host.remove(&ends);
    }
    host.finish();
}
