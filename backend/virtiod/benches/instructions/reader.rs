//! A guest that reads pages from a disk.

use std::io::Write;

use protocol::grant::PAGE_SIZE;
use virtio_bindings::virtio_blk::VIRTIO_BLK_T_IN;
use vm_memory::Bytes;
use xen::{LocalPort, RemotePort};
use xen_sim::Hypervisor;
use xen_virtiod::bus::scheduler::Woken;
use xen_virtiod::device::blk::Caching;

use crate::events::Events;
use crate::simulated::device::{Device, IN_MEMORY};
use crate::simulated::guest::{Driver, SLOTS};

/// Requests in a batch.
pub(super) const BATCH: u16 = SLOTS;

const BY_EVENTS: Woken = Woken { events: true, sources: false, deadline: false };

/// What the disk is on.
#[derive(Clone, Copy)]
pub(super) enum Store {
    /// A file in memory: no request waits for it.
    Memory,
    /// A file that is read by direct I/O.
    Slow,
}

/// The guest, with its disk.
pub(super) struct Reader {
    driver: Driver,
    disk: Device<Events>,
    doorbell: RemotePort,
    notified: usize,
    _file: tempfile::NamedTempFile,
}

impl Reader {
    /// Starts the device, and writes [`BATCH`] requests.
    pub(super) fn start(store: Store) -> Self {
        let (folder, caching) = match store {
            Store::Memory => (IN_MEMORY, Caching::PageCache),
            Store::Slow => (env!("CARGO_TARGET_TMPDIR"), Caching::Direct),
        };
        let mut file = tempfile::NamedTempFile::new_in(folder).unwrap();
        (0..BATCH).for_each(|number| file.write_all(&[number as u8; 4096]).unwrap());
        let hypervisor = Hypervisor::default();
        let driver = Driver::new(&hypervisor);
        let mut disk = Device::disk(file.path(), caching, &hypervisor, Events::new());
        let doorbell = driver.port().port;
        disk.negotiate(&driver, doorbell, 0);
        for slot in 0..BATCH {
            let sector = u64::from(slot) * (PAGE_SIZE / 512);
            driver.write_request(slot, VIRTIO_BLK_T_IN, sector, PAGE_SIZE as u32);
        }
        Self { driver, disk, doorbell, notified: 0, _file: file }
    }

    /// Makes the first `count` requests available, and requests a notification of the last.
    pub(super) fn submit(&mut self, count: u16) {
        for slot in 0..count {
            self.driver.status(slot).write_obj(0xffu8, 0).unwrap();
            self.driver.data(slot).write_obj(0xffu8, 4095).unwrap();
        }
        self.driver.make_available(0..count);
    }

    /// Does what a device's thread does after a doorbell until it sleeps.
    pub(super) fn serve(&mut self) {
        let Device { transport, clock, .. } = &mut self.disk;
        let doorbell = LocalPort(self.doorbell.0);
        transport.scheduler().begin_iteration(BY_EVENTS, clock);
        transport.first_group().handle_doorbell(doorbell);
        transport.scheduler().woken_by_events(true, clock);
        self.disk.iterate();
    }

    /// Waits until the requests are answered.
    pub(super) fn wait(&mut self) {
        self.disk.wait(&self.driver);
    }

    /// As [`Device::wait_for_sources`].
    pub(super) fn wait_for_sources(&mut self) -> bool {
        self.disk.wait_for_sources(&self.driver)
    }

    /// As [`Device::serve_sources`].
    pub(super) fn serve_sources(&mut self) {
        self.disk.serve_sources();
    }

    /// Checks that the requests were answered, with one notification.
    pub(super) fn check(&mut self) {
        assert_eq!(self.driver.used(), self.driver.available);
        let status = self.driver.status(0).read_obj::<u8>(0).unwrap();
        let data = self.driver.data(0).read_obj::<u8>(4095).unwrap();
        assert_eq!((status, data), (0, 0));
        let notified = self.disk.events.notified;
        assert_eq!(notified, self.notified + 1);
        self.notified = notified;
    }
}
