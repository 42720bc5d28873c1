//! What happens when this domain runs out of something: it costs the device that does not fit.

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
use super::host::{Ends, Host, TestDisk, XVDA, numbered_disk};
use super::ring::Descriptor;
use super::vsock::guest::{Packet, REQUEST, Setting, read};
use xen::{Access, DomId};
use xen_sim::Guest;

/// Set for the process of its own that a test runs in.
const ALONE: &str = "XEN_VIRTIOD_TEST_ALONE";
/// File descriptors that the process may have; few, so that they are soon filled.
const DESCRIPTORS: u64 = 256;
/// More than a device takes until it is offered.
const MORE_THAN_A_DEVICE: usize = 16;

/// Runs the test `name` in a process of its own, since what it does would fail others beside it.
/// Whether this is that process.
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

/// Pages of data that are mapped, where there is room.
const MAPPED_PAGES: usize = 600;
/// Flag of a descriptor that names a table of descriptors.
const INDIRECT: u16 = 4;

/// Takes every descriptor there is, and leaves `left`.
fn fill_descriptors(left: usize) -> Vec<File> {
    let mut taken: Vec<File> = std::iter::from_fn(|| File::open("/dev/null").ok()).collect();
    taken.truncate(taken.len() - left);
    taken
}

/// What a guest has ready before it connects.
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
fn a_guest_that_cannot_connect_is_let_go_and_its_reason_is_shown() {
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

/// Reads of `pages` pages each, all offered to the device at once; gives their status bytes.
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

/// A table of descriptors with this chain, in a page of its own.
fn table(driver: &mut Driver, chain: &[Descriptor]) -> Shared {
    let entries = chain.iter().zip(1u16..).flat_map(|(entry, next)| {
        let flags = u16::from(usize::from(next) < chain.len()) | u16::from(entry.writable) << 1;
        let start = entry.address.to_le_bytes().into_iter().chain(entry.length.to_le_bytes());
        start.chain(flags.to_le_bytes()).chain(next.to_le_bytes()).collect::<Vec<_>>()
    });
    driver.share(&entries.collect::<Vec<_>>(), Access::ReadOnly)
}

#[test]
fn a_chain_is_followed_and_answered_though_nothing_can_be_mapped() {
    for pages in [1, 512, MAPPED_PAGES] {
        let (host, disk) = (Host::start(), numbered_disk(8192));
        let ends = host.add_disk(1, XVDA, disk.path(), "r");
        let mut driver = host.connect(&ends);
        driver.start();
        host.hypervisor.limit_mapped(4);
        let head = driver.share(&header(VIRTIO_BLK_T_IN, 3), Access::ReadOnly);
        let input = driver.share(&vec![0; pages * 4096], Access::ReadWrite);
        let place = driver.share(&[0xff], Access::ReadWrite);
        let chain = [head.readable(), input.writable(), place.writable()];
        let table = table(&mut driver, &chain);
        let (ring, guest) = driver.ring();
        let length = 16 * chain.len() as u32;
        ring.write(guest, 0, Descriptor { length, ..table.readable() }, INDIRECT, 0);
        ring.offer(guest, 0);
        ring.doorbell.notify();
        driver.wait_used();
        assert_eq!(driver.unshare(&place), [OK], "{pages} pages");
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
fn requests_are_answered_though_there_is_no_room_to_map_their_buffers() {
    let mut disk = TestDisk::start(numbered_disk(8192), "r");
    // Message page and rings, and nothing else.
    disk.host.hypervisor.limit_mapped(4);
    assert_eq!(read_together(&mut disk.driver, 5, 4), [OK; 5]);
    assert_eq!(read_together(&mut disk.driver, 1, MAPPED_PAGES), [OK]);
    assert_eq!(read_together(&mut disk.driver, 2, 1), [OK; 2]);
    assert_eq!(disk.host.stat(DomId(1)).stats.requests.failed, 0);
}

#[test]
fn a_guest_that_cannot_be_connected_for_want_of_room_is_told_so() {
    let (host, disk) = (Host::start(), numbered_disk(8));
    host.hypervisor.limit_mapped(0);
    let (state, frontend) = (host.watch_state(1, XVDA), Frontend::new(&host, 1));
    let ends = host.add_disk(1, XVDA, disk.path(), "r");
    state.wait(Some("2"));
    frontend.connect(&host, &ends);
    state.wait(Some("6"));
    let error = host.error(&ends).unwrap();
    assert!(error.contains("no room to map 1 granted page"), "{error}");
    assert_eq!(host.stat(DomId(1)).stats.state.error, Some(error));
    frontend.leave();
    host.remove(&ends);
    host.finish();
}

#[test]
fn a_device_without_file_descriptors_is_refused_and_others_go_on() {
    if !is_alone("tests::shortage::a_device_without_file_descriptors_is_refused_and_others_go_on") {
        return;
    }
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, DESCRIPTORS, most).unwrap();
    let mut is_offered = false;
    for left in 0..MORE_THAN_A_DEVICE {
        // Not one image: the devices would share a descriptor.
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
            // There is no descriptor for its connection.
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
        // There is room again: the next device is served.
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
fn a_program_for_which_there_is_no_descriptor_waits_and_the_device_goes_on() {
    let name =
        "tests::shortage::a_program_for_which_there_is_no_descriptor_waits_and_the_device_goes_on";
    if !is_alone(name) {
        return;
    }
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, DESCRIPTORS, most).unwrap();
    let mut setting = Setting::new();
    let listener = setting.listen(52);
    let mut program = setting.guest_connects(&listener, 52);
    // One is left, which the program takes that connects.
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
