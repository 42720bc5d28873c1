//! Requests that were taken from the ring and are not answered yet.

use std::io;
use std::sync::Arc;

use super::disk_file::DiskFile;
use super::image::Located;
use super::latency::Begun;
use super::request::BlockCommand;
use super::target::TargetError;
use crate::device::{HeldBuffers, VirtioRequest};
use crate::stats::PartUse;

/// Buffers of a batch, for the operations that use them.
pub(super) struct HeldBatch(pub(super) Box<dyn HeldBuffers>);

/// How a request is carried out.
pub(super) enum Carrier {
    /// By the engine, between a file and the guest's buffers.
    Engine {
        /// The buffers of its batch.
        held: Arc<HeldBatch>,
        file: Arc<DiskFile>,
    },
    /// By the worker, with data in host memory.
    Worker,
}

/// The failure of one of several operations of a transfer.
pub(super) enum PartFailure {
    /// The transfer as one operation may succeed.
    Mendable,
    /// It would fail too, after as much time as storage takes to give up.
    Final(io::Error),
}

/// A request in flight.
pub(super) struct InFlight {
    pub(super) queue: usize,
    pub(super) request: VirtioRequest,
    pub(super) command: BlockCommand,
    pub(super) carrier: Carrier,
    /// When it was handed to storage or to the worker.
    pub(super) begun: Begun,
    /// Where its data is, if its sectors do not say that.
    pub(super) located: Option<Box<Located>>,
    /// Whether the driver still waits for it. If not, only its end is awaited.
    pub(super) is_wanted: bool,
    /// The next request of the same operation, if it was joined with others.
    pub(super) next: Option<usize>,
    /// The number of operations of its transfer that have not ended, and what one that failed says.
    pub(super) operations: usize,
    pub(super) failure: Option<PartFailure>,
    /// Whether a sync has to follow, because the storage cannot write through.
    pub(super) needs_sync: bool,
}

impl InFlight {
    pub(super) fn new(
        queue: usize,
        request: VirtioRequest,
        command: BlockCommand,
        carrier: Carrier,
        begun: Begun,
    ) -> Self {
        Self {
            queue,
            request,
            command,
            carrier,
            begun,
            located: None,
            is_wanted: true,
            next: None,
            operations: 0,
            failure: None,
            needs_sync: false,
        }
    }

    /// Bytes of its buffers.
    pub(super) fn bytes(&self) -> u64 {
        self.request.length()
    }

    pub(super) fn is_by_worker(&self) -> bool {
        matches!(self.carrier, Carrier::Worker)
    }

    /// The buffers that the engine uses, held with those of its batch.
    pub(super) fn held(&self) -> Option<&Arc<HeldBatch>> {
        match &self.carrier {
            Carrier::Engine { held, .. } => Some(held),
            Carrier::Worker => None,
        }
    }

    /// The file that the engine uses.
    pub(super) fn file(&self) -> Option<&Arc<DiskFile>> {
        match &self.carrier {
            Carrier::Engine { file, .. } => Some(file),
            Carrier::Worker => None,
        }
    }
}

/// A request that has ended.
pub(super) struct Ended {
    pub(super) entry: InFlight,
    pub(super) outcome: Result<(), TargetError>,
    /// The data that the worker read.
    pub(super) data: Vec<u8>,
}

/// Limits of what is in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InFlightLimits {
    /// Maximum number of requests.
    pub requests: usize,
    /// Maximum bytes of their buffers together; a request beyond that is taken alone.
    pub bytes: u64,
}

impl InFlightLimits {
    /// A share of the limits, for one of so many parts of a device.
    pub(super) fn shared_by(self, parts: usize) -> Self {
        let parts = parts.max(1);
        Self { requests: (self.requests / parts).max(1), bytes: self.bytes / parts as u64 }
    }
}

impl Default for InFlightLimits {
    fn default() -> Self {
        Self { requests: 256, bytes: 16 << 20 }
    }
}

/// All requests of a device in flight, by slot.
#[derive(Default)]
pub(super) struct InFlightTable {
    slots: Vec<Option<InFlight>>,
    free: Vec<usize>,
    bytes: u64,
    limits: InFlightLimits,
    /// For `stat`, which sees the same slots.
    part_use: Arc<PartUse>,
}

impl InFlightTable {
    /// A table without requests, with these limits.
    pub(super) fn new(limits: InFlightLimits, part_use: Arc<PartUse>) -> Self {
        Self { limits, part_use, ..Self::default() }
    }

    /// Changes the limits. What is in flight stays so.
    pub(super) fn set_limits(&mut self, limits: InFlightLimits) {
        self.limits = limits;
    }

    /// Maximum number of requests in flight.
    pub(super) fn limit(&self) -> usize {
        self.limits.requests
    }

    /// Number of requests that may be taken from a ring now.
    pub(super) fn room(&self) -> usize {
        let count = self.len();
        if self.bytes >= self.limits.bytes {
            return 0;
        }
        self.limits.requests.saturating_sub(count)
    }

    /// Bytes of buffers that may be taken now; the last request may exceed them.
    pub(super) fn room_bytes(&self) -> u64 {
        self.limits.bytes.saturating_sub(self.bytes)
    }

    /// Number of requests in flight.
    pub(super) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Number of requests of a queue in flight.
    pub(super) fn of_queue(&self, queue: usize) -> usize {
        self.slots.iter().flatten().filter(|entry| entry.queue == queue).count()
    }

    /// Whether requests are in flight for which no driver waits.
    pub(super) fn has_unwanted(&self) -> bool {
        self.slots.iter().flatten().any(|entry| !entry.is_wanted)
    }

    /// Adds a request; returns its slot.
    pub(super) fn add(&mut self, entry: InFlight) -> usize {
        let begun = entry.begun.tick;
        self.bytes += entry.bytes();
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() - 1
        });
        if let Some(place) = self.slots.get_mut(slot) {
            *place = Some(entry);
        }
        self.part_use.begin(slot, begun);
        slot
    }

    pub(super) fn get(&self, slot: usize) -> Option<&InFlight> {
        self.slots.get(slot)?.as_ref()
    }

    pub(super) fn get_mut(&mut self, slot: usize) -> Option<&mut InFlight> {
        self.slots.get_mut(slot)?.as_mut()
    }

    /// Removes a request that has ended.
    pub(super) fn remove(&mut self, slot: usize) -> Option<InFlight> {
        let entry = self.slots.get_mut(slot)?.take()?;
        self.free.push(slot);
        self.part_use.end(slot);
        self.bytes -= entry.bytes();
        Some(entry)
    }

    /// Removes requests that nobody carries out any more.
    pub(super) fn remove_all(&mut self, is_meant: impl Fn(&InFlight) -> bool) {
        for slot in 0..self.slots.len() {
            if self.get(slot).is_some_and(&is_meant) {
                self.remove(slot);
            }
        }
    }

    /// Notes that the driver no longer waits for the requests of a queue, or of all.
    pub(super) fn forget(&mut self, queue: Option<usize>) {
        for entry in self.slots.iter_mut().flatten() {
            entry.is_wanted &= queue.is_some_and(|queue| queue != entry.queue);
        }
    }
}
