//! Tests of a guest's faults: the device sets DEVICE_NEEDS_RESET with the reason, once, and the
//! daemon and its other devices continue.

use protocol::grant::{GrantAddress, GrantRef};
use protocol::message::{Request, Response, VqueueFlags, VqueueUpdate};
use protocol::status::{
    ACKNOWLEDGE, DEVICE_NEEDS_RESET, DRIVER, F_ACCESS_PLATFORM, F_VERSION_1, FEATURES_OK,
};
use virtio_bindings::virtio_blk::{VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT};

use super::block::{OK, header, request};
use super::driver::{Driver, Shared};
use super::host::{Host, TestDisk, XVDA, numbered_disk};
use super::ring::Descriptor;
use xen::{Access, DomId};

/// Sends a read request that `spoil` changes.
fn spoiled_read(driver: &mut Driver, spoil: impl FnOnce(&mut Driver, &mut [Descriptor; 3])) {
    let head = driver.share(&header(VIRTIO_BLK_T_IN, 1), Access::ReadOnly);
    let input = driver.share(&[0xee; 512], Access::ReadWrite);
    let status = driver.share(&[0xff], Access::ReadWrite);
    let mut chain = [head.readable(), input.writable(), status.writable()];
    spoil(driver, &mut chain);
    driver.submit(&chain);
    assert_ne!(driver.wait_config_event() & DEVICE_NEEDS_RESET, 0);
    assert_eq!(driver.unshare(&input), [0xee; 512], "no byte was written");
    driver.unshare(&head);
    driver.unshare(&status);
}

/// Runs `spoil` on a fresh device; the fault's text must contain every one of `words`. Another
/// guest's device continues meanwhile, and this one works again after a reset.
fn faults(words: &[&str], spoil: impl FnOnce(&mut Driver)) {
    let (host, disk, other_disk) = (Host::start(), numbered_disk(64), numbered_disk(64));
    let ends = host.add_disk(1, XVDA, disk.path(), "w");
    let other_ends = host.add_disk(2, XVDA, other_disk.path(), "r");
    let (mut driver, mut other) = (host.connect(&ends), host.connect(&other_ends));
    driver.start();
    other.start();
    spoil(&mut driver);
    let why = host.stat(DomId(1)).stats.state.needs_reset.unwrap();
    assert!(why.starts_with("queue 0: "), "{why:?}");
    words.iter().for_each(|word| assert!(why.contains(word), "{word:?} is not in {why:?}"));
    assert_ne!(driver.status() & DEVICE_NEEDS_RESET, 0);
    assert_eq!(request(&mut other, VIRTIO_BLK_T_IN, 5, &[], 512), (OK, vec![5; 512]));

    let guest = driver.close();
    driver_again(&host, &ends, guest);
    other.close();
    host.remove(&ends);
    host.remove(&other_ends);
    host.finish();
}

/// Connects again and reads a sector.
fn driver_again(host: &Host, ends: &super::host::Ends, guest: xen_sim::Guest) {
    host.hypervisor.store_write(&format!("{}/state", ends.frontend), "1");
    let mut driver = Driver::connect(host.hypervisor.clone(), ends.clone(), guest);
    driver.start();
    assert_eq!(request(&mut driver, VIRTIO_BLK_T_IN, 6, &[], 512), (OK, vec![6; 512]));
    driver.close();
}

#[test]
fn spec_3_2_raw_address_is_refused() {
    faults(&["descriptor 1", "0x1000", "bit 63"], |driver| {
        spoiled_read(driver, |_, chain| chain[1].address = 0x1000);
    });
}

#[test]
fn spec_3_2_reserved_address_bits_are_refused() {
    faults(&["descriptor 0", "reserved"], |driver| {
        spoiled_read(driver, |_, chain| chain[0].address |= 1 << 50);
    });
}

#[test]
fn spec_3_13_the_toolstacks_grants_are_refused() {
    faults(&["descriptor 0", "grant 1 is the toolstack's"], |driver| {
        spoiled_read(driver, |_, chain| {
            chain[0].address = GrantAddress::page(GrantRef(1)).encode()
        });
    });
}

#[test]
fn spec_6_5_unknown_grant_is_refused() {
    faults(&["buffer for the device to write", "grant 99999"], |driver| {
        spoiled_read(driver, |_, chain| {
            chain[1].address = GrantAddress::page(GrantRef(99_999)).encode();
        });
    });
}

#[test]
fn spec_3_4_write_through_a_read_only_grant_is_refused() {
    faults(&["buffer for the device to write", "ReadWrite"], |driver| {
        let read_only: Shared = driver.share(&[0; 512], Access::ReadOnly);
        spoiled_read(driver, |_, chain| chain[1].address = read_only.address());
        assert_eq!(driver.unshare(&read_only), [0; 512]);
    });
}

#[test]
fn spec_3_5_ended_grant_is_refused() {
    faults(&["buffer for the device to write"], |driver| {
        let ended = driver.share(&[0; 512], Access::ReadWrite);
        driver.unshare(&ended);
        spoiled_read(driver, |_, chain| chain[1].address = ended.address());
    });
}

#[test]
fn spec_3_3_buffer_beyond_its_grants_is_refused() {
    faults(&["buffer for the device to write", "2 page(s)"], |driver| {
        spoiled_read(driver, |driver, chain| {
            // The latest grant: no grant follows it.
            let last = driver.share(&[0; 512], Access::ReadWrite);
            chain[1] = Descriptor { length: 2 * 4096, ..last.writable() };
            driver.keep(last);
        });
    });
}

#[test]
fn chain_of_more_than_four_gigabytes_is_refused_without_mapping() {
    faults(&["more than 4 GiB"], |driver| {
        spoiled_read(driver, |_, chain| chain[0].length = u32::MAX);
    });
}

#[test]
fn readable_buffer_after_a_writable_one_is_refused() {
    faults(&["device-readable buffer behind"], |driver| {
        spoiled_read(driver, |_, chain| chain[2].writable = false);
    });
}

#[test]
fn request_without_a_status_byte_is_refused() {
    faults(&["status byte"], |driver| {
        let head = driver.share(&header(VIRTIO_BLK_T_OUT, 1), Access::ReadOnly);
        driver.submit(&[head.readable()]);
        driver.wait_config_event();
        driver.unshare(&head);
    });
}

#[test]
fn looping_chain_is_refused() {
    faults(&["more descriptors than the queue has entries"], |driver| {
        let head = driver.share(&header(VIRTIO_BLK_T_IN, 1), Access::ReadOnly);
        let (ring, guest) = driver.ring();
        ring.write(guest, 0, head.readable(), 1, 0);
        ring.offer(guest, 0);
        ring.doorbell.notify();
        driver.wait_config_event();
        driver.unshare(&head);
    });
}

#[test]
fn indirect_table_without_a_grant_is_refused() {
    faults(&["followed to its end", "bit 63"], |driver| {
        let (ring, guest) = driver.ring();
        let table = Descriptor { address: 0x8000, length: 48, writable: false };
        ring.write(guest, 0, table, 4, 0);
        ring.offer(guest, 0);
        ring.doorbell.notify();
        driver.wait_config_event();
    });
}

#[test]
fn head_beyond_the_queue_is_refused() {
    faults(&["chain 700"], |driver| {
        let (ring, guest) = driver.ring();
        ring.offer(guest, 700);
        ring.doorbell.notify();
        driver.wait_config_event();
    });
}

#[test]
fn available_index_too_far_ahead_is_refused() {
    faults(&["ring"], |driver| {
        let (ring, guest) = driver.ring();
        ring.set_available(guest, 17);
        ring.doorbell.notify();
        driver.wait_config_event();
    });
}

#[test]
fn requests_served_before_a_fault_are_returned() {
    faults(&["descriptor 1"], |driver| {
        let head = driver.share(&header(VIRTIO_BLK_T_IN, 4), Access::ReadOnly);
        let input = driver.share(&[0; 512], Access::ReadWrite);
        let status = driver.share(&[0xff], Access::ReadWrite);
        let good = [head.readable(), input.writable(), status.writable()];
        let mut bad = good;
        bad[1].address = 0;
        let (ring, guest) = driver.ring();
        ring.add(guest, &good);
        ring.add(guest, &bad);
        ring.doorbell.notify();
        assert_eq!(driver.wait_used().0, 0);
        driver.wait_config_event();
        let (ring, guest) = driver.ring();
        assert_eq!(ring.used_index(guest), 1);
        assert_eq!(driver.unshare(&input), [4; 512]);
        driver.unshare(&head);
        driver.unshare(&status);
    });
}

#[test]
fn spec_6_5_faulted_device_serves_nothing_until_reset() {
    faults(&["descriptor 1"], |driver| {
        spoiled_read(driver, |_, chain| chain[1].address = 0x1000);
        let head = driver.share(&header(VIRTIO_BLK_T_IN, 1), Access::ReadOnly);
        let input = driver.share(&[0xee; 512], Access::ReadWrite);
        let status = driver.share(&[0xff], Access::ReadWrite);
        driver.submit(&[head.readable(), input.writable(), status.writable()]);
        // The same thread handles the message after the doorbell: once it answers, it has handled
        // the doorbell.
        driver.status();
        driver.status();
        let (ring, guest) = driver.ring();
        assert_eq!(ring.used_index(guest), 0);
        assert_eq!(driver.unshare(&input), [0xee; 512]);
        driver.unshare(&head);
        driver.unshare(&status);
    });
}

#[test]
fn spec_6_2_features_ok_is_refused_without_access_platform() {
    let mut disk = TestDisk::connect(numbered_disk(1), "w");
    let offered = disk.driver.offered();
    for features in
        [offered & !(1 << F_ACCESS_PLATFORM), offered & !(1 << F_VERSION_1), offered | 1 << 62, 0]
    {
        assert_eq!(disk.driver.negotiate(features), ACKNOWLEDGE | DRIVER, "{features:#x}");
        // SET_VQUEUE before FEATURES_OK is ignored [6.1].
        let update = VqueueUpdate {
            index: 0,
            flags: VqueueFlags(VqueueFlags::ENABLE),
            size: 16,
            reserved: 0,
            descriptor: 1 << 63,
            driver: 1 << 63,
            device: 1 << 63,
        };
        disk.driver.ask(Request::SetVqueue(update), |_| ());
        assert!(!queue_enabled(&mut disk.driver));
    }
    assert_ne!(disk.driver.negotiate(offered) & FEATURES_OK, 0);
}

#[test]
fn spec_3_12_the_toolstacks_grant_usage_changes_nothing() {
    let (host, disk) = (Host::start(), numbered_disk(64));
    let params = disk.path().to_str().unwrap();
    for usage in ["0", "1"] {
        let keys = [("params", params), ("mode", "w"), ("grant_usage", usage)];
        let ends = host.add("virtio_disk", 1, XVDA, &keys);
        let mut driver = host.connect(&ends);
        let offered = driver.offered();
        let without = driver.negotiate(offered & !(1 << F_ACCESS_PLATFORM));
        assert_eq!(without, ACKNOWLEDGE | DRIVER, "grant_usage={usage}");
        driver.start();
        assert_eq!(request(&mut driver, VIRTIO_BLK_T_IN, 5, &[], 512), (OK, vec![5; 512]));
        spoiled_read(&mut driver, |_, chain| chain[1].address = 0x1000);
        driver.close();
        host.remove(&ends);
    }
    host.finish();
}

fn queue_enabled(driver: &mut Driver) -> bool {
    driver.ask(Request::GetVqueue { index: 0 }, |answer| match answer {
        Response::GetVqueue(queue) => queue.enabled,
        other => panic!("{other:?}"),
    })
}

#[test]
fn spec_6_3_invalid_queue_setup_changes_nothing() {
    let mut disk = TestDisk::connect(numbered_disk(1), "w");
    let offered = disk.driver.offered();
    disk.driver.negotiate(offered);
    let pages = disk.driver.share(&[0; 3 * 4096], Access::ReadWrite);
    let read_only = disk.driver.share(&[0; 4096], Access::ReadOnly);
    let good = VqueueUpdate {
        index: 0,
        flags: VqueueFlags(VqueueFlags::ENABLE),
        size: 16,
        reserved: 0,
        descriptor: pages.address(),
        driver: pages.address() + 4096,
        device: pages.address() + 8192,
    };
    for bad in [
        VqueueUpdate { index: 4, ..good },
        VqueueUpdate { index: u32::MAX, ..good },
        VqueueUpdate { flags: VqueueFlags(3), ..good },
        VqueueUpdate { flags: VqueueFlags(0x41), ..good },
        VqueueUpdate { flags: VqueueFlags(1 | 1 << 3), ..good },
        VqueueUpdate { size: 0, ..good },
        VqueueUpdate { size: 15, ..good },
        VqueueUpdate { size: 512, ..good },
        VqueueUpdate { descriptor: 0x1000, ..good },
        VqueueUpdate { descriptor: pages.address() + 8, ..good },
        VqueueUpdate { driver: pages.address() + 1, ..good },
        VqueueUpdate { device: pages.address() + 2, ..good },
        VqueueUpdate { device: read_only.address(), ..good },
        VqueueUpdate { device: pages.address() + 3 * 4096, ..good },
    ] {
        disk.driver.ask(Request::SetVqueue(bad), |_| ());
        assert!(!queue_enabled(&mut disk.driver), "{bad:x?}");
        assert_eq!(disk.host.hypervisor.mapped_pages(DomId(1)), 1, "{bad:x?}");
    }
    disk.driver.ask(Request::SetVqueue(good), |_| ());
    assert!(queue_enabled(&mut disk.driver));
    disk.driver.ask(Request::ResetVqueue { index: 0 }, |_| ());
    assert!(!queue_enabled(&mut disk.driver));
    assert_eq!(disk.host.hypervisor.mapped_pages(DomId(1)), 1);
    disk.driver.unshare(&pages);
    disk.driver.unshare(&read_only);
}
