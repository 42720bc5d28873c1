//! Tests of the same device over other platforms than grants: a window at an offset, or the
//! identity mapping.

use std::io;

use protocol::status::{
    DEVICE_NEEDS_RESET, F_ACCESS_PLATFORM, F_VERSION_1, FEATURES_OK, REQUIRED_FEATURES,
};
use virtio_bindings::virtio_blk::{VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT};

use super::block::{OK, header, request};
use super::driver::Driver;
use super::host::{Ends, Host, XVDA, numbered_disk};
use crate::dma::window::Window;
use crate::domain::Domain;
use xen::{Access, DomId, StoreError, Xen};
use xen_sim::{Addresses, Hypervisor, SimEvents, SimGrants, SimStore};

/// The simulated hypervisor's handles for devices behind a window.
#[derive(Clone)]
struct Windowed {
    hypervisor: Hypervisor,
    offset: u64,
}

impl Xen for Windowed {
    type Grants = SimGrants;
    type Events = SimEvents;
    type Store = SimStore;

    fn grants(&self, guest: DomId) -> io::Result<SimGrants> {
        self.hypervisor.grants(guest)
    }

    fn events(&self, guest: DomId) -> io::Result<SimEvents> {
        self.hypervisor.events(guest)
    }

    fn store(&self) -> Result<SimStore, StoreError> {
        self.hypervisor.store()
    }
}

impl Domain for Windowed {
    type Platform = Window;

    fn platform(&self, guest: DomId) -> io::Result<Window> {
        Ok(Window::new(self.hypervisor.frames(guest), self.offset))
    }
}

/// An offset above all possible memory, as on PPC's and SPARC's buses.
const OFFSET: u64 = 1 << 59;

/// Connects a guest to a disk behind a window at `offset`; the guest uses the addresses `believed`.
fn connect(offset: u64, believed: Addresses) -> (Host, tempfile::NamedTempFile, Ends, Driver) {
    let hypervisor = Hypervisor::default();
    let handles = Windowed { hypervisor: hypervisor.clone(), offset };
    let (host, disk) = (Host::start_with(hypervisor, handles), numbered_disk(8));
    let ends = host.add_disk(1, XVDA, disk.path(), "w");
    let mut driver = host.connect(&ends);
    driver.guest.addresses = believed;
    (host, disk, ends, driver)
}

/// Checks that a disk behind a window works as it does over grants.
fn works(offset: u64) {
    let (host, disk, ends, mut driver) = connect(offset, Addresses::Window(offset));
    driver.start();
    let written = [0xa5; 3 * 512];
    assert_eq!(request(&mut driver, VIRTIO_BLK_T_OUT, 2, &written, 0).0, OK);
    assert_eq!(request(&mut driver, VIRTIO_BLK_T_IN, 1, &[], 512), (OK, vec![1; 512]));
    let (status, read) = request(&mut driver, VIRTIO_BLK_T_IN, 2, &[], 3 * 512);
    assert_eq!((status, read.as_slice()), (OK, written.as_slice()));
    assert_eq!(host.hypervisor.map_calls(), 1, "only the message page is mapped by grant");
    driver.close();
    host.remove(&ends);
    host.finish();
    drop(disk);
}

#[test]
fn disk_works_with_an_identity_mapping() {
    works(0);
}

#[test]
fn disk_works_behind_a_window() {
    works(OFFSET);
}

#[test]
fn addresses_outside_the_window_are_refused() {
    // The guest's own addresses, and grants, which are both invalid here.
    for believed in [Addresses::Window(0), Addresses::Grants] {
        let (host, disk, ends, mut driver) = connect(OFFSET, Addresses::Window(OFFSET));
        driver.start();
        driver.guest.addresses = believed;
        let header = driver.share(&header(VIRTIO_BLK_T_IN, 1), Access::ReadOnly);
        let status = driver.share(&[0xff], Access::ReadWrite);
        driver.submit(&[header.readable(), status.writable()]);
        let status_now = driver.wait_config_event();
        assert_ne!(status_now & DEVICE_NEEDS_RESET, 0, "{believed:?}");
        assert_eq!(driver.unshare(&status), [0xff], "nothing was written");
        driver.unshare(&header);
        driver.close();
        host.remove(&ends);
        host.finish();
        drop(disk);
    }
}

#[test]
fn driver_without_access_platform_needs_an_identity_mapping() {
    for (offset, works) in [(0, true), (OFFSET, false)] {
        let (host, disk, ends, mut driver) = connect(offset, Addresses::Window(0));
        assert_ne!(driver.offered() & 1 << F_ACCESS_PLATFORM, 0);
        let status = driver.negotiate(1 << F_VERSION_1);
        assert_eq!(status & FEATURES_OK != 0, works, "offset {offset:#x}");
        assert_ne!(driver.negotiate(REQUIRED_FEATURES) & FEATURES_OK, 0);
        driver.close();
        host.remove(&ends);
        host.finish();
        drop(disk);
    }
}
