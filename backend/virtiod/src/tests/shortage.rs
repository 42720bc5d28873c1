//! Tests of shortages in this domain: only the device beyond the limit fails.

use std::env;
use std::fs::File;
use std::io::Write;
use std::process::Command;
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use protocol::status::DEVICE_NEEDS_RESET;
use virtio_bindings::virtio_blk::VIRTIO_BLK_T_IN;

use super::block::{OK, header, request};
use super::driver::{Driver, Shared};
use super::host::{Ends, Host, TestDisk, XVDA, in_processes, numbered_disk};
use super::ring::Descriptor;
use super::vsock::guest::{Packet, REQUEST, Setting, read};
use xen::{Access, DomId};
use xen_sim::Guest;

/// Environment variable of a process that runs one test alone.
const ALONE: &str = "XEN_VIRTIOD_TEST_ALONE";
/// Limit of file descriptors; low, so that they are soon used up.
const DESCRIPTORS: u64 = 256;
/// More descriptors than a device opens until it is offered.
const MORE_THAN_A_DEVICE: usize = 16;

/// Runs the test `name` in a process of its own, since its shortage would fail other tests. Returns
/// whether this is that process.
fn is_alone(name: &str) -> bool {
    if env::var_os(ALONE).is_some() {
        return true;
    }
    let mut test = Command::new(env::current_exe().unwrap());
    let ran = test.args(["--exact", name]).env(ALONE, "1").output().unwrap();
    let (said, failed) = (String::from_utf8_lossy(&ran.stdout), ran.stderr);
    assert!(ran.status.success(), "{said}{}", String::from_utf8_lossy(&failed));
    assert!(said.contains("1 passed"), "{said}");
    false
}

/// Pages of data, so many that the device maps them if it can.
const MAPPED_PAGES: usize = 600;
/// Flag of a descriptor that refers to a table of descriptors.
const INDIRECT: u16 = 4;

/// Opens all free descriptors except `left`.
fn fill_descriptors(left: usize) -> Vec<File> {
    let mut taken: Vec<File> = std::iter::from_fn(|| File::open("/dev/null").ok()).collect();
    taken.truncate(taken.len() - left);
    taken
}

/// A guest's grant and port, prepared before it connects.
struct Frontend {
    guest: Guest,
    keys: [(&'static str, String); 2],
}

impl Frontend {
    fn new(host: &Host, id: u16) -> Self {
        let mut guest = host.hypervisor.guest(id, 1);
        let page = guest.allocate();
        let reference = guest.grant(&[page], Access::ReadWrite);
        let port = guest.port();
        let keys = [
            ("message-page-ref", reference.0.to_string()),
            ("event-channel", port.port.0.to_string()),
        ];
        Self { guest, keys }
    }

    fn connect(&self, host: &Host, ends: &Ends) {
        for (key, value) in &self.keys {
            host.hypervisor.store_write(&format!("{}/{key}", ends.frontend), value);
        }
        host.hypervisor.store_write(&format!("{}/state", ends.frontend), "3");
    }

    fn leave(self) {
        let reference = self.keys[0].1.parse().unwrap();
        self.guest.revoke(protocol::grant::GrantRef(reference), 1);
    }
}

#[test]
fn guest_that_cannot_connect_is_closed_with_its_reason() {
    let (host, disk) = (Host::start(), numbered_disk(8));
    let ends = host.add_disk(1, XVDA, disk.path(), "r");
    host.wait_state(&ends, "2");
    let said = "/local/domain/1/error/device/virtio_disk/51712/error";
    host.hypervisor.store_write(said, "28 no event channel\n is free");
    host.hypervisor.store_write(&format!("{}/state", ends.frontend), "5");
    host.wait_state(&ends, "6");
    let error = host.stat(DomId(1)).stats.state.error.unwrap();
    assert_eq!(error, r#"the guest cannot connect: "28 no event channel\n is free""#);
    // It may try again.
    host.hypervisor.store_write(&format!("{}/state", ends.frontend), "1");
    let mut driver = host.connect(&ends);
    driver.start();
    assert_eq!(request(&mut driver, VIRTIO_BLK_T_IN, 5, &[], 512), (OK, vec![5; 512]));
    assert_eq!(host.stat(DomId(1)).stats.state.error, None);
    driver.close();
    host.remove(&ends);
    host.finish();
}

/// Sends reads of `pages` pages each, all at once; returns their status bytes.
fn read_together(driver: &mut Driver, requests: usize, pages: usize) -> Vec<u8> {
    let shared: Vec<_> = (0..requests)
        .map(|_| {
            let head = driver.share(&header(VIRTIO_BLK_T_IN, 0), Access::ReadOnly);
            let input = driver.share(&vec![0; pages * 4096], Access::ReadWrite);
            let status = driver.share(&[0xff], Access::ReadWrite);
            let (ring, guest) = driver.ring();
            ring.add(guest, &[head.readable(), input.writable(), status.writable()]);
            [head, input, status]
        })
        .collect();
    driver.ring().0.doorbell.notify();
    for _ in &shared {
        driver.wait_used();
    }
    let one = |[head, input, status]: &[Shared; 3]| {
        driver.unshare(head);
        driver.unshare(input);
        driver.unshare(status)[0]
    };
    shared.iter().map(one).collect()
}

/// Writes this chain to a table of descriptors in a page of its own.
fn table(driver: &mut Driver, chain: &[Descriptor]) -> Shared {
    let entries = chain.iter().zip(1u16..).flat_map(|(entry, next)| {
        let flags = u16::from(usize::from(next) < chain.len()) | u16::from(entry.writable) << 1;
        let start = entry.address.to_le_bytes().into_iter().chain(entry.length.to_le_bytes());
        start.chain(flags.to_le_bytes()).chain(next.to_le_bytes()).collect::<Vec<_>>()
    });
    driver.share(&entries.collect::<Vec<_>>(), Access::ReadOnly)
}

#[test]
fn chain_is_served_without_a_mapping() {
    for pages in [1, 512, MAPPED_PAGES] {
        let (host, disk) = (Host::start(), numbered_disk(8192));
        let ends = host.add_disk(1, XVDA, disk.path(), "r");
        let mut driver = host.connect(&ends);
        driver.start();
        host.hypervisor.limit_mapped(4);
        let head = driver.share(&header(VIRTIO_BLK_T_IN, 3), Access::ReadOnly);
        let input = driver.share(&vec![0; pages * 4096], Access::ReadWrite);
        let status = driver.share(&[0xff], Access::ReadWrite);
        let chain = [head.readable(), input.writable(), status.writable()];
        let table = table(&mut driver, &chain);
        let (ring, guest) = driver.ring();
        let length = 16 * chain.len() as u32;
        ring.write(guest, 0, Descriptor { length, ..table.readable() }, INDIRECT, 0);
        ring.offer(guest, 0);
        ring.doorbell.notify();
        driver.wait_used();
        assert_eq!(driver.unshare(&status), [OK], "{pages} pages");
        let data = driver.unshare(&input);
        let right =
            |(sector, bytes): (usize, &[u8])| bytes.iter().all(|b| *b == (sector + 3) as u8);
        assert!(data.chunks(512).enumerate().all(right), "{pages} pages");
        [head, table].iter().for_each(|shared| drop(driver.unshare(shared)));
        driver.close();
        host.remove(&ends);
        host.finish();
    }
}

#[test]
fn requests_are_answered_without_capacity_for_mappings() {
    let mut disk = TestDisk::start(numbered_disk(8192), "r");
    // The message page and the rings only.
    disk.host.hypervisor.limit_mapped(4);
    assert_eq!(read_together(&mut disk.driver, 5, 4), [OK; 5]);
    assert_eq!(read_together(&mut disk.driver, 1, MAPPED_PAGES), [OK]);
    assert_eq!(read_together(&mut disk.driver, 2, 1), [OK; 2]);
    assert_eq!(disk.host.stat(DomId(1)).stats.requests.failed, 0);
}

#[test]
fn connection_without_capacity_fails_with_a_reason() {
    let (host, disk) = (Host::start(), numbered_disk(8));
    host.hypervisor.limit_mapped(0);
    let (state, frontend) = (host.watch_state(1, XVDA), Frontend::new(&host, 1));
    let ends = host.add_disk(1, XVDA, disk.path(), "r");
    state.wait(Some("2"));
    frontend.connect(&host, &ends);
    state.wait(Some("6"));
    let error = host.error(&ends).unwrap();
    assert!(error.contains("lacks resources to map 1 granted page"), "{error}");
    assert_eq!(host.stat(DomId(1)).stats.state.error, Some(error));
    frontend.leave();
    host.remove(&ends);
    host.finish();
}

#[test]
fn device_without_file_descriptors_is_refused_alone() {
    if in_processes() {
        eprintln!("skipped: each process has a limit of its own");
        return;
    }
    if !is_alone("tests::shortage::device_without_file_descriptors_is_refused_alone") {
        return;
    }
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, DESCRIPTORS, most).unwrap();
    let mut is_offered = false;
    for left in 0..MORE_THAN_A_DEVICE {
        // Two images: with one, the devices would share a descriptor.
        let (host, disk, image) = (Host::start(), numbered_disk(8), numbered_disk(8));
        let other_ends = host.add_disk(1, XVDA, disk.path(), "r");
        let mut other = host.connect(&other_ends);
        other.start();

        let (state, frontend) = (host.watch_state(2, XVDA), Frontend::new(&host, 2));
        let mut taken = fill_descriptors(left);
        let ends = host.add_disk(2, XVDA, image.path(), "r");
        let decided = |value: Option<&str>| matches!(value, None | Some("2"));
        assert!(state.wait_for(Duration::from_secs(10), decided), "{left} left: undecided");
        is_offered = host.hypervisor.store_read(&format!("{}/state", ends.backend)).is_some();
        if is_offered {
            // No descriptor is left for its connection.
            taken.extend(fill_descriptors(0));
            frontend.connect(&host, &ends);
            state.wait(Some("6"));
        }
        let error = host.error(&ends).unwrap();
        assert!(error.contains("Too many open files"), "{left} left: {error}");
        assert_eq!(request(&mut other, VIRTIO_BLK_T_IN, 3, &[], 512), (OK, vec![3; 512]));

        drop(taken);
        frontend.leave();
        host.hypervisor.store_remove(&ends.backend);
        // Descriptors are free again: the next device works.
        let next_ends = host.add_disk(3, XVDA, disk.path(), "r");
        let mut next = host.connect(&next_ends);
        next.start();
        assert_eq!(request(&mut next, VIRTIO_BLK_T_IN, 5, &[], 512), (OK, vec![5; 512]));
        for (driver, ends) in [(next, &next_ends), (other, &other_ends)] {
            driver.close();
            host.remove(ends);
        }
        host.finish();
        if is_offered {
            break;
        }
    }
    assert!(is_offered, "{MORE_THAN_A_DEVICE} descriptors are not enough");
}

#[test]
fn program_without_a_descriptor_waits_and_the_device_continues() {
    let name = "tests::shortage::program_without_a_descriptor_waits_and_the_device_continues";
    if !is_alone(name) {
        return;
    }
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, DESCRIPTORS, most).unwrap();
    let mut setting = Setting::new();
    let listener = setting.listen(52);
    let mut program = setting.guest_connects(&listener, 52);
    // One is left, for the program that connects.
    let taken = fill_descriptors(1);
    let mut late = setting.program();
    setting.send(&Packet::data(52, b"goes on"));
    assert_eq!(read(&mut program, 7), b"goes on");
    assert_eq!(setting.driver.status() & DEVICE_NEEDS_RESET, 0);
    drop(taken);
    late.write_all(b"CONNECT 7\n").unwrap();
    assert_eq!(setting.expect(REQUEST).guest, 7);
    setting.end();
}
