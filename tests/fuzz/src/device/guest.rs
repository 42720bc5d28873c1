//! The guest: it starts the device as a correct driver does, and then performs the input's steps.

use std::time::{Duration, Instant};

use guest_shim::transport::{Received, Transport};
use protocol::binding::negotiate;
use protocol::grant::GrantRef;
use protocol::message::{ConfigData, FeatureBlocks, Request, Response, VqueueFlags, VqueueUpdate};
use protocol::page::{SLOT_SIZE, SLOTS};
use protocol::pool::PoolPage;
use protocol::status::{ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK};
use vm_memory::Bytes;
use xen::Access;
use xen_sim::{Guest, GuestPage, GuestPort};

use super::Kind;
use super::scribbler::Scribbler;
use super::setting::{GUEST, Setting};
use super::steps::{BufferPosition, Granted, Length, Step, templates};

/// Number of the guest's pages: buffers, the pool, the message page and the rings.
const PAGES: usize = 64;
const BUFFERS: u32 = 16;
const POOL: u32 = 8;
/// Number of entries in a ring.
const ENTRIES: u16 = 16;
/// How long the guest waits for the device before it continues without the answer.
const PATIENCE: Duration = Duration::from_millis(50);

/// A queue and its doorbell.
struct Ring {
    /// Pages and grants of the descriptor, driver and device area.
    areas: [(GuestPage, GrantRef); 3],
    doorbell: GuestPort,
    available: u16,
    descriptor: u16,
}

/// A guest with one device.
pub(super) struct HostileGuest<'s> {
    setting: &'s mut Setting,
    guest: Guest,
    buffers: Vec<GuestPage>,
    granted: Granted,
    pool: GrantRef,
    page: GuestPage,
    port: GuestPort,
    transport: Transport,
    sent: u32,
    /// The device did not answer a message, so that the guest does not wait for other answers.
    is_unheard: bool,
    rings: Vec<Ring>,
    scribbler: Option<Scribbler>,
}

impl<'s> HostileGuest<'s> {
    /// Follows the states up to the connection, as far as the backend does.
    pub(super) fn connect(setting: &'s mut Setting) -> Self {
        let mut guest = setting.hypervisor.guest(GUEST, PAGES);
        let mut pages = |count: u32| (0..count).map(|_| guest.allocate()).collect::<Vec<_>>();
        let (buffers, pool, page) = (pages(BUFFERS), pages(POOL), pages(1));
        let granted = Granted {
            writable: guest.grant(&buffers, Access::ReadWrite),
            read_only: guest.grant(&buffers, Access::ReadOnly),
            pages: BUFFERS,
        };
        let pool = guest.grant(&pool, Access::ReadWrite);
        let port = guest.port();
        let transport = Transport::new(negotiate(1, 264, 1).expect("valid by SPEC 2.3"));
        let mut guest = Self {
            setting,
            guest,
            buffers,
            granted,
            pool,
            page: page[0],
            port,
            transport,
            sent: 0,
            is_unheard: false,
            rings: Vec::new(),
            scribbler: None,
        };
        guest.show_page();
        guest
    }

    fn write_key(&self, key: &str, value: &str) {
        let path = format!("{}/{key}", self.setting.frontend);
        self.setting.hypervisor.store_write(&path, value);
    }

    /// Grants the message page, and waits until the backend has mapped it.
    fn show_page(&mut self) {
        // The backend may refuse the device; it has no state then.
        self.setting.wait_state(PATIENCE, &[Some("2"), None]);
        self.is_unheard = !self.setting.wait_state(Duration::ZERO, &[Some("2")]);
        let reference = self.guest.grant(&[self.page], Access::ReadWrite);
        self.port = self.guest.port();
        self.write_key("message-page-ref", &reference.0.to_string());
        self.write_key("event-channel", &self.port.port.0.to_string());
        self.write_key("state", "3");
        self.is_unheard = self.is_unheard || !self.setting.wait_state(PATIENCE, &[Some("4")]);
        self.write_key("state", "4");
    }

    /// Starts the device up to DRIVER_OK, with all features, all queues, and a pool.
    pub(super) fn start(&mut self) {
        let queues = match self.setting.kind {
            Kind::Entropy => 1,
            Kind::Network => 2,
            Kind::Socket => 3,
            Kind::Block | Kind::Image => 4,
            Kind::Console => 8,
        };
        self.ask(Request::SetDeviceStatus(ACKNOWLEDGE | DRIVER));
        let mut offered = [0; 8];
        self.ask_and(Request::GetDeviceFeatures { first: 0, count: 2 }, |answer| {
            if let Response::GetDeviceFeatures(blocks) = answer {
                offered = blocks.low_bits().to_le_bytes();
            }
        });
        self.ask(Request::SetDriverFeatures(FeatureBlocks::new(0, &offered)));
        self.ask(Request::SetDeviceStatus(ACKNOWLEDGE | DRIVER | FEATURES_OK));
        let share = Request::SharePages { first: PoolPage(0), count: POOL, reference: self.pool };
        self.ask(share);
        (0..queues).for_each(|index| self.add_ring(index));
        self.ask(Request::SetDeviceStatus(ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK));
    }

    fn add_ring(&mut self, index: u32) {
        let area = |guest: &mut Guest, access| {
            let page = guest.allocate();
            (page, guest.grant(&[page], access))
        };
        let ring = Ring {
            areas: [Access::ReadOnly, Access::ReadOnly, Access::ReadWrite]
                .map(|access| area(&mut self.guest, access)),
            doorbell: self.guest.port(),
            available: 0,
            descriptor: 0,
        };
        let address = |area: usize| self.guest.address(ring.areas[area].0, ring.areas[area].1);
        let update = VqueueUpdate {
            index,
            flags: VqueueFlags(VqueueFlags::ENABLE),
            size: ENTRIES.into(),
            reserved: 0,
            descriptor: address(0),
            driver: address(1),
            device: address(2),
        };
        let port = ring.doorbell.port.0;
        self.ask(Request::SetVqueue(update));
        // The events of every second queue go in band.
        if index.is_multiple_of(2) {
            self.ask(Request::BindQueue { index, port });
        }
        self.rings.push(ring);
    }

    fn ask(&mut self, request: Request<'_>) {
        self.ask_and(request, |_| ());
    }

    /// Sends a request as drivers do, and calls `take` if the device answers.
    fn ask_and(&mut self, request: Request<'_>, take: impl FnOnce(Response<'_>)) {
        let words = self.guest.words(self.page);
        if self.transport.send(words, request).is_err() {
            return;
        }
        self.sent = self.sent.wrapping_add(1);
        self.port.notify();
        let end = Instant::now() + if self.is_unheard { Duration::ZERO } else { PATIENCE };
        loop {
            match self.transport.receive(words) {
                Received::Answer => break,
                Received::Drained { .. } => {
                    let left = end.saturating_duration_since(Instant::now());
                    if left.is_zero() || !self.port.wait_for(left) {
                        self.is_unheard = true;
                        return;
                    }
                }
                Received::Broken => return,
                Received::Dropped
                | Received::ConfigChanged { .. }
                | Received::Pinged
                | Received::Used { .. } => {}
            }
        }
        if let Some(Ok(answer)) = self.transport.take_answer() {
            take(answer);
        }
    }

    /// Performs one step.
    pub(super) fn take(&mut self, step: Step<'_>) {
        match step {
            Step::Message(bytes) => self.send_bytes(bytes),
            Step::Ask { kind, first, second, place, bytes } => {
                self.ask_anything(kind, first, second, place, bytes);
            }
            Step::Word { word, value } => {
                let words = self.guest.words(self.page);
                let word = usize::from(word) % words.len();
                words[word].store(value, std::sync::atomic::Ordering::Release);
            }
            Step::Scribble { page, offset, bytes } => self.scribble(page, offset, bytes),
            Step::Descriptor { ring, index, place, length, flags, next } => {
                let address = self.address(place);
                let entry = (address, length.bytes(), u16::from(flags), u16::from(next));
                self.with_ring(ring, |guest, ring| {
                    write_descriptor(guest, ring, index.into(), entry)
                });
            }
            Step::Offer { ring, head, by } => {
                self.with_ring(ring, |guest, ring| offer(guest, ring, head, by.into()));
            }
            Step::Request { ring, template, spoil, place, length, parts } => {
                self.request(ring, template, spoil, place, length, parts);
            }
            Step::Doorbell { ring, times } => self.with_ring(ring, |_, ring| {
                (0..times % 8).for_each(|_| ring.doorbell.notify());
            }),
            Step::Available { index } => {
                let _ = self.transport.event_avail(self.guest.words(self.page), index);
                self.port.notify();
            }
            Step::Signal => self.port.notify(),
            Step::EndGrants { which, count } => {
                let first = GrantRef(self.granted.writable.0 + u32::from(which));
                self.guest.end_grants(first, count.into());
            }
            Step::Key { key, value } => self.write_key(key.name(), &value.text()),
            Step::Restart => self.restart(),
            Step::Settle => self.ask(Request::Ping(7)),
            Step::TakeAnswers => self.take_answers(),
            Step::Come => self.setting.come(),
            Step::Say { which, bytes } => self.setting.say(which, bytes),
            Step::Go { which } => self.setting.go(which),
            Step::Scribbler { seed } => self.start_scribbler(seed),
            Step::Toolstack { online, state } => self.toolstack(online, state),
        }
    }

    fn toolstack(&self, online: bool, state: u8) {
        let backend = &self.setting.backend;
        let write = |key: &str, value: &str| {
            self.setting.hypervisor.store_write(&format!("{backend}/{key}"), value);
        };
        write("online", if online { "1" } else { "0" });
        write("state", &(state % 8).to_string());
    }

    /// The frontend closes, and connects again with the same page.
    fn restart(&mut self) {
        self.write_key("state", "6");
        self.setting.wait_state(PATIENCE, &[Some("6")]);
        let words = self.guest.words(self.page);
        words.iter().for_each(|word| word.store(0, std::sync::atomic::Ordering::Release));
        self.transport = Transport::new(negotiate(1, 264, 1).expect("valid by SPEC 2.3"));
        self.sent = 0;
        self.write_key("state", "1");
        self.show_page();
    }

    fn send_bytes(&mut self, bytes: &[u8]) {
        let words = self.guest.words(self.page);
        let base = (0x100 + (self.sent % SLOTS) as usize * SLOT_SIZE) / 4;
        for (word, chunk) in words[base..base + SLOT_SIZE / 4].iter().zip(bytes.chunks(4)) {
            let mut value = [0; 4];
            value[..chunk.len()].copy_from_slice(chunk);
            word.store(u32::from_ne_bytes(value), std::sync::atomic::Ordering::Relaxed);
        }
        self.sent = self.sent.wrapping_add(1);
        words[0].store(self.sent.to_le(), std::sync::atomic::Ordering::Release);
        self.port.notify();
    }

    fn take_answers(&mut self) {
        let words = self.guest.words(self.page);
        let sent = words[0x80 / 4].load(std::sync::atomic::Ordering::Acquire);
        words[0xc0 / 4].store(sent, std::sync::atomic::Ordering::Release);
        self.port.notify();
    }

    fn ask_anything(
        &mut self,
        kind: u8,
        first: u32,
        second: u32,
        place: BufferPosition,
        bytes: &[u8],
    ) {
        let address = self.address(place);
        let index = if first & 1 == 0 { first } else { first / 2 % 8 };
        let update = VqueueUpdate {
            index,
            flags: VqueueFlags(second & 0x3f),
            size: 1 << (second >> 6 & 15),
            reserved: u32::from(second == u32::MAX),
            descriptor: address,
            driver: address.wrapping_add(u64::from(second >> 10 & 0xfff)),
            device: address.wrapping_add(u64::from(second >> 16)),
        };
        let whole = &bytes[..bytes.len() / 4 * 4];
        let reference = GrantRef(self.granted.writable.0.wrapping_add(second % 64));
        let port = self.port.port.0.wrapping_add(second % 16);
        self.ask(match kind % 13 {
            0 => Request::GetDeviceFeatures { first, count: second },
            1 => Request::SetDriverFeatures(FeatureBlocks::new(first, whole)),
            2 => Request::GetConfig { offset: first, size: second },
            3 => Request::SetConfig(ConfigData { generation: second, offset: first, data: bytes }),
            4 => Request::SetDeviceStatus(first),
            5 => Request::GetVqueue { index: first },
            6 | 7 => Request::SetVqueue(update),
            8 => Request::ResetVqueue { index },
            9 => Request::BindQueue { index, port },
            10 => Request::SharePages {
                first: PoolPage(first % 5000),
                count: second % 5000,
                reference,
            },
            11 => Request::UnsharePages {
                first: PoolPage(first % 5000),
                // Now and then, the guest's whole pool.
                count: if second.is_multiple_of(4) { POOL } else { second % 5000 },
            },
            _ => Request::GetShm { shmid: first },
        });
    }

    fn scribble(&self, page: u8, offset: u16, bytes: &[u8]) {
        let granted = self.buffers.len() + self.rings.len() * 3;
        let number = usize::from(page) % granted;
        let page = self.buffers.get(number).copied().unwrap_or_else(|| {
            let of = number - self.buffers.len();
            self.rings[of / 3].areas[of % 3].0
        });
        let offset = usize::from(offset % 4096);
        let length = bytes.len().min(4096 - offset);
        self.guest.slice(page, offset, length).copy_from(&bytes[..length]);
    }

    fn with_ring(&mut self, number: u8, act: impl FnOnce(&Guest, &mut Ring)) {
        let count = self.rings.len().max(1);
        if let Some(ring) = self.rings.get_mut(usize::from(number) % count) {
            act(&self.guest, ring);
        }
    }

    fn address(&self, place: BufferPosition) -> u64 {
        place.address(&self.granted, |number, area| {
            let ring = self.rings.get(usize::from(number) % self.rings.len().max(1));
            let area = ring.map(|ring| ring.areas[usize::from(area % 3)]);
            area.map_or(0, |(page, first)| self.guest.address(page, first))
        })
    }

    /// Makes a request available: a header, data for the device to read, data and a status for it
    /// to write. A set bit in `parts` omits one of the four.
    fn request(
        &mut self,
        ring: u8,
        template: u8,
        spoil: &[u8],
        place: BufferPosition,
        length: Length,
        parts: u8,
    ) {
        let templates = templates(self.setting.kind);
        let mut header = templates[usize::from(template) % templates.len()].to_vec();
        header.iter_mut().zip(spoil).for_each(|(byte, spoil)| *byte ^= spoil);
        // Each template has 128 bytes of its own in the first page of the buffers.
        let corner = u16::from(template % 16) * 128;
        self.guest.slice(self.buffers[0], corner.into(), header.len()).copy_from(&header);
        let at = |offset| self.address(BufferPosition::ReadOnly { page: 0, offset });
        let status = self.address(BufferPosition::Writable { page: 1, offset: corner });
        let data = self.address(place);
        let chain = [
            (at(corner), header.len() as u32, 0),
            (data, length.bytes(), 0),
            (data, length.bytes(), 2),
            (status, 1, 2),
        ];
        let chosen: Vec<_> =
            (0..4).filter(|part| parts >> part & 1 == 0).map(|part| chain[part]).collect();
        self.with_ring(ring, |guest, ring| {
            let head = ring.descriptor;
            for (position, (address, length, flags)) in chosen.iter().enumerate() {
                let index = (head + position as u16) % ENTRIES;
                let more = u16::from(position + 1 < chosen.len());
                let next = (index + 1) % ENTRIES;
                write_descriptor(guest, ring, index, (*address, *length, flags | more, next));
            }
            ring.descriptor = (head + chosen.len() as u16) % ENTRIES;
            offer(guest, ring, head, 1);
            ring.doorbell.notify();
        });
    }

    fn start_scribbler(&mut self, seed: u32) {
        let memory = self.setting.hypervisor.frames(self.guest.id);
        let last = self.rings.len() as u64 * 3 + u64::from(BUFFERS + POOL);
        let first = if seed & 1 == 0 { 0 } else { u64::from(BUFFERS + POOL) };
        self.scribbler = Some(Scribbler::start(&memory, first, last, seed));
    }

    /// The toolstack destroys the guest, whose scribbler runs until then.
    pub(super) fn leave(self) {
        self.setting.destroy();
        drop(self.scribbler);
        self.guest.end_grants(GrantRef(0), usize::MAX);
    }
}

fn write_descriptor(
    guest: &Guest,
    ring: &Ring,
    index: u16,
    (address, length, flags, next): (u64, u32, u16, u16),
) {
    let entry = guest.slice(ring.areas[0].0, usize::from(index % ENTRIES) * 16, 16);
    entry.write_obj(address, 0).unwrap();
    entry.write_obj(length, 8).unwrap();
    entry.write_obj(flags, 12).unwrap();
    entry.write_obj(next, 14).unwrap();
}

/// Makes a head available, and advances the index by `by`.
fn offer(guest: &Guest, ring: &mut Ring, head: u16, by: u16) {
    let area = guest.slice(ring.areas[1].0, 0, 4096);
    area.write_obj(head, 4 + 2 * usize::from(ring.available % ENTRIES)).unwrap();
    ring.available = ring.available.wrapping_add(by);
    area.store(ring.available, 2, std::sync::atomic::Ordering::Release).unwrap();
}
