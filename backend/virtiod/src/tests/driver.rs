//! The guest's side of one device, on the module's own core.

mod pool;

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use guest_shim::transport::{Received, Transport};
use protocol::binding::{backend_key, frontend_key, negotiate};
use protocol::grant::GrantRef;
use protocol::message::{
    BindOutcome, FeatureBlocks, Request, Response, VqueueFlags, VqueueState, VqueueUpdate,
};
use protocol::status::{ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK};

pub(super) use self::pool::Pooled;
use super::host::Ends;
use super::ring::{Descriptor, Ring};
use xen::Access;
use xen_sim::{Guest, GuestPage, GuestPort, Hypervisor};

/// Memory granted for a request.
pub(super) struct Shared {
    pub(super) pages: Vec<GuestPage>,
    pub(super) first: GrantRef,
    pub(super) length: usize,
    address: u64,
}

impl Shared {
    pub(super) fn address(&self) -> u64 {
        self.address
    }

    pub(super) fn readable(&self) -> Descriptor {
        Descriptor { address: self.address(), length: self.length as u32, writable: false }
    }

    pub(super) fn writable(&self) -> Descriptor {
        Descriptor { writable: true, ..self.readable() }
    }
}

pub(super) struct Driver {
    pub(super) hypervisor: Hypervisor,
    pub(super) ends: Ends,
    pub(super) guest: Guest,
    pub(super) page: GuestPage,
    page_grant: GrantRef,
    pub(super) port: GuestPort,
    transport: Transport,
    rings: Vec<Ring>,
    /// Number of entries of rings set up from now on.
    pub(super) ring_size: u16,
    kept: Vec<Shared>,
    pool: Vec<Pooled>,
    current: usize,
    /// Queues whose EVENT_USED arrived while the driver waited for a response.
    used: Vec<u32>,
}

impl Driver {
    /// Follows SPEC section 2 until both sides are connected.
    pub(super) fn connect(hypervisor: Hypervisor, ends: Ends, mut guest: Guest) -> Self {
        let key = |key: &str| format!("{}/{key}", ends.backend);
        hypervisor.store_wait(&key("state"), Some("2"));
        let number = |name| hypervisor.store_read(&key(name)).unwrap().parse().unwrap();
        let negotiated = negotiate(
            number(backend_key::REVISION),
            number(backend_key::MAX_MESSAGE_SIZE),
            number(backend_key::BUS_FEATURES),
        );
        let page = guest.allocate();
        let page_grant = guest.grant(&[page], Access::ReadWrite);
        let port = guest.port();
        let write = |key: &str, value: String| {
            hypervisor.store_write(&format!("{}/{key}", ends.frontend), &value);
        };
        write(frontend_key::MESSAGE_PAGE, page_grant.0.to_string());
        write(frontend_key::EVENT_CHANNEL, port.port.0.to_string());
        write("state", "3".to_owned());
        hypervisor.store_wait(&key("state"), Some("4"));
        write("state", "4".to_owned());
        let transport = Transport::new(negotiated.unwrap());
        Self {
            hypervisor,
            ends,
            guest,
            page,
            page_grant,
            port,
            transport,
            rings: Vec::new(),
            ring_size: Ring::SIZE,
            kept: Vec::new(),
            pool: Vec::new(),
            current: 0,
            used: Vec::new(),
        }
    }

    /// Sends a request, waits for the response and returns `take` of it.
    pub(super) fn ask<R>(
        &mut self,
        request: Request<'_>,
        take: impl FnOnce(Response<'_>) -> R,
    ) -> R {
        self.send_silently(request);
        self.port.notify();
        self.wait_answer(&format!("the answer to {request:?}"), take)
    }

    /// Writes a request to the page without a notification.
    pub(super) fn send_silently(&mut self, request: Request<'_>) {
        self.transport.send(self.guest.words(self.page), request).unwrap();
    }

    /// Waits for the response, `what` in a failure's message, and returns `take` of it.
    pub(super) fn wait_answer<R>(&mut self, what: &str, take: impl FnOnce(Response<'_>) -> R) -> R {
        let words = self.guest.words(self.page);
        loop {
            match self.transport.receive(words) {
                Received::Answer => break,
                Received::Drained { signal } => {
                    if signal {
                        self.port.notify();
                    }
                    self.port.wait(what);
                }
                Received::Broken => panic!("the message page is corrupt"),
                Received::Used { index } => self.used.push(index),
                Received::Dropped | Received::ConfigChanged { .. } | Received::Pinged => {}
            }
        }
        take(self.transport.take_answer().unwrap().unwrap())
    }

    /// Sends EVENT_AVAIL for a queue.
    pub(super) fn send_avail(&mut self, index: u32) {
        self.transport.event_avail(self.guest.words(self.page), index).unwrap();
        self.port.notify();
    }

    /// Takes the queues whose EVENT_USED arrived while the driver waited for responses.
    pub(super) fn used_events(&mut self) -> Vec<u32> {
        std::mem::take(&mut self.used)
    }

    /// Waits for EVENT_USED; returns its queue.
    pub(super) fn wait_used_event(&mut self) -> u32 {
        loop {
            match self.transport.receive(self.guest.words(self.page)) {
                Received::Used { index } => return index,
                Received::Drained { .. } => self.port.wait("EVENT_USED"),
                _ => {}
            }
        }
    }

    /// Waits for EVENT_CONFIG; returns its status.
    pub(super) fn wait_config_event(&mut self) -> u32 {
        loop {
            match self.transport.receive(self.guest.words(self.page)) {
                Received::ConfigChanged { status } => return status,
                Received::Drained { .. } => self.port.wait("EVENT_CONFIG"),
                _ => {}
            }
        }
    }

    pub(super) fn set_status(&mut self, status: u32) -> u32 {
        self.ask(Request::SetDeviceStatus(status), |answer| match answer {
            Response::SetDeviceStatus(status) => status,
            other => panic!("{other:?}"),
        })
    }

    /// Resets the device, and waits for the end of the reset as the module does: storage may delay
    /// it [6.4].
    pub(super) fn reset_device(&mut self) {
        self.set_status(0);
        self.until("the end of the reset", |driver| driver.status() == 0);
    }

    pub(super) fn status(&mut self) -> u32 {
        self.ask(Request::GetDeviceStatus, |answer| match answer {
            Response::GetDeviceStatus(status) => status,
            other => panic!("{other:?}"),
        })
    }

    /// Makes the device answer messages until `holds` returns `true`; fails the test after ten
    /// seconds with `what` in the message.
    pub(super) fn until(&mut self, what: &str, mut holds: impl FnMut(&mut Self) -> bool) {
        let end = Instant::now() + Duration::from_secs(10);
        while !holds(self) {
            assert!(Instant::now() < end, "waited 10 s for {what}");
            self.status();
        }
    }

    /// Number of messages that the device has written to the page so far [4.2].
    pub(super) fn sent_by_device(&self) -> u32 {
        // Acquire pairs with the device's Release of its producer index.
        u32::from_le(self.guest.words(self.page)[0x80 / 4].load(Ordering::Acquire))
    }

    /// Waits until the device has written `count` messages to the page, and takes none; fails the
    /// test after ten seconds.
    pub(super) fn wait_sent_by_device(&self, count: u32) {
        let end = Instant::now() + Duration::from_secs(10);
        while self.sent_by_device() != count {
            let sent = self.sent_by_device();
            assert!(Instant::now() < end, "waited 10 s for message {count}, {sent} were sent");
            std::thread::yield_now();
        }
    }

    pub(super) fn offered(&mut self) -> u64 {
        self.ask(Request::GetDeviceFeatures { first: 0, count: 2 }, |answer| match answer {
            Response::GetDeviceFeatures(blocks) => blocks.low_bits(),
            other => panic!("{other:?}"),
        })
    }

    /// Reads bytes of the configuration space.
    pub(super) fn config(&mut self, offset: u32, size: u32) -> Vec<u8> {
        self.ask(Request::GetConfig { offset, size }, |answer| match answer {
            Response::GetConfig(config) => config.data.to_vec(),
            other => panic!("{other:?}"),
        })
    }

    /// Initialises the device up to FEATURES_OK with these features; returns the resulting status.
    pub(super) fn negotiate(&mut self, features: u64) -> u32 {
        self.reset_device();
        self.set_status(ACKNOWLEDGE | DRIVER);
        let bytes = features.to_le_bytes();
        self.ask(Request::SetDriverFeatures(FeatureBlocks::new(0, &bytes)), |_| ());
        self.set_status(ACKNOWLEDGE | DRIVER | FEATURES_OK)
    }

    /// Initialises the device up to DRIVER_OK, with all features and one queue.
    pub(super) fn start(&mut self) {
        self.start_with(1);
    }

    /// Initialises the device up to DRIVER_OK, with all features and `queues` queues.
    pub(super) fn start_with(&mut self, queues: u32) {
        let offered = self.offered();
        self.start_accepting(offered, queues);
    }

    /// Initialises the device up to DRIVER_OK, with these features and `queues` queues.
    pub(super) fn start_accepting(&mut self, features: u64, queues: u32) {
        assert_ne!(self.negotiate(features) & FEATURES_OK, 0);
        (0..queues).for_each(|index| self.add_ring(index));
        self.set_status(ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
    }

    /// Sets up a queue with a doorbell.
    pub(super) fn add_ring(&mut self, index: u32) {
        self.add_silent_ring(index);
        let outcome = self.bind_doorbell(index);
        assert_eq!(outcome, BindOutcome::Bound);
    }

    /// Binds the doorbell of a queue that is set up.
    pub(super) fn bind_doorbell(&mut self, index: u32) -> BindOutcome {
        let port = self.rings[index as usize].doorbell.port.0;
        self.ask(Request::BindQueue { index, port }, |answer| match answer {
            Response::BindQueue { outcome, .. } => outcome,
            other => panic!("{other:?}"),
        })
    }

    /// Sets up a queue without a doorbell.
    pub(super) fn add_silent_ring(&mut self, index: u32) {
        assert_eq!(self.rings.len(), index as usize, "rings are added in order");
        self.rings.push(Ring::new(&mut self.guest, self.ring_size));
        self.enable_ring(index);
    }

    fn enable_ring(&mut self, index: u32) {
        let queue = self.set_queue(update_of(index, &self.rings[index as usize]));
        assert!(queue.enabled, "{queue:?}");
    }

    /// Resets a queue and ends the grants of its ring, which must not be mapped any more.
    pub(super) fn reset_queue(&mut self, index: u32) {
        self.ask(Request::ResetVqueue { index }, |_| ());
        let ring = &self.rings[index as usize];
        self.free_ring(ring);
    }

    /// As [`Driver::reset_queue`], and takes no message before the device has taken the request.
    pub(super) fn reset_queue_before_events(&mut self, index: u32) {
        self.send_silently(Request::ResetVqueue { index });
        self.port.notify();
        let end = Instant::now() + Duration::from_secs(10);
        while !self.has_taken_all() {
            assert!(Instant::now() < end, "waited 10 s for the device to take RESET_VQUEUE");
            std::thread::yield_now();
        }
        self.wait_answer("the answer to RESET_VQUEUE", |_| ());
        let ring = &self.rings[index as usize];
        self.free_ring(ring);
    }

    /// Whether the device has taken all messages from the page [4.2].
    fn has_taken_all(&self) -> bool {
        // Acquire pairs with the device's Release of its consumer index.
        let index = |at: usize| self.guest.words(self.page)[at / 4].load(Ordering::Acquire);
        index(0) == index(0x40)
    }

    /// Sets up a reset queue again, with another ring and another doorbell.
    pub(super) fn renew_ring(&mut self, index: u32) {
        self.rings[index as usize] = Ring::new(&mut self.guest, self.ring_size);
        assert_eq!(self.bind_doorbell(index), BindOutcome::Bound);
        self.enable_ring(index);
    }

    /// As [`Driver::renew_ring`], without a doorbell.
    pub(super) fn renew_silent_ring(&mut self, index: u32) {
        self.rings[index as usize] = Ring::new(&mut self.guest, self.ring_size);
        self.enable_ring(index);
    }

    /// Reads pages that the device may still reach.
    pub(super) fn peek(&self, shared: &Shared) -> Vec<u8> {
        let mut bytes = vec![0; shared.length];
        for (page, chunk) in shared.pages.iter().zip(bytes.chunks_mut(4096)) {
            self.guest.slice(*page, 0, chunk.len()).copy_to(chunk);
        }
        bytes
    }

    /// Sends SET_VQUEUE; returns the queue's state afterwards.
    pub(super) fn set_queue(&mut self, update: VqueueUpdate) -> VqueueState {
        let index = update.index;
        self.ask(Request::SetVqueue(update), |_| ());
        self.ask(Request::GetVqueue { index }, |answer| match answer {
            Response::GetVqueue(queue) => queue,
            other => panic!("{other:?}"),
        })
    }

    /// Grants pages that contain `bytes`.
    pub(super) fn share(&mut self, bytes: &[u8], access: Access) -> Shared {
        let pages: Vec<_> = bytes.chunks(4096).map(|_| self.guest.allocate()).collect();
        for (page, chunk) in pages.iter().zip(bytes.chunks(4096)) {
            self.guest.slice(*page, 0, chunk.len()).copy_from(chunk);
        }
        let first = self.guest.grant(&pages, access);
        let address = self.guest.address(pages[0], first);
        Shared { pages, first, length: bytes.len(), address }
    }

    /// Ends the grants and returns the pages' content. Fails the test if one is still mapped.
    pub(super) fn unshare(&mut self, shared: &Shared) -> Vec<u8> {
        self.guest.revoke(shared.first, shared.pages.len());
        self.peek(shared)
    }

    /// Keeps these grants until the driver ends.
    pub(super) fn keep(&mut self, shared: Shared) {
        self.kept.push(shared);
    }

    /// Selects the queue for [`Driver::submit`] and the methods after it.
    pub(super) fn use_queue(&mut self, position: usize) {
        self.current = position;
    }

    /// Adds a chain to the queue and notifies the device; returns the chain's head.
    pub(super) fn submit(&mut self, chain: &[Descriptor]) -> u16 {
        let head = self.rings[self.current].add(&self.guest, chain);
        self.rings[self.current].doorbell.notify();
        head
    }

    /// Waits for the queue's next used element; returns head and bytes written.
    pub(super) fn wait_used(&mut self) -> (u16, u32) {
        self.rings[self.current].wait_used(&self.guest)
    }

    pub(super) fn ring(&mut self) -> (&mut Ring, &Guest) {
        (&mut self.rings[self.current], &self.guest)
    }

    /// Leaves as the module does: resets the device, ends the grants, closes.
    pub(super) fn close(mut self) -> Guest {
        self.disconnect();
        self.guest
    }

    /// As [`Driver::close`]; the guest ends with the driver.
    pub(super) fn disconnect(&mut self) {
        if self.transport.is_broken() {
            return self.release();
        }
        self.reset_device();
        self.free_rings();
        self.write_state("5");
        self.hypervisor.store_wait(&format!("{}/state", self.ends.backend), Some("6"));
        self.release();
    }

    pub(super) fn write_state(&self, state: &str) {
        self.hypervisor.store_write(&format!("{}/state", self.ends.frontend), state);
    }

    /// Ends the grants of the connection, which the device must not use any more.
    pub(super) fn release(&mut self) {
        for shared in std::mem::take(&mut self.kept) {
            self.unshare(&shared);
        }
        self.free_rings();
        self.free_pool();
        self.guest.revoke(self.page_grant, 1);
        self.write_state("6");
    }

    pub(super) fn free_rings(&mut self) {
        self.current = 0;
        for ring in std::mem::take(&mut self.rings) {
            self.free_ring(&ring);
        }
    }

    fn free_ring(&self, ring: &Ring) {
        for area in [&ring.descriptors, &ring.available, &ring.used] {
            self.guest.revoke(area.first, 1);
        }
    }
}

/// The SET_VQUEUE that enables queue `index` with this ring.
fn update_of(index: u32, ring: &Ring) -> VqueueUpdate {
    VqueueUpdate {
        index,
        flags: VqueueFlags(VqueueFlags::ENABLE),
        size: ring.size.into(),
        reserved: 0,
        descriptor: ring.descriptors.address(),
        driver: ring.available.address(),
        device: ring.used.address(),
    }
}
