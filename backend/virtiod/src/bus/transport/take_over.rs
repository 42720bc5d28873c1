//! The record of what a driver has set up, and a device that goes on with it in another process.

use protocol::grant::GrantRef;
use protocol::pool::PoolPage;
use protocol::status::{DRIVER_OK, FEATURES_OK};
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;

use super::Transport;
use super::features::AcceptedFeatures;
use crate::bus::virtqueue::UpdateError;
use crate::dma::{AccessPlatform, ShareError};
use crate::features as feature_names;
use crate::record::{DriverSetup, PoolChunk, QueueSetup, Record};
use xen::{EventChannels, EventError, RemotePort};

/// The reason why a device cannot go on where an earlier process left it.
#[derive(Debug, thiserror::Error)]
pub enum TakeOverError {
    /// The device has other queues now.
    #[error("the device has {now} queues, and had {before}")]
    QueueCount {
        /// The number of queues that an earlier process set up.
        before: usize,
        /// The number of queues of the device.
        now: usize,
    },
    /// No further process could go on with the device.
    #[error("the device can be taken over once, and not again: see the log for the reason")]
    NotAgain,
    /// The device cannot work with the driver's features any more.
    #[error("the driver uses features {0:#x}, which the device does not have any more")]
    Features(u64),
    /// Pages of the pool cannot be mapped again.
    #[error("cannot map the driver's pool again")]
    Pool(#[from] ShareError),
    /// A queue cannot be set up again.
    #[error("cannot set up queue {0} again")]
    Queue(usize, #[source] UpdateError),
    /// A doorbell cannot be bound again.
    #[error("cannot bind the doorbell of queue {0} again")]
    Doorbell(usize, #[source] EventError),
}

impl TakeOverError {
    /// Whether the same may succeed soon.
    pub(crate) fn may_pass(&self) -> bool {
        match self {
            Self::Doorbell(..) | Self::Pool(ShareError::Map(_) | ShareError::Budget(_)) => true,
            Self::Queue(_, UpdateError::Ring(_)) => true,
            Self::QueueCount { .. }
            | Self::NotAgain
            | Self::Features(_)
            | Self::Pool(_)
            | Self::Queue(..) => false,
        }
    }
}

impl<P: AccessPlatform, E: EventChannels> Transport<P, E> {
    /// Notes in `record` from now on what is taken from the queues.
    pub fn keep(&mut self, record: &Record) {
        self.device_mut().keep_losses(record.loss_mark());
        self.device_mut().keep_note(record.note());
        (0..self.groups.first.queues.len()).for_each(|index| self.keep_queue(index, record));
    }

    /// Notes nothing any more: no process takes the device over.
    pub fn keep_no_more(&mut self) {
        self.device_mut().keep_no_more();
    }

    /// Notes nothing any more: another process goes on with what is noted.
    pub fn leave_note(&mut self) {
        self.device_mut().leave_note();
    }

    /// As [`Transport::keep`], for a queue, whose thread may be another one since.
    pub fn keep_queue(&mut self, index: usize, record: &Record) {
        let queue = self.groups.queue(index);
        queue.into_iter().for_each(|queue| queue.keep(record.queue(index)));
    }

    /// Whether a record has all queues that are enabled.
    pub fn is_recorded(&mut self) -> bool {
        let mut all = 0..self.groups.first.queues.len();
        all.all(|index| self.groups.queue(index).is_none_or(|queue| queue.is_recorded()))
    }

    /// Whether another process can go on with the device.
    pub fn can_be_taken_over(&self) -> bool {
        self.device().can_be_taken_over()
    }

    /// The maximum sizes of the queues.
    pub fn queue_sizes(&self) -> &[u16] {
        self.device().queue_sizes()
    }

    /// Adds to a state what the driver has set up. A device that is being reset is reset.
    pub fn record(&mut self, state: &mut DriverSetup) {
        state.generation = self.generation;
        if self.is_draining {
            (state.status, state.features) = (0, 0);
            (state.queues, state.pool) = (Vec::new(), Vec::new());
            return;
        }
        (state.status, state.features) = (self.status, self.driver_features.bits());
        let count = self.groups.first.queues.len();
        let mut queue = |index| self.groups.queue(index).map(|queue| queue.recorded());
        state.queues = (0..count).map(|index| queue(index).unwrap_or_default()).collect();
        let shares = self.groups.first.memory.shares();
        let chunk = |(first, count, reference): (PoolPage, u32, GrantRef)| PoolChunk {
            first: first.0,
            count,
            reference: reference.0,
        };
        state.pool = shares.map(chunk).collect();
    }

    /// Goes on with a device that was just opened where an earlier process left it, and notifies
    /// the driver of all its queues: that process may have owed it a notification.
    ///
    /// With a `fault` the device needs a reset, and processes nothing.
    ///
    /// # Errors
    /// [`TakeOverError`]; the transport must then be closed.
    pub fn take_over(
        &mut self,
        state: &DriverSetup,
        record: &Record,
        fault: Option<&str>,
        events: &mut E,
    ) -> Result<(), TakeOverError> {
        self.keep(record);
        // What is not in the record may have changed meanwhile: the driver reads it again.
        self.generation = state.generation.wrapping_add(1);
        self.status = state.status;
        self.driver_features = AcceptedFeatures::of(state.features);
        let names = feature_names::names(state.features, self.device().id());
        self.stats.update(|stats| stats.features = names);
        if state.queues.is_empty() {
            return Ok(());
        }
        let (before, now) = (state.queues.len(), self.groups.first.queues.len());
        if before != now {
            return Err(TakeOverError::QueueCount { before, now });
        }
        let lost = state.features & !(self.offered() | self.device().accepted_features());
        if state.status & FEATURES_OK != 0 && lost != 0 {
            return Err(TakeOverError::Features(lost));
        }
        // The settings may have changed; the driver's pool has not.
        let pages = state.pool.iter().map(|chunk| chunk.count).fold(0, u32::saturating_add);
        self.groups.first.memory.raise_pool_limit(pages);
        for PoolChunk { first, count, reference } in &state.pool {
            self.groups.share(PoolPage(*first), *count, GrantRef(*reference))?;
        }
        for (index, queue) in state.queues.iter().enumerate() {
            self.take_queue_over(index, queue, record, events)?;
        }
        match fault {
            Some(why) if self.status & DRIVER_OK != 0 => self.set_needs_reset(why.to_owned()),
            _ if self.is_running() => {
                self.start();
                self.device_mut().note_taken_over();
            }
            _ => {}
        }
        self.resume();
        Ok(())
    }

    fn take_queue_over(
        &mut self,
        index: usize,
        setup: &QueueSetup,
        record: &Record,
        events: &mut E,
    ) -> Result<(), TakeOverError> {
        if let Some(remote) = setup.doorbell.map(RemotePort) {
            let failed = |error| TakeOverError::Doorbell(index, error);
            let local = self.groups.bind(index, remote, events).map_err(failed)?;
            let queue = self.groups.queue(index);
            queue.and_then(|queue| queue.set_doorbell(local, remote));
            self.groups.notify(index, local, events).map_err(failed)?;
        }
        let event_idx = self.driver_features.has(VIRTIO_RING_F_EVENT_IDX);
        let failed = |error| TakeOverError::Queue(index, error);
        let missing = || failed(UpdateError::NoSuchQueue);
        let group = self.groups.of_queue(index).ok_or_else(missing)?;
        let queue = group.queues.get_mut(index).ok_or_else(missing)?;
        queue.take_over(setup, record.queue(index), event_idx, &group.memory).map_err(failed)
    }

    /// Enabled queues without a doorbell, of which the driver is told on the message page.
    pub fn queues_without_doorbell(&mut self) -> Vec<u32> {
        let mut without = Vec::new();
        for index in 0..self.groups.first.queues.len() {
            let queue = self.groups.queue(index);
            if queue.is_some_and(|queue| queue.is_enabled() && queue.doorbell().is_none()) {
                without.push(index as u32);
            }
        }
        without
    }
}
