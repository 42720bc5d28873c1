//! A guest and a toolstack that wait briefly for each event, and continue without it.

use std::path::Path;
use std::time::{Duration, Instant};

use guest_shim::transport::{Received, Transport};
use protocol::binding::negotiate;
use protocol::message::{FeatureBlocks, Request, VqueueFlags, VqueueUpdate};
use protocol::status::{ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK};
use virtio_bindings::virtio_blk::{VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT};

use crate::tests::block::header;
use crate::tests::host::XVDA;
use crate::tests::ring::{Descriptor, Ring};
use xen::Access;
use xen_sim::{Guest, GuestPort, Hypervisor};

/// The time to wait for an event: much longer than an event takes that does arrive. If a machine is
/// too busy for that, a run takes another course, for which all checks hold too.
const MOMENT: Duration = Duration::from_millis(60);
/// Number of pages of the guest.
const PAGES: usize = 128;

pub(super) struct ImpatientGuest {
    hypervisor: Hypervisor,
    guest: Guest,
    backend: String,
    frontend: String,
    connected: Option<Connected>,
}

/// One connection of the frontend.
struct Connected {
    words: xen_sim::GuestPage,
    port: GuestPort,
    transport: Transport,
    ring: Option<Ring>,
}

impl ImpatientGuest {
    /// A disk that the toolstack has just added.
    pub(super) fn add(hypervisor: &Hypervisor, id: u16, disk: &Path) -> Self {
        let guest = Self {
            hypervisor: hypervisor.clone(),
            guest: hypervisor.guest(id, PAGES),
            backend: format!("/local/domain/0/backend/virtio_disk/{id}/{XVDA}"),
            frontend: format!("/local/domain/{id}/device/virtio_disk/{XVDA}"),
            connected: None,
        };
        guest.write_frontend("state", "1");
        let params = disk.to_str().unwrap();
        let keys = [("frontend", guest.frontend.as_str()), ("online", "1"), ("params", params)];
        for (key, value) in keys.into_iter().chain([("mode", "w"), ("device-type", "disk")]) {
            guest.write_backend(key, value);
        }
        guest.write_backend("state", "1");
        guest
    }

    fn write_frontend(&self, key: &str, value: &str) {
        self.hypervisor.store_write(&format!("{}/{key}", self.frontend), value);
    }

    fn write_backend(&self, key: &str, value: &str) {
        self.hypervisor.store_write(&format!("{}/{key}", self.backend), value);
    }

    /// Waits briefly for one of the backend's states; returns whether it was reached.
    fn wait_state(&self, states: &[Option<&str>]) -> bool {
        let watch = self.hypervisor.store_watch(&format!("{}/state", self.backend));
        watch.wait_for(MOMENT, |state| states.contains(&state))
    }

    fn connect(&mut self) -> bool {
        if !self.wait_state(&[Some("2")]) {
            return false;
        }
        let words = self.guest.allocate();
        let reference = self.guest.grant(&[words], Access::ReadWrite);
        let port = self.guest.port();
        self.write_frontend("message-page-ref", &reference.0.to_string());
        self.write_frontend("event-channel", &port.port.0.to_string());
        self.write_frontend("state", "3");
        let connected = self.wait_state(&[Some("4")]);
        let transport = Transport::new(negotiate(1, 264, 1).unwrap());
        self.connected = Some(Connected { words, port, transport, ring: None });
        connected
    }

    /// Sends a request; returns whether a response arrived.
    fn ask(&mut self, request: Request<'_>) -> bool {
        let Some(connected) = &mut self.connected else { return false };
        let words = self.guest.words(connected.words);
        if connected.transport.send(words, request).is_err() {
            return false;
        }
        connected.port.notify();
        let end = Instant::now() + MOMENT;
        loop {
            match connected.transport.receive(words) {
                Received::Answer => break,
                Received::Drained { .. } => {
                    let left = end.saturating_duration_since(Instant::now());
                    if left.is_zero() || !connected.port.wait_for(left) {
                        return false;
                    }
                }
                Received::Broken => return false,
                _ => {}
            }
        }
        matches!(connected.transport.take_answer(), Some(Ok(_)))
    }

    /// Connects, reads and writes.
    pub(super) fn use_disk(&mut self) {
        if !self.connect() || !self.start() {
            return;
        }
        for (kind, sector) in [(VIRTIO_BLK_T_IN, 1), (VIRTIO_BLK_T_OUT, 2), (VIRTIO_BLK_T_IN, 2)] {
            let before = self.used();
            self.offer(kind, sector, 512);
            let end = Instant::now() + MOMENT;
            while self.used() == before {
                let left = end.saturating_duration_since(Instant::now());
                let ring = self.connected.as_ref().and_then(|of| of.ring.as_ref());
                if left.is_zero() || !ring.is_some_and(|ring| ring.doorbell.wait_for(left)) {
                    return;
                }
            }
        }
    }

    fn start(&mut self) -> bool {
        let features = (1u64 << 33 | 1 << 32).to_le_bytes();
        let ready = ACKNOWLEDGE | DRIVER | FEATURES_OK;
        let began = self.ask(Request::SetDeviceStatus(ACKNOWLEDGE | DRIVER))
            && self.ask(Request::SetDriverFeatures(FeatureBlocks::new(0, &features)))
            && self.ask(Request::SetDeviceStatus(ready));
        began && self.add_ring() && self.ask(Request::SetDeviceStatus(ready | DRIVER_OK))
    }

    fn add_ring(&mut self) -> bool {
        let ring = Ring::new(&mut self.guest, Ring::SIZE);
        let update = VqueueUpdate {
            index: 0,
            flags: VqueueFlags(VqueueFlags::ENABLE),
            size: Ring::SIZE.into(),
            reserved: 0,
            descriptor: ring.descriptors.address(),
            driver: ring.available.address(),
            device: ring.used.address(),
        };
        let port = ring.doorbell.port.0;
        let Some(connected) = &mut self.connected else { return false };
        connected.ring = Some(ring);
        self.ask(Request::SetVqueue(update)) && self.ask(Request::BindQueue { index: 0, port })
    }

    fn used(&self) -> u16 {
        let ring = self.connected.as_ref().and_then(|connected| connected.ring.as_ref());
        ring.map_or(0, |ring| ring.used_index(&self.guest))
    }

    /// Makes a request of `length` bytes available.
    fn offer(&mut self, kind: u32, sector: u64, length: usize) {
        let mut share = |bytes: &[u8]| {
            let pages: Vec<_> = bytes.chunks(4096).map(|_| self.guest.allocate()).collect();
            for (page, chunk) in pages.iter().zip(bytes.chunks(4096)) {
                self.guest.slice(*page, 0, chunk.len()).copy_from(chunk);
            }
            let first = self.guest.grant(&pages, Access::ReadWrite);
            let address = self.guest.address(pages[0], first);
            Descriptor { address, length: bytes.len() as u32, writable: true }
        };
        let head = Descriptor { writable: false, ..share(&header(kind, sector)) };
        let data = Descriptor { writable: kind == VIRTIO_BLK_T_IN, ..share(&vec![7; length]) };
        let status = share(&[0xff]);
        let Some(ring) = self.connected.as_mut().and_then(|of| of.ring.as_mut()) else { return };
        ring.add(&self.guest, &[head, data, status]);
        ring.doorbell.notify();
    }

    /// Makes requests available without waiting for them.
    pub(super) fn ask_without_waiting(&mut self) {
        (0..3).for_each(|sector| self.offer(VIRTIO_BLK_T_IN, sector, 2 * 4096));
    }

    /// The driver leaves.
    pub(super) fn leave(&mut self) {
        self.ask(Request::SetDeviceStatus(0));
        self.write_frontend("state", "5");
        self.wait_state(&[Some("6"), None]);
        self.write_frontend("state", "6");
        self.connected = None;
    }

    /// The driver connects again.
    pub(super) fn come_again(&mut self) {
        self.write_frontend("state", "1");
    }

    /// Removes the device as `xl destroy` does, which continues after a while in any case.
    pub(super) fn destroy(&mut self) {
        self.write_backend("online", "0");
        self.write_backend("state", "5");
        self.wait_state(&[Some("6"), None]);
        self.hypervisor.store_remove(&self.frontend);
        self.hypervisor.store_remove(&self.backend);
    }
}
