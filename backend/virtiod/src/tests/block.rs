//! Tests of successful block I/O.

use std::fs;
use std::time::{Duration, Instant};

use protocol::status::{F_ACCESS_PLATFORM, F_VERSION_1};
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_RO, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_FLUSH,
    VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
};

use super::driver::Driver;
use super::host::{TestDisk, TestGuest, XVDA, numbered_disk};
use crate::stats::LatencySnapshot;
use xen::{Access, DomId};

pub(super) const OK: u8 = VIRTIO_BLK_S_OK as u8;
const IOERR: u8 = VIRTIO_BLK_S_IOERR as u8;
const UNSUPPORTED: u8 = VIRTIO_BLK_S_UNSUPP as u8;

pub(super) fn header(kind: u32, sector: u64) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..4].copy_from_slice(&kind.to_le_bytes());
    bytes[8..].copy_from_slice(&sector.to_le_bytes());
    bytes
}

/// Sends one request with `out` for the device and a buffer of `capacity` bytes for the response;
/// returns status and response. Ends all its grants, which fails the test if one is still mapped.
pub(super) fn request(
    driver: &mut Driver,
    kind: u32,
    sector: u64,
    out: &[u8],
    capacity: usize,
) -> (u8, Vec<u8>) {
    let header = driver.share(&header(kind, sector), Access::ReadOnly);
    let out = (!out.is_empty()).then(|| driver.share(out, Access::ReadOnly));
    let input = (capacity > 0).then(|| driver.share(&vec![0xee; capacity], Access::ReadWrite));
    let status = driver.share(&[0xff], Access::ReadWrite);
    let mut chain = vec![header.readable()];
    chain.extend(out.iter().map(|shared| shared.readable()));
    chain.extend(input.iter().map(|shared| shared.writable()));
    chain.push(status.writable());
    let head = driver.submit(&chain);
    assert_eq!(driver.wait_used().0, head);
    driver.unshare(&header);
    out.iter().for_each(|out| drop(driver.unshare(out)));
    let answer = input.map(|input| driver.unshare(&input)).unwrap_or_default();
    (driver.unshare(&status)[0], answer)
}

#[test]
fn written_data_is_read_back_and_in_the_file() {
    let mut disk = TestDisk::start(numbered_disk(64), "w");
    let data: Vec<u8> = (0..3 * 4096u32).map(|n| (n * 7) as u8).collect();
    assert_eq!(request(&mut disk.driver, VIRTIO_BLK_T_OUT, 8, &data, 0).0, OK);
    assert_eq!(request(&mut disk.driver, VIRTIO_BLK_T_FLUSH, 0, &[], 0).0, OK);
    let (status, read) = request(&mut disk.driver, VIRTIO_BLK_T_IN, 7, &[], 512 + data.len());
    assert_eq!(status, OK);
    assert_eq!(read[..512], [7; 512]);
    assert_eq!(read[512..], data);
    assert_eq!(fs::read(disk.file.path()).unwrap()[8 * 512..][..data.len()], data);

    let stat = disk.host.stat(DomId(1)).stats;
    assert_eq!((stat.requests.read, stat.requests.write, stat.requests.flush), (1, 1, 1));
    assert_eq!((stat.bytes.read, stat.bytes.written), (512 + 12288, 12288));
    assert_eq!(stat.addresses.refused, 0);
    assert_eq!(stat.state.state, "connected");
}

#[test]
fn stat_shows_the_names_of_guest_and_target_and_the_times_of_requests() {
    let file = numbered_disk(64);
    let mut guest = TestGuest::connect(|host| {
        host.hypervisor.store_write("/local/domain/1/name", "web--incoming");
        host.add_disk(1, XVDA, file.path(), "w")
    });
    guest.driver.start();
    assert_eq!(request(&mut guest.driver, VIRTIO_BLK_T_IN, 64, &[], 512).0, IOERR);
    let end = Instant::now() + Duration::from_secs(10);
    let device = loop {
        for (kind, out, capacity) in
            [(VIRTIO_BLK_T_IN, 0, 512), (VIRTIO_BLK_T_OUT, 512, 0), (VIRTIO_BLK_T_FLUSH, 0, 0)]
        {
            let (status, _) = request(&mut guest.driver, kind, 0, &vec![7; out], capacity);
            assert_eq!(status, OK);
        }
        let device = guest.host.stat(DomId(1));
        let times = device.stats.latency.clone().unwrap();
        let requests = &device.stats.requests;
        let timed = [&times.read, &times.write, &times.flush].map(LatencySnapshot::count);
        let answered = [requests.read, requests.write, requests.flush];
        assert!(timed.iter().zip(answered).all(|(timed, count)| *timed <= count), "{timed:?}");
        // Each operation was measured once.
        if timed == answered {
            break device;
        }
        assert!(Instant::now() < end, "waited 10 s for times of {answered:?}: {timed:?}");
    };
    assert_eq!(device.guest.as_deref(), Some("web"));
    assert_eq!(device.stats.state.details["target"], file.path().display().to_string());
}

#[test]
fn spec_3_5_only_rings_and_message_page_stay_mapped_between_requests() {
    let mut disk = TestDisk::connect(numbered_disk(64), "w");
    assert_eq!(disk.host.hypervisor.mapped_pages(DomId(1)), 1, "the message page");
    disk.driver.start();
    assert_eq!(disk.host.hypervisor.mapped_pages(DomId(1)), 4, "and three ring areas");
    for sector in 0..32 {
        let (status, read) = request(&mut disk.driver, VIRTIO_BLK_T_IN, sector, &[], 512);
        assert_eq!((status, read), (OK, vec![sector as u8; 512]));
        assert_eq!(disk.host.hypervisor.mapped_pages(DomId(1)), 4);
    }
    assert_eq!(disk.host.stat(DomId(1)).stats.grants_mapped, 4);
}

#[test]
fn identity_is_the_device_name() {
    let mut disk = TestDisk::start(numbered_disk(1), "w");
    let (status, name) = request(&mut disk.driver, VIRTIO_BLK_T_GET_ID, 0, &[], 20);
    assert_eq!((status, &name[..5]), (OK, &b"xvda\0"[..]));
}

#[test]
fn read_only_disk_offers_the_feature_and_refuses_writes() {
    let mut disk = TestDisk::connect(numbered_disk(8), "r");
    assert_ne!(disk.driver.offered() & 1 << VIRTIO_BLK_F_RO, 0);
    disk.driver.start();
    assert_eq!(request(&mut disk.driver, VIRTIO_BLK_T_OUT, 1, &[9; 512], 0).0, IOERR);
    assert_eq!(request(&mut disk.driver, VIRTIO_BLK_T_IN, 1, &[], 512), (OK, vec![1; 512]));
    assert_eq!(fs::read(disk.file.path()).unwrap()[512..1024], [1; 512]);
}

#[test]
fn invalid_requests_fail_and_the_device_continues() {
    let mut disk = TestDisk::start(numbered_disk(8), "w");
    for sector in [8, 7 + 1, u64::MAX, u64::MAX / 512] {
        assert_eq!(request(&mut disk.driver, VIRTIO_BLK_T_IN, sector, &[], 512).0, IOERR);
        assert_eq!(request(&mut disk.driver, VIRTIO_BLK_T_OUT, sector, &[1; 512], 0).0, IOERR);
    }
    assert_eq!(
        request(&mut disk.driver, VIRTIO_BLK_T_IN, 7, &[], 1024).0,
        IOERR,
        "crosses the disk's end"
    );
    assert_eq!(
        request(&mut disk.driver, VIRTIO_BLK_T_IN, 0, &[], 511).0,
        IOERR,
        "not a whole sector"
    );
    assert_eq!(request(&mut disk.driver, 77, 0, &[], 0).0, UNSUPPORTED);
    assert_eq!(request(&mut disk.driver, VIRTIO_BLK_T_IN, 7, &[], 512), (OK, vec![7; 512]));
    assert_eq!(fs::metadata(disk.file.path()).unwrap().len(), 8 * 512, "the file did not grow");
}

#[test]
fn indirect_table_is_followed() {
    let mut disk = TestDisk::start(numbered_disk(8), "w");
    let head = disk.driver.share(&header(VIRTIO_BLK_T_IN, 3), Access::ReadOnly);
    let input = disk.driver.share(&[0; 512], Access::ReadWrite);
    let status = disk.driver.share(&[0xff], Access::ReadWrite);
    let mut table = Vec::new();
    let chain = [head.readable(), input.writable(), status.writable()];
    for (position, descriptor) in chain.iter().enumerate() {
        let next = position < 2;
        table.extend(descriptor.address.to_le_bytes());
        table.extend(descriptor.length.to_le_bytes());
        table.extend((u16::from(next) | u16::from(descriptor.writable) << 1).to_le_bytes());
        table.extend((position as u16 + 1).to_le_bytes());
    }
    let table = disk.driver.share(&table, Access::ReadOnly);
    let (ring, guest) = disk.driver.ring();
    ring.write(guest, 0, table.readable(), 4, 0);
    ring.offer(guest, 0);
    ring.doorbell.notify();
    assert_eq!(disk.driver.wait_used(), (0, 513));
    assert_eq!(disk.driver.unshare(&input), [3; 512]);
    assert_eq!(disk.driver.unshare(&status), [OK]);
    disk.driver.unshare(&head);
    disk.driver.unshare(&table);
}

#[test]
fn many_concurrent_requests_are_answered() {
    let mut disk = TestDisk::start(numbered_disk(64), "w");
    for round in 0..20u64 {
        let requests: Vec<_> = (0..5)
            .map(|number| {
                let head =
                    disk.driver.share(&header(VIRTIO_BLK_T_IN, round + number), Access::ReadOnly);
                let input = disk.driver.share(&[0; 512], Access::ReadWrite);
                let status = disk.driver.share(&[0xff], Access::ReadWrite);
                let chain = [head.readable(), input.writable(), status.writable()];
                let (ring, guest) = disk.driver.ring();
                ring.add(guest, &chain);
                (head, input, status, round + number)
            })
            .collect();
        disk.driver.ring().0.doorbell.notify();
        for _ in &requests {
            disk.driver.wait_used();
        }
        for (head, input, status, sector) in requests {
            disk.driver.unshare(&head);
            assert_eq!(disk.driver.unshare(&input), [sector as u8; 512]);
            assert_eq!(disk.driver.unshare(&status), [OK]);
        }
    }
}

#[test]
fn spec_6_2_version_1_and_access_platform_are_always_offered() {
    let mut disk = TestDisk::connect(numbered_disk(1), "w");
    let both = 1 << F_VERSION_1 | 1 << F_ACCESS_PLATFORM;
    assert_eq!(disk.driver.offered() & both, both);
    disk.driver.start();
    let names = disk.host.stat(DomId(1)).stats.state.features;
    assert!(names.iter().any(|name| name == "VIRTIO_F_ACCESS_PLATFORM"), "{names:?}");
}

#[test]
fn empty_queue_enables_its_doorbell() {
    let mut disk = TestDisk::start(numbered_disk(8), "w");
    for sector in 0..8 {
        assert_eq!(request(&mut disk.driver, VIRTIO_BLK_T_IN, sector, &[], 512).0, OK);
    }
    // The device chooses the time: it polls the queue for a while first, and answers messages
    // meanwhile.
    disk.driver.until("the doorbell to be enabled", |driver| {
        let (ring, guest) = driver.ring();
        ring.doorbell_is_asked_for(guest)
    });
}

#[test]
fn all_queues_are_served() {
    let mut disk = TestDisk::connect(numbered_disk(8), "w");
    disk.driver.start_with(4);
    for round in 0..8 {
        disk.driver.use_queue(round % 4);
        let (status, read) = request(&mut disk.driver, VIRTIO_BLK_T_IN, round as u64, &[], 512);
        assert_eq!((status, read), (OK, vec![round as u8; 512]));
    }
}

#[test]
fn request_costs_one_copy_per_direction_and_no_mapping() {
    let mut disk = TestDisk::start(numbered_disk(64), "w");
    let before = disk.host.hypervisor.map_calls();
    let copies = |disk: &TestDisk| disk.host.stat(DomId(1)).stats.counts.copies;
    request(&mut disk.driver, VIRTIO_BLK_T_OUT, 0, &[1; 4 * 4096], 0);
    assert_eq!(copies(&disk), 2, "header and data, status");
    request(&mut disk.driver, VIRTIO_BLK_T_IN, 0, &[], 4 * 4096);
    assert_eq!(copies(&disk), 4, "header, data and status");
    assert_eq!(disk.host.hypervisor.map_calls(), before);
}

#[test]
fn spec_6_4_reset_keeps_only_the_message_page_and_its_channel() {
    let mut disk = TestDisk::connect(numbered_disk(8), "w");
    for queues in 1..=4 {
        disk.driver.start_with(queues);
        assert_eq!(disk.host.hypervisor.bound_ports(), 1 + queues as usize);
        assert_eq!(disk.host.hypervisor.mapped_pages(DomId(1)), 1 + 3 * queues as usize);
        disk.driver.reset_device();
        assert_eq!(disk.host.hypervisor.bound_ports(), 1);
        assert_eq!(disk.host.hypervisor.mapped_pages(DomId(1)), 1);
        disk.driver.free_rings();
    }
}
