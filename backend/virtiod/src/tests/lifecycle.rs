//! Tests of devices that start, are refused, end, and start again.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use virtio_bindings::virtio_blk::VIRTIO_BLK_T_IN;

use super::block::{OK, header, request};
use super::driver::Driver;
use super::host::{Host, TestDisk, XVDA, in_processes, numbered_disk};
use xen::{Access, DomId};

#[test]
fn spec_2_6_refused_device_loses_its_state_and_has_a_reason() {
    let host = Host::start();
    let cases = [
        (host.add_disk(1, XVDA, Path::new("/nonexistent/disk.img"), "w"), "/nonexistent/disk.img"),
        (host.add_disk(2, XVDA, Path::new("/dev/null"), "w"), "neither a file nor a block device"),
        (host.add_disk(3, XVDA, Path::new("/proc/version"), "w"), "/proc/version"),
        (host.add_disk(4, XVDA, Path::new(""), "w"), "target="),
        (host.add("virtio", 5, 0, &[("type", "virtio,device63")]), "virtio,device63"),
        (host.add("virtio", 7, 0, &[("type", "virtio,device2")]), "specification=virtio"),
        (host.add("virtio", 8, 0, &[]), "not supported"),
        (host.add("virtio_disk", 6, XVDA, &[("params", "/x"), ("device-type", "cdrom")]), "cdrom"),
    ];
    for (ends, word) in cases {
        host.hypervisor.store_wait(&format!("{}/state", ends.backend), None);
        let error = host.error(&ends).unwrap();
        assert!(error.contains(word), "{word:?} is not in {error:?}");
        host.hypervisor.store_remove(&ends.backend);
    }
    host.finish();
}

#[test]
fn spec_3_13_message_page_of_the_toolstack_is_refused() {
    let (host, disk) = (Host::start(), numbered_disk(1));
    let ends = host.add_disk(1, XVDA, disk.path(), "w");
    host.wait_state(&ends, "2");
    for (key, value) in [("message-page-ref", "1"), ("event-channel", "9"), ("state", "3")] {
        host.hypervisor.store_write(&format!("{}/{key}", ends.frontend), value);
    }
    host.wait_state(&ends, "6");
    assert!(host.error(&ends).unwrap().contains("grant 1, which belongs to the toolstack"));
    host.remove(&ends);
    host.finish();
}

#[test]
fn spec_2_11_transport_feature_without_an_offer_is_refused() {
    let (host, disk) = (Host::start(), numbered_disk(1));
    let ends = host.add_disk(1, XVDA, disk.path(), "w");
    host.wait_state(&ends, "2");
    let key = "virtio-msg-transport-features";
    let offered = host.hypervisor.store_read(&format!("{}/{key}", ends.backend));
    assert_eq!(offered.as_deref(), Some("0"));
    for (taken, word) in [("1", "transport features 0x1"), ("strict", "not a number")] {
        for (key, value) in [("message-page-ref", "99"), ("event-channel", "9"), (key, taken)] {
            host.hypervisor.store_write(&format!("{}/{key}", ends.frontend), value);
        }
        host.hypervisor.store_write(&format!("{}/state", ends.frontend), "3");
        host.wait_state(&ends, "6");
        let error = host.error(&ends).unwrap();
        assert!(error.contains(word), "{word:?} is not in {error:?}");
        host.hypervisor.store_write(&format!("{}/state", ends.frontend), "1");
        host.wait_state(&ends, "2");
    }
    // A frontend that accepts none explicitly is served like one without the key.
    host.hypervisor.store_write(&format!("{}/{key}", ends.frontend), "0");
    let mut driver = host.connect(&ends);
    driver.start();
    driver.close();
    host.remove(&ends);
    host.finish();
}

#[test]
fn spec_2_1_both_device_classes_are_served() {
    let host = Host::start();
    let ends = host.add("virtio", 1, 0, &[("type", "virtio,device3f")]);
    host.hypervisor.store_wait(&format!("{}/state", ends.backend), None);
    let disk = numbered_disk(1);
    let ends = host.add_disk(1, XVDA, disk.path(), "r");
    host.wait_state(&ends, "2");
    host.remove(&ends);
    host.finish();
}

#[test]
fn unreadable_target_is_refused() {
    if nix::unistd::geteuid().is_root() {
        // Root can read every file; then a directory shows the refusal.
        let (host, directory) = (Host::start(), tempfile::tempdir().unwrap());
        let ends = host.add_disk(1, XVDA, directory.path(), "r");
        host.hypervisor.store_wait(&format!("{}/state", ends.backend), None);
        return host.finish();
    }
    let (host, disk) = (Host::start(), numbered_disk(1));
    std::fs::set_permissions(disk.path(), std::fs::Permissions::from_mode(0o000)).unwrap();
    let ends = host.add_disk(1, XVDA, disk.path(), "r");
    host.hypervisor.store_wait(&format!("{}/state", ends.backend), None);
    assert!(host.error(&ends).unwrap().contains("cannot open"));
    host.finish();
}

#[test]
fn spec_2_9_frontend_reconnects_after_it_left() {
    let (host, disk) = (Host::start(), numbered_disk(8));
    let ends = host.add_disk(1, XVDA, disk.path(), "w");
    let mut driver = host.connect(&ends);
    for _ in 0..5 {
        driver.start();
        assert_eq!(request(&mut driver, VIRTIO_BLK_T_IN, 2, &[], 512), (OK, vec![2; 512]));
        let guest = driver.close();
        assert_eq!(host.hypervisor.mapped_pages(DomId(1)), 0);
        host.hypervisor.store_write(&format!("{}/state", ends.frontend), "1");
        driver = Driver::connect(host.hypervisor.clone(), ends.clone(), guest);
    }
    driver.close();
    host.remove(&ends);
    host.finish();
}

#[test]
fn spec_2_8_destroyed_guest_with_requests_leaves_nothing_mapped() {
    let mut disk = TestDisk::start(numbered_disk(64), "w");
    let mut shared = Vec::new();
    for sector in 0..5 {
        let head = disk.driver.share(&header(VIRTIO_BLK_T_IN, sector), Access::ReadOnly);
        let input = disk.driver.share(&[0; 4096], Access::ReadWrite);
        let status = disk.driver.share(&[0xff], Access::ReadWrite);
        disk.driver.submit(&[head.readable(), input.writable(), status.writable()]);
        shared.extend([head, input, status]);
    }
    // The toolstack does not ask the guest.
    disk.host.remove(&disk.ends);
    assert_eq!(disk.host.hypervisor.mapped_pages(DomId(1)), 0);
    shared.iter().for_each(|shared| drop(disk.driver.unshare(shared)));
    disk.driver.release();

    // A guest with the same domain id, as after a reboot of Dom0.
    disk.ends = disk.host.add_disk(1, XVDA, disk.file.path(), "w");
    disk.driver = disk.host.connect(&disk.ends);
    disk.driver.start();
    assert_eq!(request(&mut disk.driver, VIRTIO_BLK_T_IN, 3, &[], 512), (OK, vec![3; 512]));
}

#[test]
fn spec_2_7_vanished_guest_is_disconnected() {
    let (host, disk) = (Host::start(), numbered_disk(8));
    let ends = host.add_disk(1, XVDA, disk.path(), "w");
    let mut driver = host.connect(&ends);
    driver.start();
    host.hypervisor.store_remove(&ends.frontend);
    host.wait_state(&ends, "6");
    assert_eq!(host.hypervisor.mapped_pages(DomId(1)), 0);
    driver.release();
    host.remove(&ends);
    host.finish();
}

#[test]
fn spec_2_10_backend_in_a_driver_domain_removes_its_directory() {
    let (host, disk) = (Host::start(), numbered_disk(8));
    host.hypervisor.store_write("/local/domain/0/domid", "5");
    let ends = host.add_disk(1, XVDA, disk.path(), "w");
    let beside_disk = numbered_disk(8);
    let beside = host.add_disk(2, XVDA, beside_disk.path(), "r");
    let mut driver = host.connect(&ends);
    driver.start();
    driver.close();
    host.wait_state(&ends, "6");
    host.hypervisor.store_write(&format!("{}/online", ends.backend), "0");
    host.hypervisor.store_wait(&format!("{}/state", ends.backend), None);
    assert_eq!(host.hypervisor.store_read(&format!("{}/params", ends.backend)), None);
    host.wait_state(&beside, "2");
    host.finish();
}

#[test]
fn spec_2_10_backend_in_the_toolstacks_domain_keeps_the_directory() {
    let (host, disk) = (Host::start(), numbered_disk(8));
    host.hypervisor.store_write("/local/domain/0/domid", "0");
    let ends = host.add_disk(1, XVDA, disk.path(), "w");
    host.wait_state(&ends, "2");
    host.hypervisor.store_write(&format!("{}/online", ends.backend), "0");
    host.wait_state(&ends, "6");
    let hypervisor = host.hypervisor.clone();
    host.finish();
    assert_eq!(hypervisor.store_read(&format!("{}/state", ends.backend)).as_deref(), Some("6"));
}

#[test]
fn stopping_daemon_disconnects_every_guest() {
    let (host, disk) = (Host::start(), numbered_disk(8));
    let ends: Vec<_> = (1..=3).map(|id| host.add_disk(id, XVDA, disk.path(), "r")).collect();
    let mut drivers: Vec<_> = ends.iter().map(|ends| host.connect(ends)).collect();
    drivers.iter_mut().for_each(Driver::start);
    let hypervisor = host.hypervisor.clone();
    let stop = std::thread::spawn(move || host.finish_with_guests());
    for (ends, driver) in ends.iter().zip(&mut drivers) {
        hypervisor.store_wait(&format!("{}/state", ends.backend), Some("6"));
        driver.release();
    }
    stop.join().unwrap();
    hypervisor.assert_clean();
}

#[test]
fn directory_removed_by_the_toolstack_is_not_recreated() {
    let (host, disk) = (Host::start(), numbered_disk(8));
    let ends = host.add_disk(1, XVDA, disk.path(), "w");
    let mut driver = host.connect(&ends);
    driver.start();
    let gone = host.hypervisor.store_watch(&format!("{}/state", ends.backend));
    // The backend reads once whether the toolstack still wants the device. A second read before the
    // write would not make the write safe.
    host.hypervisor.store_remove_after_reads(&format!("{}/state", ends.backend), 2, &ends.backend);
    driver.write_state("5");
    gone.wait(None);
    host.finish_with_guests();
    let left = driver.hypervisor.store_read(&format!("{}/state", ends.backend));
    assert_eq!(left, None, "the key was recreated");
    driver.release();
}

#[test]
fn two_disks_of_one_guest_are_independent() {
    let (host, first, second) = (Host::start(), numbered_disk(8), numbered_disk(16));
    let ends = host.add_disk(1, XVDA, first.path(), "w");
    let more = host.add_disk(1, XVDA + 16, second.path(), "r");
    let (mut one, mut two) = (host.connect(&ends), host.connect_beside(&more));
    one.start();
    two.start();
    assert_eq!(request(&mut one, VIRTIO_BLK_T_IN, 7, &[], 512), (OK, vec![7; 512]));
    assert_eq!(request(&mut two, VIRTIO_BLK_T_IN, 15, &[], 512), (OK, vec![15; 512]));
    one.close();
    host.remove(&ends);
    assert_eq!(request(&mut two, VIRTIO_BLK_T_IN, 14, &[], 512), (OK, vec![14; 512]));
    two.close();
    host.remove(&more);
    host.finish();
}

#[test]
fn device_of_an_earlier_daemon_is_closed() {
    let hypervisor = xen_sim::Hypervisor::default();
    let state = "/local/domain/0/backend/virtio_disk/7/51712/state";
    hypervisor.store_write(state, "4");
    let host = Host::start_on(hypervisor);
    host.hypervisor.store_wait(state, Some("6"));
    host.finish();
}

#[test]
fn panic_ends_one_device_and_leaves_nothing_mapped() {
    if in_processes() {
        eprintln!("skipped: in a process of its own the device goes on with the next process");
        return;
    }
    let (host, disk) = (Host::start(), numbered_disk(8));
    let ends = host.add_disk(1, XVDA, disk.path(), "w");
    let other_disk = numbered_disk(8);
    let other_ends = host.add_disk(2, XVDA, other_disk.path(), "r");
    let (mut driver, mut other) = (host.connect(&ends), host.connect(&other_ends));
    driver.start();
    other.start();
    host.hypervisor.store_trap(&format!("{}/online", ends.backend));
    driver.write_state("5");
    host.wait_state(&ends, "6");
    assert!(host.error(&ends).unwrap().contains("xen-virtiod panicked"));
    assert_eq!(host.hypervisor.mapped_pages(DomId(1)), 0);
    assert_eq!(request(&mut other, VIRTIO_BLK_T_IN, 2, &[], 512), (OK, vec![2; 512]));
    driver.release();
    other.close();
    host.remove(&other_ends);
    host.hypervisor.store_remove(&ends.backend);
    host.finish();
}
