//! Tests of rings granted as the module does it: in one run of pages, by the core's plan.

use guest_shim::ring::{RingAddresses, RingGrants};
use protocol::grant::{GrantAddress, GrantRef};
use protocol::message::{VqueueFlags, VqueueUpdate};

use super::driver::Driver;
use super::host::{Host, XVDA, numbered_disk};
use xen::{Access, DomId, GrantTable, MapError, Xen};
use xen_sim::GuestPage;

const ENTRIES: u32 = 256;

/// The areas of a ring of three pages with Linux' layout: two pages that the driver writes, one
/// that the device writes.
fn laid_out(first: GrantRef) -> RingAddresses {
    let page = |index| GrantAddress::page(GrantRef(first.0 + index)).encode();
    let driver = page(0) + 16 * u64::from(ENTRIES);
    RingAddresses { descriptor: page(0), driver, device: page(2) }
}

/// Grants a ring as the core plans it.
fn grant(driver: &mut Driver) -> RingGrants {
    let guest = &mut driver.guest;
    let pages: Vec<GuestPage> = (0..3).map(|_| guest.allocate()).collect();
    let first = guest.grant(&pages[..1], Access::ReadOnly);
    let plan = RingGrants::new(laid_out(first), ENTRIES).unwrap();
    let granted = plan.access(0);
    assert_eq!((plan.first, plan.pages, granted), (first, 3, Access::ReadOnly));
    for index in 1..plan.pages {
        let reference = guest.grant(&pages[index as usize..][..1], plan.access(index));
        assert_eq!(reference.0, first.0 + index);
    }
    plan
}

/// The SET_VQUEUE of a queue with such a ring.
fn update(first: GrantRef) -> VqueueUpdate {
    let RingAddresses { descriptor, driver, device } = laid_out(first);
    let flags = VqueueFlags(VqueueFlags::ENABLE);
    VqueueUpdate { index: 0, flags, size: ENTRIES, reserved: 0, descriptor, driver, device }
}

#[test]
fn spec_3_4_device_serves_a_ring_with_a_writable_device_area_only() {
    let (host, disk) = (Host::start(), numbered_disk(8));
    let ends = host.add_disk(1, XVDA, disk.path(), "w");
    let mut driver = host.connect(&ends);
    let offered = driver.offered();
    driver.negotiate(offered);
    let ring = grant(&mut driver);
    assert!(driver.set_queue(update(ring.first)).enabled);

    let backend = host.hypervisor.grants(DomId(1)).unwrap();
    for index in 0..ring.pages {
        let reference = GrantRef(ring.first.0 + index);
        let written = backend.map(&[reference], Access::ReadWrite);
        if index < 2 {
            assert!(matches!(written, Err(MapError::Refused { .. })), "page {index} of the ring");
        } else {
            assert!(written.is_ok(), "the device's own area");
        }
        assert!(backend.map(&[reference], Access::ReadOnly).is_ok(), "page {index} of the ring");
    }

    let guest = driver.close();
    guest.revoke(ring.first, ring.pages as usize);
    host.remove(&ends);
    host.finish();
}
