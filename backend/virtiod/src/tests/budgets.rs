//! Requests beyond the budgets: the device checks their cost before it maps or copies.

use protocol::grant::{GrantAddress, GrantRef};
use protocol::message::ShareOutcome;
use protocol::pool::PoolPage;
use protocol::status::DEVICE_NEEDS_RESET;
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_S_IOERR, VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID,
    VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
};

use super::block::{OK, header, request};
use super::driver::Driver;
use super::host::{Host, TestDisk, XVDA, numbered_disk};
use super::ring::{Descriptor, Ring};
use xen::{Access, DomId};

/// Mapped pages: the message page and three ring areas.
const OWN: u64 = 4;
/// Flag of a descriptor that refers to a table of descriptors.
const INDIRECT: u16 = 4;

/// Pages mapped and copied for the device's requests so far.
fn spent(host: &Host) -> u64 {
    let counts = host.stat(DomId(1)).stats.counts;
    counts.maps_pages + counts.copies_pages
}

#[test]
fn too_long_request_is_answered_without_mappings() {
    let kinds = [
        VIRTIO_BLK_T_IN,
        VIRTIO_BLK_T_OUT,
        VIRTIO_BLK_T_FLUSH,
        VIRTIO_BLK_T_GET_ID,
        VIRTIO_BLK_T_DISCARD,
    ];
    for kind in kinds {
        let mut disk = TestDisk::start(numbered_disk(64), "w");
        let before = spent(&disk.host);
        // 24 MiB in 12 parts, none of them granted. Only a read needs them.
        let part = |number: u32| Descriptor {
            address: GrantAddress::new(GrantRef(5000 + 512 * number), 0).encode(),
            length: 2 << 20,
            writable: true,
        };
        let head = disk.driver.share(&header(kind, 0), Access::ReadOnly);
        let status = disk.driver.share(&[0xff], Access::ReadWrite);
        let parts = (0..12).map(part);
        let chain: Vec<_> =
            [head.readable()].into_iter().chain(parts).chain([status.writable()]).collect();
        disk.driver.submit(&chain);
        assert_eq!(disk.driver.wait_used().1, 1, "{kind}");
        disk.driver.unshare(&head);
        assert_eq!(disk.driver.unshare(&status), [VIRTIO_BLK_S_IOERR as u8], "{kind}");
        assert_eq!(spent(&disk.host) - before, 2, "{kind}: its header and its status");
    }
}

/// Makes a chain available whose indirect table has `count` entries, all of them the same page.
fn submit_table(driver: &mut Driver, count: u32, entry: Descriptor) {
    let bytes: Vec<u8> = (0..count)
        .flat_map(|index| {
            let next = u16::from(index + 1 < count);
            let flags = next | u16::from(entry.writable) << 1;
            let mut bytes = entry.address.to_le_bytes().to_vec();
            bytes.extend(entry.length.to_le_bytes());
            bytes.extend(flags.to_le_bytes());
            bytes.extend((index as u16 + 1).to_le_bytes());
            bytes
        })
        .collect();
    let table = driver.share(&bytes, Access::ReadOnly);
    let (ring, guest) = driver.ring();
    let descriptor = Descriptor { length: bytes.len() as u32, ..table.readable() };
    ring.write(guest, 0, descriptor, INDIRECT, 0);
    ring.offer(guest, 0);
    ring.doorbell.notify();
    driver.keep(table);
}

#[test]
fn chain_longer_than_its_queue_is_a_fault() {
    for count in [u32::from(Ring::SIZE) + 1, 65_535] {
        let (host, disk) = (Host::start(), numbered_disk(64));
        let ends = host.add_disk(1, XVDA, disk.path(), "w");
        let mut driver = host.connect(&ends);
        driver.start();
        let page = driver.share(&[0; 4096], Access::ReadWrite);
        let before = spent(&host);
        submit_table(&mut driver, count, page.readable());
        assert_ne!(driver.wait_config_event() & DEVICE_NEEDS_RESET, 0);
        let why = host.stat(DomId(1)).stats.state.needs_reset.unwrap();
        assert!(why.contains("more descriptors than the queue has entries"), "{why}");
        // The device reads the table itself through one mapping.
        assert!(spent(&host) - before <= u64::from(count).div_ceil(256), "{}", spent(&host));
        driver.keep(page);
        driver.close();
        host.remove(&ends);
        host.finish();
    }
}

#[test]
fn chain_as_long_as_its_queue_is_served() {
    let mut disk = TestDisk::start(numbered_disk(64), "w");
    let head = disk.driver.share(&header(VIRTIO_BLK_T_IN, 0), Access::ReadOnly);
    let data: Vec<_> =
        (2..Ring::SIZE).map(|_| disk.driver.share(&[0; 512], Access::ReadWrite)).collect();
    let status = disk.driver.share(&[0xff], Access::ReadWrite);
    let data_parts = data.iter().map(|part| part.writable());
    let chain: Vec<_> =
        [head.readable()].into_iter().chain(data_parts).chain([status.writable()]).collect();
    disk.driver.submit(&chain);
    disk.driver.wait_used();
    for (sector, part) in data.iter().enumerate() {
        assert_eq!(disk.driver.unshare(part), [sector as u8; 512]);
    }
    disk.driver.unshare(&head);
    assert_eq!(disk.driver.unshare(&status), [OK]);
}

#[test]
fn pages_shared_one_by_one_count_against_the_guests_budget_only() {
    let (host, disk) = (Host::start(), numbered_disk(64));
    let disks = [XVDA, XVDA + 16].map(|number| host.add_disk(1, number, disk.path(), "r"));
    let other_ends = host.add_disk(2, XVDA, disk.path(), "r");
    let mut greedy = host.connect(&disks[0]);
    let mut beside = host.connect_beside(&disks[1]);
    greedy.start();
    beside.start();
    let page = greedy.share(&[0; 4096], Access::ReadWrite);
    let shared = (0..4096)
        .take_while(|number| {
            greedy.ask_share(PoolPage(*number), 1, page.first) == ShareOutcome::Shared
        })
        .count();
    assert!((500..=1024).contains(&shared), "{shared}");
    // The same guest's other disk has no pool, and works.
    let more = beside.share(&[0; 4096], Access::ReadWrite);
    assert_eq!(beside.ask_share(PoolPage(0), 1, more.first), ShareOutcome::Refused);
    assert_eq!(request(&mut beside, VIRTIO_BLK_T_IN, 4, &[], 512), (OK, vec![4; 512]));
    let mut other = host.connect(&other_ends);
    other.start();
    assert_eq!(request(&mut other, VIRTIO_BLK_T_IN, 5, &[], 512), (OK, vec![5; 512]));
    let pool = other.share_pool(PoolPage(0), 2);
    assert_eq!(host.stat(DomId(2)).stats.grants_mapped, OWN + 2);
    drop(pool);
    greedy.keep(page);
    beside.keep(more);
    for (driver, ends) in [(greedy, &disks[0]), (beside, &disks[1]), (other, &other_ends)] {
        driver.close();
        host.remove(ends);
    }
    host.finish();
}
