//! The virtio-msg transport of one device: status, features, configuration, queues (SPEC sections 5
//! and 6).

mod features;
mod service;
mod take_over;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use protocol::grant::GrantRef;
use protocol::message::{
    BindOutcome, ConfigData, DeviceInfo, FeatureBlocks, Request, Response, ShareOutcome,
    UnshareOutcome, VqueueState, VqueueUpdate,
};
use protocol::pool::PoolPage;
use protocol::status::{
    DEVICE_NEEDS_RESET, DRIVER_BITS, DRIVER_OK, F_RING_RESET, F_VERSION_1, FAILED, FEATURES_OK,
};
use tracing::Level;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use self::features::AcceptedFeatures;
pub use self::service::Effects;
pub use self::take_over::TakeOverError;
use super::group_thread::OpenChannels;
use super::queue_groups::{ClosedDevice, QueueGroups};
use super::virtqueue::{UpdateError, Updated, Virtqueue};
use crate::Causes;
use crate::config::ServiceSettings;
use crate::device::VirtioDevice;
use crate::dma::{AccessPlatform, DmaMemory, UnshareError};
use crate::features as feature_names;
use crate::stats::DeviceStats;
use xen::{EventChannels, RemotePort};

/// "XS", Xen's PCI vendor id.
const VENDOR_ID: u32 = 0x5853;
/// Maximum number of bytes before a message's data: the header and three fields.
const DATA_OFFSET: usize = 8 + 12;

/// A buffer for the data that a response borrows.
pub type Scratch = [u8; protocol::page::SLOT_SIZE];

/// The result of a request.
#[derive(Debug)]
pub struct Answered<'s> {
    /// The response to the request.
    pub response: Response<'s>,
    /// Events to send to the driver after the response.
    pub effects: Effects,
}

/// A device with its queues, status and features on the bus.
pub struct Transport<P: AccessPlatform, E> {
    groups: QueueGroups<P, E>,
    status: u32,
    /// The driver reset the device, and storage or the host still uses buffers of its [6.4]. The
    /// status stays as it was, not 0.
    is_draining: bool,
    driver_features: AcceptedFeatures,
    generation: u32,
    max_size: usize,
    stats: Arc<DeviceStats>,
}

impl<P: AccessPlatform, E: EventChannels> Transport<P, E> {
    /// Returns the transport of a freshly reset device. `max_size` bounds the size of responses in
    /// bytes; `open` opens event channels for a further thread.
    pub fn new(
        device: Box<dyn VirtioDevice<DmaMemory<P>>>,
        memory: DmaMemory<P>,
        service: &ServiceSettings,
        max_size: usize,
        open: OpenChannels<E>,
        stats: Arc<DeviceStats>,
    ) -> Self {
        Self {
            groups: QueueGroups::new(device, memory, service, open, &stats),
            status: 0,
            is_draining: false,
            driver_features: AcceptedFeatures::default(),
            generation: 0,
            max_size,
            stats,
        }
    }

    /// Ends the connection and returns the device for the next one.
    pub fn close(mut self, events: &mut E) -> ClosedDevice<DmaMemory<P>> {
        self.reset(events);
        self.groups.close()
    }

    fn device(&self) -> &dyn VirtioDevice<DmaMemory<P>> {
        self.groups.first.device.as_ref()
    }

    fn device_mut(&mut self) -> &mut dyn VirtioDevice<DmaMemory<P>> {
        self.groups.first.device.as_mut()
    }

    fn platform(&self) -> &P {
        self.groups.first.memory.platform()
    }

    /// The status byte and the configuration's generation.
    pub fn status_and_generation(&self) -> (u32, u32) {
        (self.status, self.generation)
    }

    /// The offered features: the device's, the platform's and the ring's, and always version 1
    /// [6.2] and queue reset [6.7].
    fn offered(&self) -> u64 {
        self.device().features()
            | self.platform().offered()
            | 1 << F_VERSION_1
            | 1 << F_RING_RESET
            | 1 << VIRTIO_RING_F_EVENT_IDX
            | 1 << VIRTIO_RING_F_INDIRECT_DESC
    }

    /// Answers a request. The response borrows its data from `scratch`. Call
    /// [`Transport::resume`] after the last one.
    pub fn answer<'s>(
        &mut self,
        request: Request<'_>,
        events: &mut E,
        scratch: &'s mut Scratch,
    ) -> Answered<'s> {
        let mut effects = Effects::default();
        let response = match request {
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
            Request::SetConfig(config) => Response::SetConfig(self.set_config(config, scratch)),
            Request::GetDeviceStatus => Response::GetDeviceStatus(self.status),
            Request::SetDeviceStatus(status) => {
                effects = self.set_status(status, events);
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
            Request::SharePages { first, count, reference } => {
                let outcome = self.share_pages(first, count, reference);
                Response::SharePages { first, outcome }
            }
            Request::UnsharePages { first, count } => {
                let outcome = self.unshare_pages(first, count);
                Response::UnsharePages { first, outcome }
            }
        };
        Answered { response, effects }
    }

    /// Lets the other groups go on, which messages have halted. A shortage delays that.
    pub fn resume(&mut self) {
        if let Err(error) = self.groups.resume() {
            self.warn(format_args!(
                "cannot start a thread for queues; tried again: {}",
                Causes(&error)
            ));
        }
    }

    /// Logs a mistake of the driver's.
    fn warn(&self, what: std::fmt::Arguments<'_>) {
        self.stats.log.line(Level::WARN, what);
    }

    fn info(&self) -> DeviceInfo {
        DeviceInfo {
            device_id: self.device().id() as u32,
            vendor_id: VENDOR_ID,
            uuid: [0; 16],
            feature_blocks: features::BLOCKS,
            config_size: self.device().config().len() as u32,
            max_virtqueues: self.groups.first.queues.len() as u32,
            admin_queue_start: 0,
            admin_queue_count: 0,
        }
    }

    /// Returns blocks from `first` on, zero beyond the existing ones; none if they do not fit
    /// [5.5].
    fn feature_blocks<'s>(
        &self,
        first: u32,
        count: u32,
        scratch: &'s mut Scratch,
    ) -> FeatureBlocks<'s> {
        let bytes = (count as usize).saturating_mul(4);
        let fits = bytes <= self.max_size.saturating_sub(DATA_OFFSET);
        let data = scratch.get_mut(..if fits { bytes } else { 0 }).unwrap_or(&mut []);
        for (block, number) in data.chunks_exact_mut(4).zip(u64::from(first)..) {
            let shift = 32 * number.min(features::BLOCKS.into()) as u32;
            let bits = self.offered().checked_shr(shift).unwrap_or(0) as u32;
            block.copy_from_slice(&bits.to_le_bytes());
        }
        FeatureBlocks::new(first, data)
    }

    fn set_features(&mut self, blocks: FeatureBlocks<'_>) {
        if self.status & FEATURES_OK != 0 || self.is_draining {
            self.warn(format_args!("SET_DRIVER_FEATURES after FEATURES_OK ignored"));
            return;
        }
        self.driver_features.update(blocks);
    }

    fn config<'s>(&self, offset: u32, size: u32, scratch: &'s mut Scratch) -> ConfigData<'s> {
        let (start, length) = (offset as usize, size as usize);
        let wanted =
            start.checked_add(length).and_then(|end| self.device().config().get(start..end));
        let wanted = wanted.filter(|data| data.len() <= self.max_size.saturating_sub(DATA_OFFSET));
        let data = copied(wanted.unwrap_or(&[]), scratch);
        ConfigData { generation: self.generation, offset, data }
    }

    /// Writes configuration, whatever generation the driver names [6.6]: all of the bytes, which
    /// the response then repeats, or none.
    fn set_config<'s>(&mut self, new: ConfigData<'_>, scratch: &'s mut Scratch) -> ConfigData<'s> {
        let offset = new.offset as usize;
        let end = offset.checked_add(new.data.len());
        let inside = end.is_some_and(|end| end <= self.device().config().len());
        let applied =
            inside && !new.data.is_empty() && self.device_mut().write_config(offset, new.data);
        if applied {
            self.generation = self.generation.wrapping_add(1);
        }
        let data = copied(if applied { new.data } else { &[] }, scratch);
        ConfigData { generation: self.generation, offset: new.offset, data }
    }

    /// Sets the status bits that the driver may set [6.8]; 0 resets the device.
    fn set_status(&mut self, status: u32, events: &mut E) -> Effects {
        if self.is_draining {
            return Effects::default();
        }
        if status == 0 {
            self.reset(events);
            return Effects::default();
        }
        let mut added = status & DRIVER_BITS & !self.status;
        if added & FEATURES_OK != 0 && !self.features_agree() {
            added &= !FEATURES_OK;
        }
        // DRIVER_OK before FEATURES_OK is out of order [6.1].
        if (self.status | added) & FEATURES_OK == 0 {
            added &= !DRIVER_OK;
        }
        if added & FAILED != 0 {
            self.warn(format_args!("the guest's driver set FAILED; see the guest's kernel log"));
        }
        self.status |= added;
        if added & DRIVER_OK != 0 { self.start() } else { Effects::default() }
    }

    /// Starts the device after DRIVER_OK; it processes the requests already in the queues [6.1].
    fn start(&mut self) -> Effects {
        let mut effects = Effects::default();
        let features = self.driver_features.bits();
        let started = self.device_mut().start(features);
        match started.and_then(|()| self.groups.start_parts(features)) {
            Ok(()) => self.groups.run(),
            Err(fault) => {
                self.fail(&fault);
                effects.config = true;
            }
        }
        effects.config |= self.take_config_change();
        effects
    }

    /// Whether the device can work with the driver's features [6.2].
    fn features_agree(&mut self) -> bool {
        let (offered, accepted) = (self.offered(), self.driver_features.bits());
        let further = self.driver_features.has_further();
        let unknown = accepted & !(offered | self.device().accepted_features());
        let behind_platform = self.platform().accepts(accepted);
        let versioned = accepted & 1 << F_VERSION_1 != 0;
        if unknown != 0 {
            self.warn(format_args!("FEATURES_OK refused: bits {unknown:#x} were not offered"));
        }
        if further {
            self.warn(format_args!("FEATURES_OK refused: bits from 64 on were not offered"));
        }
        if !behind_platform {
            self.warn(format_args!("FEATURES_OK refused: no VIRTIO_F_ACCESS_PLATFORM"));
        }
        if !versioned {
            self.warn(format_args!("FEATURES_OK refused: no VIRTIO_F_VERSION_1"));
        }
        let agree = unknown == 0 && !further && behind_platform && versioned;
        if agree {
            let names = feature_names::names(accepted, self.device().id());
            self.stats.log.line(Level::INFO, format_args!("features: {}", names.join(" ")));
            self.stats.update(|state| state.features = names);
        }
        agree
    }

    fn queue_state(&mut self, index: u32) -> VqueueState {
        let none = || Virtqueue::<P>::new(0).state(index);
        self.groups.queue(index as usize).map_or_else(none, |queue| queue.state(index))
    }

    fn set_queue(&mut self, update: &VqueueUpdate) {
        let early = self.status & FEATURES_OK == 0;
        let event_idx = self.driver_features.has(VIRTIO_RING_F_EVENT_IDX);
        let (index, is_running) = (update.index as usize, self.is_running());
        let updated = match self.groups.of_queue(index) {
            Some(_) if early || self.is_draining => Err(UpdateError::Early),
            Some(group) => match group.queues.get_mut(index) {
                Some(queue) => queue.update(update, event_idx, &group.memory),
                None => Err(UpdateError::NoSuchQueue),
            },
            None => Err(UpdateError::NoSuchQueue),
        };
        match updated {
            Ok(Updated::Enabled) if is_running => self.groups.enabled_late(index),
            Ok(_) => {}
            Err(error) => {
                self.warn(format_args!("set-up of queue {index} refused: {}", Causes(&error)));
            }
        }
    }

    /// RESET_VQUEUE, if negotiated: the driver owns the queue and its buffers again [6.7].
    fn reset_queue(&mut self, index: u32, events: &mut E) {
        let negotiated = self.status & FEATURES_OK != 0 && self.driver_features.has(F_RING_RESET);
        let index = index as usize;
        let Some(group) = self.groups.of_queue(index).filter(|_| negotiated) else {
            self.warn(format_args!(
                "reset of queue {index} ignored: no such queue, or no VIRTIO_F_RING_RESET"
            ));
            return;
        };
        let doorbell = group.reset_queue(index);
        doorbell.into_iter().for_each(|port| self.groups.unbind(index, port, events));
        self.groups.forget(index);
    }

    fn bind_queue(&mut self, index: u32, port: RemotePort, events: &mut E) -> BindOutcome {
        let ready = self.status & DRIVER_OK != 0;
        let number = index as usize;
        let queue = self.groups.queue(number);
        if self.is_draining || queue.is_none_or(|queue| ready && queue.is_enabled()) {
            return BindOutcome::Refused;
        }
        match self.groups.bind(number, port, events) {
            Ok(local) => {
                let queue = self.groups.queue(number);
                if let Some(before) = queue.and_then(|queue| queue.set_doorbell(local, port)) {
                    self.groups.unbind(number, before, events);
                }
                BindOutcome::Bound
            }
            Err(error) => {
                self.warn(format_args!(
                    "cannot bind a doorbell for queue {index}: {}",
                    Causes(&error)
                ));
                BindOutcome::Refused
            }
        }
    }

    /// SHARE_PAGES [5.8].
    fn share_pages(&mut self, first: PoolPage, count: u32, reference: GrantRef) -> ShareOutcome {
        if self.status & DEVICE_NEEDS_RESET != 0 || self.is_draining {
            return ShareOutcome::Refused;
        }
        match self.groups.share(first, count, reference) {
            Ok(()) => ShareOutcome::Shared,
            Err(error) => {
                self.warn(format_args!("pages not added to the pool: {}", Causes(&error)));
                ShareOutcome::Refused
            }
        }
    }

    /// UNSHARE_PAGES [5.11].
    fn unshare_pages(&mut self, first: PoolPage, count: u32) -> UnshareOutcome {
        if self.status & DEVICE_NEEDS_RESET != 0 || self.is_draining {
            return UnshareOutcome::Refused;
        }
        match self.groups.unshare(first, count) {
            Ok(()) => return UnshareOutcome::Unshared,
            // The driver asks again.
            Err(UnshareError::InUse) => {}
            Err(error) => self.warn(format_args!("pages not removed from the pool: {error}")),
        }
        UnshareOutcome::Refused
    }

    /// Resets the device: no mapping, no doorbell, no feature remains [6.4], once the device uses
    /// no buffer any more.
    fn reset(&mut self, events: &mut E) {
        self.groups.reset(events);
        self.is_draining = true;
        self.end_reset();
    }

    /// Ends a reset, if the device uses no buffer any more.
    pub fn end_reset(&mut self) {
        if self.is_draining && !self.groups.is_draining() {
            (self.status, self.driver_features) = (0, AcceptedFeatures::default());
            self.is_draining = false;
        }
    }

    /// Whether queue `index` exists and is enabled.
    pub fn is_enabled(&mut self, index: usize) -> bool {
        self.groups.of_queue(index).is_some_and(|group| group.is_enabled(index))
    }

    /// Whether the device still uses buffers of a queue that was reset.
    pub fn is_queue_draining(&mut self, index: u32) -> bool {
        let index = index as usize;
        let group = self.groups.of_queue(index);
        group.is_some_and(|group| group.device.is_queue_draining(index))
    }

    /// Whether the device changed its configuration since the last call. If so, increments the
    /// generation [6.6].
    fn take_config_change(&mut self) -> bool {
        let changed = self.device_mut().take_config_change();
        if changed {
            self.generation = self.generation.wrapping_add(1);
        }
        changed
    }
}

/// Copies `data` to `scratch` for a response to borrow; a message's data fits.
fn copied<'s>(data: &[u8], scratch: &'s mut Scratch) -> &'s [u8] {
    let copy = scratch.get_mut(..data.len()).unwrap_or(&mut []);
    copy.iter_mut().zip(data).for_each(|(to, from)| *to = *from);
    copy
}
