//! Tests of the shared pool: pages that a guest grants and the device maps once.

use protocol::grant::GrantRef;
use protocol::message::{ShareOutcome, UnshareOutcome, VqueueFlags, VqueueUpdate};
use protocol::pool::{MAX_POOL_PAGES, PoolPage};
use protocol::status::{ACKNOWLEDGE, DEVICE_NEEDS_RESET, DRIVER, DRIVER_OK, FEATURES_OK};
use virtio_bindings::virtio_blk::{VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT};

use super::block::{OK, header};
use super::driver::{Driver, Pooled};
use super::host::{Host, TestDisk, XVDA, numbered_disk};
use super::ring::Descriptor;
use xen::{Access, DomId};
use xen_sim::GuestPage;

/// Pages that stay mapped besides the pool: the message page and one queue's rings.
const OWN: usize = 4;

/// Returns a descriptor of bytes in the pool.
fn descriptor(page: u32, offset: u64, length: u32, writable: bool) -> Descriptor {
    Descriptor { address: PoolPage(page).address(offset), length, writable }
}

/// Reads one sector with all parts at `page` of the pool: header, data across the page's end,
/// status.
pub(super) fn read_sector(driver: &mut Driver, pool: &Pooled, sector: u64) -> (u8, Vec<u8>) {
    let first = pool.first.0;
    driver.guest.slice(pool.pages[0], 8, 16).copy_from(&header(VIRTIO_BLK_T_IN, sector));
    driver.guest.slice(pool.pages[1], 1000, 1).copy_from(&[0xff]);
    driver.submit(&[
        descriptor(first, 8, 16, false),
        descriptor(first, 4000, 512, true),
        descriptor(first + 1, 1000, 1, true),
    ]);
    assert_eq!(driver.wait_used().1, 513);
    let mut data = vec![0; 512];
    driver.guest.slice(pool.pages[0], 4000, 96).copy_to(&mut data[..96]);
    driver.guest.slice(pool.pages[1], 0, 416).copy_to(&mut data[96..]);
    let mut status = [0xff];
    driver.guest.slice(pool.pages[1], 1000, 1).copy_to(&mut status);
    (status[0], data)
}

#[test]
fn spec_3_10_pool_buffers_need_no_mapping() {
    let mut disk = TestDisk::start(numbered_disk(64), "w");
    // Two chunks, with a gap in the page numbers before the second.
    let chunks = [disk.driver.share_pool(PoolPage(0), 2), disk.driver.share_pool(PoolPage(64), 3)];
    assert_eq!(disk.host.hypervisor.mapped_pages(DomId(1)), OWN + 5);
    let before = disk.host.hypervisor.map_calls();
    for sector in 0..32 {
        let pool = &chunks[sector as usize % 2];
        assert_eq!(read_sector(&mut disk.driver, pool, sector), (OK, vec![sector as u8; 512]));
    }
    assert_eq!(disk.host.hypervisor.map_calls(), before);
    let stats = disk.host.stat(DomId(1)).stats;
    assert_eq!((stats.grants_mapped, stats.pool_pages), (OWN as u64 + 5, 5));

    // A request may mix granted buffers with buffers in the pool.
    let data = disk.driver.share(&[7; 512], Access::ReadOnly);
    let pool = &chunks[0];
    disk.driver.guest.slice(pool.pages[0], 0, 16).copy_from(&header(VIRTIO_BLK_T_OUT, 9));
    let (request, status) = (descriptor(0, 0, 16, false), descriptor(1, 0, 1, true));
    disk.driver.submit(&[request, data.readable(), status]);
    disk.driver.wait_used();
    disk.driver.unshare(&data);
    assert_eq!(read_sector(&mut disk.driver, pool, 9), (OK, vec![7; 512]));
}

#[test]
fn spec_3_10_buffer_outside_one_shared_chunk_is_refused() {
    // After the shared pages, across their end, across the seam of two chunks, and far away.
    let wrong = [
        descriptor(4, 0, 512, true),
        descriptor(3, 4000, 512, true),
        descriptor(1, 4000, 512, true),
        descriptor(MAX_POOL_PAGES - 1, 0, 512, true),
        descriptor(MAX_POOL_PAGES, 0, 512, true),
        descriptor(0, 0, 5 * 4096, true),
        Descriptor { address: 1 << 62, length: 512, writable: true },
    ];
    for wrong in wrong {
        let (host, disk) = (Host::start(), numbered_disk(64));
        let ends = host.add_disk(1, XVDA, disk.path(), "w");
        let mut driver = host.connect(&ends);
        driver.start();
        let pool = driver.share_pool(PoolPage(0), 2);
        driver.share_pool(PoolPage(2), 2);
        driver.guest.slice(pool.pages[0], 0, 16).copy_from(&header(VIRTIO_BLK_T_IN, 1));
        driver.submit(&[descriptor(0, 0, 16, false), wrong, descriptor(0, 16, 1, true)]);
        let status = driver.wait_config_event();
        assert_ne!(status & DEVICE_NEEDS_RESET, 0, "{wrong:x?}");
        let (_, outcome) = driver.try_share_pool(PoolPage(9), 1, Access::ReadWrite);
        assert_eq!(outcome, ShareOutcome::Refused, "a device that needs a reset refuses pages");
        driver.close();
        host.remove(&ends);
        host.finish();
    }
}

#[test]
fn spec_5_8_pages_are_shared_all_or_none() {
    let mut disk = TestDisk::start(numbered_disk(64), "w");
    let shared = disk.driver.share_pool(PoolPage(8), 4);
    let read_only = disk.driver.try_share_pool(PoolPage(0), 2, Access::ReadOnly);
    assert_eq!(read_only.1, ShareOutcome::Refused, "read-only pages");
    let granted: Vec<GuestPage> = (0..8).map(|_| disk.driver.guest.allocate()).collect();
    let granted = (disk.driver.guest.grant(&granted, Access::ReadWrite), granted.len());
    let mut refused = |first, count, reference| {
        let outcome = disk.driver.ask_share(PoolPage(first), count, reference);
        assert_eq!(outcome, ShareOutcome::Refused, "{count} from {first}");
    };
    refused(0, 0, granted.0);
    refused(MAX_POOL_PAGES, 1, granted.0);
    refused(MAX_POOL_PAGES - 7, 8, granted.0);
    refused(u32::MAX, 8, granted.0);
    refused(1, u32::MAX, granted.0);
    refused(8, 1, granted.0);
    refused(7, 2, granted.0);
    refused(11, 2, granted.0);
    refused(6, 8, granted.0);
    refused(0, 8, GrantRef(granted.0.0 + 1));
    refused(0, 8, GrantRef(u32::MAX - 2));
    assert_eq!(
        disk.host.hypervisor.mapped_pages(DomId(1)),
        OWN + 4,
        "refused messages shared no page"
    );
    assert_eq!(disk.driver.ask_share(PoolPage(0), 8, granted.0), ShareOutcome::Shared);
    assert_eq!(read_sector(&mut disk.driver, &shared, 5), (OK, vec![5; 512]));
    disk.driver.reset_device();
    disk.driver.guest.revoke(granted.0, granted.1);
}

#[test]
fn spec_5_11_unshared_pages_are_unmapped_and_may_be_shared_again() {
    let mut disk = TestDisk::start(numbered_disk(64), "w");
    let kept = disk.driver.share_pool(PoolPage(0), 2);
    for _ in 0..3 {
        let more = disk.driver.share_pool(PoolPage(2), 2);
        assert_eq!(read_sector(&mut disk.driver, &more, 5), (OK, vec![5; 512]));
        assert_eq!(disk.driver.ask_unshare(PoolPage(2), 2), UnshareOutcome::Unshared);
        assert_eq!(disk.host.hypervisor.mapped_pages(DomId(1)), OWN + 2);
        assert_eq!(disk.host.stat(DomId(1)).stats.pool_pages, 2);
        // The grants can end now, because nothing is mapped.
        disk.driver.free_newest();
    }
    assert_eq!(read_sector(&mut disk.driver, &kept, 6), (OK, vec![6; 512]));
}

#[test]
fn spec_5_11_only_the_pages_of_one_message_are_unshared() {
    let mut disk = TestDisk::start(numbered_disk(64), "w");
    let pool = disk.driver.share_pool(PoolPage(2), 4);
    disk.driver.share_pool(PoolPage(6), 2);
    let wrong =
        [(0, 0), (2, 0), (0, 2), (2, 3), (3, 3), (2, 5), (2, 6), (8, 1), (4096, 1), (u32::MAX, 9)];
    for (first, count) in wrong {
        let outcome = disk.driver.ask_unshare(PoolPage(first), count);
        assert_eq!(outcome, UnshareOutcome::Refused, "{count} from {first}");
    }
    assert_eq!(disk.host.hypervisor.mapped_pages(DomId(1)), OWN + 6);
    assert_eq!(read_sector(&mut disk.driver, &pool, 5), (OK, vec![5; 512]));
    assert_eq!(disk.driver.ask_unshare(PoolPage(2), 4), UnshareOutcome::Unshared);
    let again = disk.driver.ask_unshare(PoolPage(2), 4);
    assert_eq!(again, UnshareOutcome::Refused, "twice");
}

#[test]
fn spec_5_11_buffer_in_unshared_pages_is_refused() {
    let (host, disk) = (Host::start(), numbered_disk(64));
    let ends = host.add_disk(1, XVDA, disk.path(), "w");
    let mut driver = host.connect(&ends);
    driver.start();
    let pool = driver.share_pool(PoolPage(0), 2);
    driver.share_pool(PoolPage(2), 2);
    assert_eq!(driver.ask_unshare(PoolPage(2), 2), UnshareOutcome::Unshared);
    driver.guest.slice(pool.pages[0], 0, 16).copy_from(&header(VIRTIO_BLK_T_IN, 1));
    let data = descriptor(2, 0, 512, true);
    driver.submit(&[descriptor(0, 0, 16, false), data, descriptor(0, 16, 1, true)]);
    assert_ne!(driver.wait_config_event() & DEVICE_NEEDS_RESET, 0);
    let outcome = driver.ask_unshare(PoolPage(0), 2);
    assert_eq!(outcome, UnshareOutcome::Refused, "a device that needs a reset keeps pages");
    driver.close();
    host.remove(&ends);
    host.finish();
}

#[test]
fn spec_5_8_domain_without_capacity_refuses_pages_and_continues() {
    let mut disk = TestDisk::start(numbered_disk(8), "w");
    let pool = disk.driver.share_pool(PoolPage(0), 2);
    disk.host.hypervisor.limit_mapped(OWN + 4);
    let (_, outcome) = disk.driver.try_share_pool(PoolPage(2), 3, Access::ReadWrite);
    assert_eq!(outcome, ShareOutcome::Refused);
    assert_eq!(read_sector(&mut disk.driver, &pool, 5), (OK, vec![5; 512]));
}

#[test]
fn configured_limit_bounds_the_pool() {
    let (host, disk) = (Host::start(), numbered_disk(8));
    host.configure("[default]\npool = 4");
    let ends = host.add_disk(1, XVDA, disk.path(), "w");
    let mut driver = host.connect(&ends);
    for _ in 0..2 {
        driver.start();
        let pool = driver.share_pool(PoolPage(0), 3);
        let (_, outcome) = driver.try_share_pool(PoolPage(64), 2, Access::ReadWrite);
        assert_eq!(outcome, ShareOutcome::Refused);
        driver.share_pool(PoolPage(64), 1);
        assert_eq!(read_sector(&mut driver, &pool, 5), (OK, vec![5; 512]));
        driver.reset_device();
        driver.free_rings();
        driver.free_pool();
    }
    driver.close();
    host.remove(&ends);
    host.finish();
}

#[test]
fn spec_6_4_reset_unmaps_the_pool() {
    let mut disk = TestDisk::connect(numbered_disk(8), "w");
    for pages in 2..5 {
        disk.driver.start();
        let pool = disk.driver.share_pool(PoolPage(0), pages);
        assert_eq!(read_sector(&mut disk.driver, &pool, 5), (OK, vec![5; 512]));
        disk.driver.reset_device();
        assert_eq!(disk.host.hypervisor.mapped_pages(DomId(1)), 1, "the message page");
        assert_eq!(disk.host.stat(DomId(1)).stats.pool_pages, 0);
        disk.driver.free_rings();
        disk.driver.free_pool();
    }
}

#[test]
fn removed_device_unmaps_the_pool() {
    let (host, disk) = (Host::start(), numbered_disk(8));
    let ends = host.add_disk(1, XVDA, disk.path(), "w");
    let mut driver = host.connect(&ends);
    driver.start();
    driver.share_pool(PoolPage(0), 64);
    host.remove(&ends);
    assert_eq!(host.hypervisor.mapped_pages(DomId(1)), 0);
    driver.release();
    host.finish();
}

#[test]
fn spec_6_3_ring_in_the_pool_is_refused() {
    let mut disk = TestDisk::connect(numbered_disk(8), "w");
    let offered = disk.driver.offered();
    assert_ne!(disk.driver.negotiate(offered) & FEATURES_OK, 0);
    let pool = disk.driver.share_pool(PoolPage(0), 3);
    let update = VqueueUpdate {
        index: 0,
        flags: VqueueFlags(VqueueFlags::ENABLE),
        size: 16,
        reserved: 0,
        descriptor: PoolPage(0).address(0),
        driver: PoolPage(1).address(0),
        device: PoolPage(2).address(0),
    };
    assert!(!disk.driver.set_queue(update).enabled);
    disk.driver.add_ring(0);
    disk.driver.set_status(ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
    assert_eq!(read_sector(&mut disk.driver, &pool, 5), (OK, vec![5; 512]));
}
