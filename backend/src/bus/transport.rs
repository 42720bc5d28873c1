//! One device as virtio-msg sees it: status, features, configuration, queues (SPEC sections 5 and 6).

use std::sync::Arc;

use protocol::message::{
    BindOutcome, ConfigData, DeviceInfo, Event, FeatureBlocks, Request, Response, VqueueState,
    VqueueUpdate,
};
use protocol::status::{
    DEVICE_NEEDS_RESET, DRIVER_OK, F_ACCESS_PLATFORM, F_VERSION_1, FEATURES_OK, REQUIRED_FEATURES,
};
use tracing::Level;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use super::virtqueue::Virtqueue;
use crate::device::{VirtioDevice, queue};
use crate::features;
use crate::grant::GrantMemory;
use crate::stats::DeviceStats;
use crate::xen::{EventChannels, EventError, GrantTable, LocalPort, RemotePort};

/// "XS" as on Xen's PCI devices (Xen's PCI vendor id).
const VENDOR_ID: u32 = 0x5853;
/// Blocks of 32 feature bits.
const FEATURE_BLOCKS: u32 = 2;
/// Bytes of a message in front of the data that it carries: header and three fields at most.
const DATA_OFFSET: usize = 8 + 12;

/// Room for the data that a response borrows.
pub type Scratch = [u8; protocol::page::SLOT_SIZE];

/// A device on the bus.
pub struct Transport<G: GrantTable> {
    device: Box<dyn VirtioDevice<GrantMemory<G>>>,
    memory: GrantMemory<G>,
    queues: Vec<Virtqueue>,
    status: u32,
    driver_features: u64,
    generation: u32,
    max_size: usize,
    stats: Arc<DeviceStats>,
}

/// What to tell the driver after queues were served.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Served {
    /// Queues without a doorbell in which buffers were used.
    pub used: Vec<u32>,
    /// Requests are still waiting.
    pub more: bool,
    /// The device has just faulted: the driver must hear of its status.
    pub faulted: bool,
}

impl<G: GrantTable> Transport<G> {
    /// A device that was just reset. `max_size` bounds the messages that answer.
    pub fn new(
        device: Box<dyn VirtioDevice<GrantMemory<G>>>,
        memory: GrantMemory<G>,
        max_size: usize,
        stats: Arc<DeviceStats>,
    ) -> Self {
        let queues = device.queue_sizes().iter().map(|size| Virtqueue::new(*size)).collect();
        Self {
            device,
            memory,
            queues,
            status: 0,
            driver_features: 0,
            generation: 0,
            max_size,
            stats,
        }
    }

    /// Ends the connection, and gives the device back for the next one.
    pub fn close(
        mut self,
        events: &mut impl EventChannels,
    ) -> Box<dyn VirtioDevice<GrantMemory<G>>> {
        self.reset(events);
        self.device
    }

    /// The status byte and the configuration's generation.
    pub fn announcement(&self) -> (u32, u32) {
        (self.status, self.generation)
    }

    /// Features offered: the device's, the ring's, and always the two that this binding demands [6.2].
    fn offered(&self) -> u64 {
        self.device.features()
            | REQUIRED_FEATURES
            | 1 << VIRTIO_RING_F_EVENT_IDX
            | 1 << VIRTIO_RING_F_INDIRECT_DESC
    }

    /// Answers a request. `scratch` keeps the data that the answer borrows.
    pub fn answer<'s>(
        &mut self,
        request: Request<'_>,
        events: &mut impl EventChannels,
        scratch: &'s mut Scratch,
    ) -> Response<'s> {
        match request {
            Request::GetDeviceInfo => Response::GetDeviceInfo(self.info()),
            Request::GetDeviceFeatures { first, count } => {
                Response::GetDeviceFeatures(self.feature_blocks(first, count, scratch))
            }
            Request::SetDriverFeatures(blocks) => {
                self.set_features(blocks);
                Response::SetDriverFeatures
            }
            Request::GetConfig { offset, size } => {
                Response::GetConfig(self.config(offset, size, scratch))
            }
            Request::SetConfig(config) => {
                // No device here has a writable field: rejected by giving no bytes [6.6].
                let (generation, offset) = (self.generation, config.offset);
                Response::SetConfig(ConfigData { generation, offset, data: &[] })
            }
            Request::GetDeviceStatus => Response::GetDeviceStatus(self.status),
            Request::SetDeviceStatus(status) => {
                self.set_status(status, events);
                Response::SetDeviceStatus(self.status)
            }
            Request::GetVqueue { index } => Response::GetVqueue(self.queue_state(index)),
            Request::SetVqueue(update) => {
                self.set_queue(&update);
                Response::SetVqueue
            }
            Request::ResetVqueue { index } => {
                self.reset_queue(index, events);
                Response::ResetVqueue
            }
            Request::GetShm { shmid } => Response::GetShm { shmid, length: 0, address: 0 },
            Request::Ping(data) => Response::Ping(data),
            Request::BindQueue { index, port } => {
                let outcome = self.bind_queue(index, RemotePort(port), events);
                Response::BindQueue { index, outcome }
            }
        }
    }

    /// Serves what an event of the driver's asks for.
    pub fn hear(&mut self, event: Event<'_>, events: &mut impl EventChannels) -> Served {
        match event {
            Event::Avail { index, .. } => self.serve(index as usize, events),
            // Events of the device's own kinds mean nothing when they come from the driver.
            Event::Config { .. } | Event::Used { .. } => Served::default(),
        }
    }

    /// Serves the queue whose doorbell rang.
    pub fn ring(&mut self, port: LocalPort, events: &mut impl EventChannels) -> Served {
        let index = self.queues.iter().position(|queue| queue.doorbell() == Some(port));
        index.map(|index| self.serve(index, events)).unwrap_or_default()
    }

    /// Serves every queue a turn.
    pub fn serve_all(&mut self, events: &mut impl EventChannels) -> Served {
        let mut all = Served::default();
        for index in 0..self.queues.len() {
            let served = self.serve(index, events);
            all.used.extend(served.used);
            all.more |= served.more;
            all.faulted |= served.faulted;
        }
        all
    }

    /// Serves a turn of one queue, if the driver is ready and the device well.
    fn serve(&mut self, index: usize, events: &mut impl EventChannels) -> Served {
        let mut served = Served::default();
        if self.status & DRIVER_OK == 0 || self.status & DEVICE_NEEDS_RESET != 0 {
            return served;
        }
        let Some(virtqueue) = self.queues.get_mut(index) else {
            return served;
        };
        let doorbell = virtqueue.doorbell();
        let Some(ring) = virtqueue.ring() else {
            return served;
        };
        match queue::serve(self.device.as_mut(), index, ring, &mut self.memory) {
            Ok(turn) => {
                served.more = turn.more;
                if turn.notify {
                    tell_used(index, doorbell, events, &mut served);
                }
            }
            Err(fault) => {
                tell_used(index, doorbell, events, &mut served);
                served.faulted = true;
                self.fail(&format!("queue {index}: {fault}"));
            }
        }
        served
    }

    /// Sets DEVICE_NEEDS_RESET and says why [6.5]: once, since nothing is served from then on.
    fn fail(&mut self, why: &str) {
        self.stats.log.line(Level::WARN, format_args!("device needs reset: {why}"));
        self.status |= DEVICE_NEEDS_RESET;
        self.stats.update(|state| state.needs_reset = Some(why.to_owned()));
    }

    /// Says what the driver did wrong.
    fn warn(&self, what: std::fmt::Arguments<'_>) {
        self.stats.log.line(Level::WARN, what);
    }

    fn info(&self) -> DeviceInfo {
        DeviceInfo {
            device_id: self.device.id() as u32,
            vendor_id: VENDOR_ID,
            uuid: [0; 16],
            feature_blocks: FEATURE_BLOCKS,
            config_size: self.device.config().len() as u32,
            max_virtqueues: self.queues.len() as u32,
            admin_queue_start: 0,
            admin_queue_count: 0,
        }
    }

    /// Blocks from `first` on; zero beyond what exists, and no block if they do not fit [5.5].
    fn feature_blocks<'s>(
        &self,
        first: u32,
        count: u32,
        scratch: &'s mut Scratch,
    ) -> FeatureBlocks<'s> {
        let bytes = (count as usize).saturating_mul(4);
        let fits = bytes <= self.max_size.saturating_sub(DATA_OFFSET);
        let room = scratch.get_mut(..if fits { bytes } else { 0 }).unwrap_or(&mut []);
        for (block, number) in room.chunks_exact_mut(4).zip(u64::from(first)..) {
            let shift = 32 * number.min(u64::from(FEATURE_BLOCKS)) as u32;
            let bits = self.offered().checked_shr(shift).unwrap_or(0) as u32;
            block.copy_from_slice(&bits.to_le_bytes());
        }
        FeatureBlocks::new(first, room)
    }

    fn set_features(&mut self, blocks: FeatureBlocks<'_>) {
        if self.status & FEATURES_OK != 0 {
            self.warn(format_args!("features after FEATURES_OK ignored"));
            return;
        }
        let mask = (0..u64::from(blocks.count()))
            .map(|position| u64::from(blocks.first).saturating_add(position))
            .filter(|number| *number < u64::from(FEATURE_BLOCKS))
            .fold(0, |mask, number| mask | 0xffff_ffff << (32 * number));
        self.driver_features = self.driver_features & !mask | blocks.low_bits();
    }

    fn config<'s>(&self, offset: u32, size: u32, scratch: &'s mut Scratch) -> ConfigData<'s> {
        let (start, length) = (offset as usize, size as usize);
        let wanted = start.checked_add(length).and_then(|end| self.device.config().get(start..end));
        let wanted = wanted.filter(|data| data.len() <= self.max_size.saturating_sub(DATA_OFFSET));
        let wanted = wanted.unwrap_or(&[]);
        let room = scratch.get_mut(..wanted.len()).unwrap_or(&mut []);
        room.iter_mut().zip(wanted).for_each(|(to, from)| *to = *from);
        ConfigData { generation: self.generation, offset, data: room }
    }

    fn set_status(&mut self, status: u32, events: &mut impl EventChannels) {
        if status == 0 {
            self.reset(events);
            return;
        }
        let mut accepted = status & 0xff & !DEVICE_NEEDS_RESET | self.status & DEVICE_NEEDS_RESET;
        if accepted & FEATURES_OK & !self.status != 0 && !self.features_agree() {
            accepted &= !FEATURES_OK;
        }
        // DRIVER_OK before FEATURES_OK is out of order [6.1].
        if accepted & FEATURES_OK == 0 {
            accepted &= !DRIVER_OK;
        }
        self.status = accepted;
    }

    /// Whether the driver's features are a choice that the device can work with [6.2].
    fn features_agree(&self) -> bool {
        let (offered, accepted) = (self.offered(), self.driver_features);
        let unknown = accepted & !offered;
        let missing = REQUIRED_FEATURES & !accepted;
        if unknown != 0 {
            self.warn(format_args!("FEATURES_OK refused: bits {unknown:#x} were not offered"));
        }
        if missing & 1 << F_ACCESS_PLATFORM != 0 {
            self.warn(format_args!("FEATURES_OK refused: no VIRTIO_F_ACCESS_PLATFORM"));
        }
        if missing & 1 << F_VERSION_1 != 0 {
            self.warn(format_args!("FEATURES_OK refused: no VIRTIO_F_VERSION_1"));
        }
        let agree = unknown == 0 && missing == 0;
        if agree {
            let names = features::names(accepted, self.device.id());
            self.stats.log.line(Level::INFO, format_args!("features: {}", names.join(" ")));
            self.stats.update(|state| state.features = names);
        }
        agree
    }

    fn queue_state(&self, index: u32) -> VqueueState {
        let none = || Virtqueue::new(0).state(index);
        self.queues.get(index as usize).map_or_else(none, |queue| queue.state(index))
    }

    fn set_queue(&mut self, update: &VqueueUpdate) {
        let early = self.status & FEATURES_OK == 0;
        let event_idx = self.driver_features & 1 << VIRTIO_RING_F_EVENT_IDX != 0;
        let index = update.index;
        match self.queues.get_mut(index as usize) {
            Some(_) if early => self.warn(format_args!("set-up of queue {index} too early")),
            Some(queue) => {
                if let Err(error) = queue.update(update, event_idx, &mut self.memory) {
                    self.warn(format_args!("set-up of queue {index} refused: {error}"));
                }
            }
            None => self.warn(format_args!("set-up of queue {index}, which is not there")),
        }
    }

    fn reset_queue(&mut self, index: u32, events: &mut impl EventChannels) {
        let queue = self.queues.get_mut(index as usize);
        if let Some(port) = queue.and_then(|queue| queue.reset(&mut self.memory)) {
            events.unbind(port);
        }
    }

    fn bind_queue(
        &mut self,
        index: u32,
        port: RemotePort,
        events: &mut impl EventChannels,
    ) -> BindOutcome {
        let ready = self.status & DRIVER_OK != 0;
        let Some(queue) = self.queues.get_mut(index as usize).filter(|_| !ready) else {
            return BindOutcome::Refused;
        };
        match events.bind(port) {
            Ok(local) => {
                if let Some(before) = queue.set_doorbell(local) {
                    events.unbind(before);
                }
                BindOutcome::Bound
            }
            Err(error) => {
                self.warn(format_args!("no doorbell for queue {index}: {error}"));
                BindOutcome::Refused
            }
        }
    }

    /// As if nothing had been set up: no mapping, no doorbell, no feature [6.4].
    fn reset(&mut self, events: &mut impl EventChannels) {
        for queue in &mut self.queues {
            if let Some(port) = queue.reset(&mut self.memory) {
                events.unbind(port);
            }
        }
        (self.status, self.driver_features) = (0, 0);
    }
}

/// Tells the driver of used buffers: by the doorbell, or later in band.
fn tell_used(
    index: usize,
    doorbell: Option<LocalPort>,
    events: &mut impl EventChannels,
    served: &mut Served,
) {
    let Some(port) = doorbell else {
        served.used.push(index as u32);
        return;
    };
    if let Err(EventError { source, .. }) = events.notify(port) {
        tracing::warn!(%source, "cannot ring the doorbell of queue {index}");
    }
}
