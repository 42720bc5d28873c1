//! Tests of one image for several guests, or for a guest and another program.

use std::fs;
use std::path::Path;

use nix::fcntl::{FcntlArg, fcntl};
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_S_IOERR, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
};

use super::block::{OK, request};
use super::driver::Driver;
use super::host::{Ends, Host, XVDA, numbered_disk};
use super::qcow2::store;
use crate::device::blk::sample::{ImageBytes, Shape};
use crate::device::blk::{Target, TargetOptions};

const IOERR: u8 = VIRTIO_BLK_S_IOERR as u8;

fn one_byte(byte: i64, kind: i32) -> libc::flock {
    libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: byte,
        l_len: 1,
        l_pid: 0,
    }
}

/// The lock bytes of a file that another program finds locked.
fn locked_bytes(path: &Path) -> Vec<i64> {
    let file = fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let is_locked = |byte: &i64| {
        let mut lock = one_byte(*byte, libc::F_WRLCK);
        fcntl(&file, FcntlArg::F_OFD_GETLK(&mut lock)).unwrap();
        i32::from(lock.l_type) != libc::F_UNLCK
    };
    (98..208).filter(is_locked).collect()
}

/// Waits until the device is refused; returns the reason.
pub(super) fn refusal(host: &Host, ends: &Ends) -> String {
    host.hypervisor.store_wait(&format!("{}/state", ends.backend), None);
    let error = host.error(ends).unwrap();
    host.hypervisor.store_remove(&ends.backend);
    error
}

fn write(driver: &mut Driver, sector: u64, value: u8) -> u8 {
    request(driver, VIRTIO_BLK_T_OUT, sector, &[value; 512], 0).0
}

fn read(driver: &mut Driver, sector: u64) -> (u8, u8) {
    let (status, data) = request(driver, VIRTIO_BLK_T_IN, sector, &[], 512);
    (status, data[0])
}

#[test]
fn writable_image_is_exclusive() {
    let (host, disk) = (Host::start(), numbered_disk(8));
    for modes in [["w", "w"], ["w", "r"], ["r", "w"]] {
        let first = host.add_disk(1, XVDA, disk.path(), modes[0]);
        let mut driver = host.connect(&first);
        driver.start();
        let reason = refusal(&host, &host.add_disk(2, XVDA, disk.path(), modes[1]));
        assert!(reason.contains("domain 1 uses it for xvda"), "{reason}");
        assert_eq!(read(&mut driver, 5), (OK, 5));
        driver.close();
        host.remove(&first);
    }
    // The image is free as soon as the toolstack sees the device's end.
    let next = host.add_disk(2, XVDA, disk.path(), "w");
    host.connect(&next).close();
    host.remove(&next);
    host.finish();
}

#[test]
fn read_only_image_is_shared() {
    let (host, disk) = (Host::start(), numbered_disk(8));
    let ends: Vec<_> = (1..=3).map(|guest| host.add_disk(guest, XVDA, disk.path(), "r")).collect();
    let mut drivers: Vec<_> = ends.iter().map(|ends| host.connect(ends)).collect();
    for driver in &mut drivers {
        driver.start();
        assert_eq!(read(driver, 3), (OK, 3));
    }
    drivers.into_iter().for_each(|driver| drop(driver.close()));
    ends.iter().for_each(|ends| host.remove(ends));
    host.finish();
}

/// Creates an image in a directory with `base` as its backing file.
fn based_on(directory: &Path, base: &Path) -> std::path::PathBuf {
    let mut image = ImageBytes::new(Shape { data: 0, ..Shape::default() });
    image.set_backing(base.file_name().unwrap().to_str().unwrap(), Some("qcow2"));
    let path = directory.join("overlay.qcow2");
    fs::write(&path, &image.bytes).unwrap();
    path
}

#[test]
fn backing_file_is_shared_for_reading_only() {
    let host = Host::start();
    let (directory, base) = store(&ImageBytes::new(Shape::default()));
    let overlay = based_on(directory.path(), &base);
    let other = directory.path().join("other.qcow2");
    fs::copy(&overlay, &other).unwrap();
    let ends = [host.add_disk(1, XVDA, &overlay, "w"), host.add_disk(2, XVDA, &other, "w")];
    ends.iter().for_each(|ends| host.wait_state(ends, "2"));
    assert_eq!(locked_bytes(&base), [100, 201, 203]);
    let reason = refusal(&host, &host.add_disk(3, XVDA, &base, "w"));
    assert!(reason.contains("uses it for xvda"), "{reason}");
    let reader = host.add_disk(3, XVDA, &base, "r");
    host.wait_state(&reader, "2");
    ends.iter().for_each(|ends| host.remove(ends));
    host.remove(&reader);
    // And the other way round.
    let writer = host.add_disk(3, XVDA, &base, "w");
    host.wait_state(&writer, "2");
    let reason = refusal(&host, &host.add_disk(1, XVDA, &overlay, "w"));
    assert!(reason.contains("domain 3 uses it for xvda and may write it"), "{reason}");
    host.remove(&writer);
    host.finish();
}

#[test]
fn force_share_works_if_configured_for_all_users() {
    let (host, disk) = (Host::start(), numbered_disk(8));
    host.configure(
        "[domain.one.disk.xvda]\nforce-share = true\n[domain.two.disk.xvda]\nforce-share = true",
    );
    for (guest, name) in [(1, "one"), (2, "two"), (3, "three")] {
        host.hypervisor.store_write(&format!("/local/domain/{guest}/name"), name);
    }
    let ends = [1, 2].map(|guest| host.add_disk(guest, XVDA, disk.path(), "w"));
    let [mut one, mut two] = [0, 1].map(|number| host.connect(&ends[number]));
    one.start();
    two.start();
    assert_eq!((write(&mut one, 1, 11), write(&mut two, 2, 22)), (OK, OK));
    assert_eq!((read(&mut one, 2), read(&mut two, 1)), ((OK, 22), (OK, 11)));
    refusal(&host, &host.add_disk(3, XVDA, disk.path(), "w"));
    one.close();
    two.close();
    ends.iter().for_each(|ends| host.remove(ends));

    let (_directory, image) = store(&ImageBytes::new(Shape::default()));
    let reason = refusal(&host, &host.add_disk(1, XVDA, &image, "w"));
    assert!(reason.contains("cannot be shared by force"), "{reason}");
    let reader = host.add_disk(1, XVDA, &image, "r");
    host.wait_state(&reader, "2");
    host.remove(&reader);
    host.finish();
}

/// Sectors of a cluster of a qcow2 image.
const APART: u64 = 128;

/// Makes two domains one guest.
fn same_guest(host: &Host) {
    let uuid = "0f5ca9a6-7b6a-4b8e-9c2a-0e8d9a3c7f11";
    host.hypervisor.store_write("/local/domain/1/vm", &format!("/vm/{uuid}"));
    host.hypervisor.store_write("/local/domain/2/vm", &format!("/vm/{uuid}-1"));
}

/// Makes two domains write one image alternately, each to sectors in clusters of its own.
fn hand_over(image: &Path) {
    let write = |driver: &mut Driver, number: u64, value| write(driver, number * APART, value);
    let read = |driver: &mut Driver, number: u64| read(driver, number * APART);
    let host = Host::start();
    same_guest(&host);
    let from = host.add_disk(1, XVDA, image, "w");
    let mut source = host.connect(&from);
    source.start();
    assert_eq!(write(&mut source, 1, 0xaa), OK);
    let to = host.add_disk(2, XVDA, image, "w");
    let mut target = host.connect(&to);
    target.start();
    // One of them writes.
    assert_eq!((write(&mut target, 2, 0xbb), write(&mut source, 3, 0xcc)), (IOERR, OK));
    // The driver leaves the disk, as before a migration.
    source.reset_device();
    assert_eq!((read(&mut target, 1), read(&mut target, 3)), ((OK, 0xaa), (OK, 0xcc)));
    assert_eq!(write(&mut target, 4, 0xdd), OK);
    source.free_rings();
    source.start();
    assert_eq!(write(&mut source, 5, 0xee), IOERR);
    target.close();
    // The migration failed, and the first domain continues.
    assert_eq!((read(&mut source, 4), write(&mut source, 5, 0xee)), ((OK, 0xdd), OK));
    assert_eq!(request(&mut source, VIRTIO_BLK_T_FLUSH, 0, &[], 0).0, OK);
    let third = refusal(&host, &host.add_disk(3, XVDA, image, "w"));
    assert!(third.contains("uses it for xvda"), "{third}");
    source.close();
    host.remove(&to);
    host.remove(&from);
    host.finish();
}

#[test]
fn migrating_guest_hands_over_a_raw_disk() {
    let disk = numbered_disk(6 * APART);
    hand_over(disk.path());
    let bytes = fs::read(disk.path()).unwrap();
    let written = [1, 2, 3, 4, 5].map(|number| bytes[number * APART as usize * 512]);
    assert_eq!(written, [0xaa, 0, 0xcc, 0xdd, 0xee]);
}

#[test]
fn migrating_guest_hands_over_a_qcow2_disk_without_lost_clusters() {
    let (_directory, image) = store(&ImageBytes::new(Shape { data: 0, ..Shape::default() }));
    hand_over(&image);
    // Both allocated clusters, and the image is consistent.
    let mut target = Target::open(TargetOptions::for_test(&image)).unwrap();
    let written = [1, 2, 3, 4, 5].map(|number| target.read_for_test(number * APART)[0]);
    assert_eq!(written, [0xaa, 0, 0xcc, 0xdd, 0xee]);
}

#[test]
fn migrating_guest_reads_a_raw_disk_that_its_other_domain_writes() {
    let (host, disk) = (Host::start(), numbered_disk(8));
    same_guest(&host);
    let from = host.add_disk(1, XVDA, disk.path(), "w");
    let to = host.add_disk(2, XVDA, disk.path(), "r");
    let [mut writer, mut reader] = [&from, &to].map(|ends| host.connect(ends));
    writer.start();
    reader.start();
    assert_eq!(write(&mut writer, 1, 0xaa), OK);
    assert_eq!(read(&mut reader, 1), (OK, 0xaa));
    writer.close();
    reader.close();
    host.remove(&from);
    host.remove(&to);
    host.finish();
}

#[test]
fn target_locked_by_another_program_is_refused_with_its_lock() {
    let (host, disk) = (Host::start(), numbered_disk(8));
    // As QEMU: it writes (byte 101), and permits no other writer (byte 201).
    let other = fs::File::open(disk.path()).unwrap();
    let lock =
        |byte: i64, kind: i32| fcntl(&other, FcntlArg::F_OFD_SETLK(&one_byte(byte, kind))).is_ok();
    assert!(lock(101, libc::F_RDLCK) && lock(201, libc::F_RDLCK));
    for (mode, words) in
        [("w", "Failed to get \"write\" lock"), ("r", "Failed to get shared \"write\" lock")]
    {
        let reason = refusal(&host, &host.add_disk(1, XVDA, disk.path(), mode));
        assert!(reason.contains(words) && reason.contains("fuser -v"), "{reason}");
    }
    // While a guest has the image, another program sees its locks.
    assert!(lock(101, libc::F_UNLCK) && lock(201, libc::F_UNLCK));
    let ends = host.add_disk(1, XVDA, disk.path(), "w");
    host.wait_state(&ends, "2");
    assert_eq!(locked_bytes(disk.path()), [100, 101, 103, 201, 203]);
    host.remove(&ends);
    assert_eq!(locked_bytes(disk.path()), [0; 0]);
    host.finish();
}
