//! Tests of the handles' limits: the simulated handles have the limits of the real ones, and a
//! device reports them.

use virtio_bindings::virtio_blk::VIRTIO_BLK_T_IN;

use super::block::{OK, request};
use super::host::{Host, XVDA, numbered_disk};
use xen::{Access, DomId, GrantTable, MapError, StoreError, Xen, XenStore};
use xen_sim::{Hypervisor, StoreQuota};

/// The name of the outcome: xenstored's error, "too long" or "done".
fn refusal<T>(outcome: Result<T, StoreError>) -> String {
    match outcome {
        Err(StoreError::Refused { errno, .. }) => errno,
        Err(StoreError::TooLong(_)) => "too long".to_owned(),
        Err(other) => panic!("{other}"),
        Ok(_) => "done".to_owned(),
    }
}

#[test]
fn simulated_store_has_the_sizes_of_xenstored_and_the_device() {
    let hypervisor = Hypervisor::default();
    let mut store = hypervisor.store().unwrap();
    // 4096 bytes, less a header of 16, the path and its terminating byte.
    let most = 4096 - 16 - "a".len() - 1;
    assert_eq!(refusal(store.write("a", &"x".repeat(most))), "done");
    assert_eq!(refusal(store.write("a", &"x".repeat(most + 1))), "too long");
    assert_eq!(refusal(store.write_beside("a", "a", &"x".repeat(most + 1))), "too long");
    for path in ["a b", "a//b", "a/", "a\u{e9}", &"a".repeat(2049)] {
        assert_eq!(refusal(store.read(path)), "EINVAL", "{path:?}");
    }
    assert_eq!(refusal(store.read(&"a".repeat(2048))), "done");
    assert_eq!(refusal(store.read(&format!("/{}", "a".repeat(3072)))), "EINVAL");
    for number in 0..820 {
        hypervisor.store_write(&format!("/local/domain/0/many/{number:04}"), "");
    }
    // More than one answer holds: a client lists the rest in further parts.
    assert_eq!(store.list("many").unwrap().len(), 820);
    assert_eq!(refusal(store.remove("many")), "done");
    assert_eq!(store.list("many").unwrap().len(), 0);
}

#[test]
fn simulated_store_has_the_quotas_of_a_driver_domain() {
    let hypervisor = Hypervisor::default();
    let mut store = hypervisor.store().unwrap();
    hypervisor.limit(|limits| {
        limits.store = Some(StoreQuota { nodes: 2, watches: 2, node_size: 100 });
    });
    assert_eq!(refusal(store.write("a", &"x".repeat(100))), "ENOSPC");
    for path in ["a", "b", "a"] {
        assert_eq!(refusal(store.write(path, "x")), "done");
    }
    assert_eq!(refusal(store.write("c", "x")), "ENOSPC");
    assert_eq!(refusal(store.write_beside("a", "c", "x")), "ENOSPC");
    assert_eq!([(); 3].map(|()| refusal(store.watch("a"))), ["done", "done", "E2BIG"]);
}

#[test]
fn simulated_grant_table_has_the_limits_of_gntdev_and_the_process() {
    let hypervisor = Hypervisor::default();
    let mut guest = hypervisor.guest(1, 4);
    let pages = [(); 4].map(|()| guest.allocate());
    let first = guest.grant(&pages, Access::ReadWrite);
    let references: Vec<_> = (0..4).filter_map(|page| first.checked_add(page)).collect();
    let grants = hypervisor.grants(DomId(1)).unwrap();
    hypervisor.limit(|limits| (limits.pages_a_map, limits.mappings) = (3, 2));
    let refused = |count| match grants.map(&references[..count], Access::ReadOnly) {
        Err(MapError::NoRoom { .. }) => true,
        Err(other) => panic!("{other}"),
        Ok(_) => false,
    };
    assert!(refused(4) && !refused(3) && refused(0));
    let kept = [(); 2].map(|()| grants.map(&references[..1], Access::ReadOnly).unwrap());
    assert!(refused(1), "the limit is two mappings");
    drop(kept);
    assert!(!refused(1));
    // An ended grant stays mapped, and cannot be mapped again.
    let mapped = grants.map(&references[..2], Access::ReadWrite).unwrap();
    guest.end_grants(first, 4);
    assert_eq!(hypervisor.mapped_pages(DomId(1)), 2);
    assert!(matches!(
        grants.map(&references[..1], Access::ReadOnly),
        Err(MapError::Refused { .. })
    ));
    drop(mapped);
    hypervisor.assert_clean();
}

#[test]
fn connection_without_a_free_event_channel_fails_with_a_reason() {
    let (host, disk) = (Host::start(), numbered_disk(8));
    host.hypervisor.limit(|limits| limits.ports = 0);
    let ends = host.add_disk(1, XVDA, disk.path(), "r");
    host.wait_state(&ends, "2");
    let mut guest = host.hypervisor.guest(1, 64);
    let page = guest.allocate();
    let (reference, port) = (guest.grant(&[page], Access::ReadWrite), guest.port().port.0);
    for (key, value) in [("message-page-ref", reference.0), ("event-channel", port), ("state", 3)] {
        host.hypervisor.store_write(&format!("{}/{key}", ends.frontend), &value.to_string());
    }
    host.wait_state(&ends, "6");
    let error = host.error(&ends).unwrap();
    assert!(error.contains("cannot bind event channel"), "{error}");
    guest.revoke(reference, 1);

    host.hypervisor.limit(|limits| limits.ports = 2);
    host.hypervisor.store_write(&format!("{}/state", ends.frontend), "1");
    let mut driver = host.connect(&ends);
    driver.start();
    assert_eq!(request(&mut driver, VIRTIO_BLK_T_IN, 5, &[], 512), (OK, vec![5; 512]));
    driver.close();
    host.remove(&ends);
    host.finish();
}
