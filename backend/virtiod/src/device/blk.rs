//! The block device (virtio 1.3 section 5.2).

mod claim;
mod config;
mod files;
mod image;
mod progress;
mod request;
#[cfg(any(test, feature = "sample-images"))]
#[allow(clippy::indexing_slicing, clippy::panic, reason = "this is for tests, and fails them so")]
pub mod sample;
mod target;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tracing::Level;
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_MQ,
    VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_TOPOLOGY, VIRTIO_BLK_F_WRITE_ZEROES,
};

pub use self::claim::{ClaimError, Owner, Sharing};
pub use self::image::ImageFormat;
use self::progress::{Deadline, Progress};
pub use self::request::SECTOR_SIZE;
use self::request::{
    BlockCommand, BlockRequest, BlockStatus, Range, RangeChange, SERIAL_SIZE, Task,
};
pub use self::target::{AccessMode, Caching, Discard, Target, TargetError, TargetOptions};
#[cfg(any(test, feature = "sample-images"))]
pub use self::{
    sample::qcow2_samples,
    target::exercise::{Exercised, exercise_qcow2},
};
use super::{
    BATCH, Completed, Completions, DeviceId, DeviceMemory, Fault, IoEngine, QueueContext, Source,
    VirtioDevice, VirtioRequest, WorkSource, Writable, WriteMode,
};
use crate::Causes;
use crate::stats::DeviceStats;

/// Queues offered; the driver uses one a CPU, at most these.
const QUEUES: u16 = 4;
/// Entries in a queue.
const QUEUE_SIZE: u16 = 512;
/// Bytes of a request's status.
const STATUS_SIZE: u32 = 1;
/// How long a queue is served at once: then what is not done waits for the next time, and the bus
/// looks at all else.
const SLICE: Duration = Duration::from_millis(10);

/// A disk.
pub struct Block {
    target: Target,
    config: [u8; config::SIZE],
    config_changed: bool,
    serial: [u8; SERIAL_SIZE],
    driver_features: u64,
    transfers: IoEngine,
    /// For each queue, what was taken from it and is not done.
    suspended: [Option<Suspended>; QUEUES as usize],
    stats: Arc<DeviceStats>,
}

/// Requests for which the time did not suffice.
struct Suspended {
    requests: Vec<VirtioRequest>,
    /// The rest of the first, if it was begun.
    task: Option<Task>,
    /// The fault of the request behind the last.
    fault: Option<Fault>,
}

/// A request that was taken apart, on its way through a batch.
struct Parsed<'r, 'm> {
    request: BlockRequest<'r>,
    /// Where the status goes.
    place: Option<Writable<'m>>,
    /// What was found wrong with its data before any was moved.
    wrong: Option<TargetError>,
}

impl<'r, 'm> Parsed<'r, 'm> {
    /// Before the data: a driver whose data finds no room is told so. `task`: what is left of a
    /// request that was begun.
    fn new<M: DeviceMemory>(
        request: &'r VirtioRequest,
        task: Option<Task>,
        memory: &'m M,
    ) -> Result<Self, Fault> {
        let request = match task {
            Some(task) => BlockRequest::resume(request, task)?,
            None => BlockRequest::parse(request, memory)?,
        };
        let place = request.status.writable(memory).next().transpose()?;
        Ok(Self { request, place, wrong: None })
    }
}

/// The status of a request that is not done: no value of the specification's. What a driver gave to
/// be written may be written at any time.
const PENDING: u8 = 0xff;

/// The outcome of a batch.
#[derive(Default)]
struct BatchOutcome {
    /// Requests that were not malformed; the others are dropped.
    good: usize,
    /// Those of them that were answered, by their bits.
    answered: u64,
    /// The rest of the first that was not, if it was begun.
    task: Option<Task>,
    /// The fault of the request behind the good ones.
    fault: Option<Fault>,
}

impl BatchOutcome {
    fn is_answered(&self, number: usize) -> bool {
        self.answered & 1 << number != 0
    }

    fn is_whole(&self) -> bool {
        self.answered.count_ones() as usize == self.good
    }
}

// A bit for each request of a batch.
const _: () = assert!(BATCH <= u64::BITS as usize);

impl Block {
    /// A disk on `target` that calls itself `serial`, of which 20 bytes count.
    pub fn new(target: Target, serial: &str, stats: Arc<DeviceStats>) -> Self {
        let config = config::bytes(&target, QUEUES, QUEUE_SIZE);
        let mut name = [0; SERIAL_SIZE];
        name.iter_mut().zip(serial.bytes()).for_each(|(to, from)| *to = from);
        Self {
            target,
            config,
            config_changed: false,
            serial: name,
            driver_features: 0,
            transfers: IoEngine::default(),
            suspended: Default::default(),
            stats,
        }
    }

    /// Serves requests of a queue, the first of which may have been begun, and keeps what the time
    /// does not suffice for.
    fn serve_requests<M: DeviceMemory>(
        &mut self,
        index: usize,
        mut waiting: Suspended,
        queues: &mut QueueContext<'_, M>,
    ) -> Result<(), Fault> {
        let deadline = Deadline::after(SLICE);
        let task = waiting.task.take();
        // A request that was begun is served alone: the buffers of the others need not be reached
        // for it.
        let now = if task.is_some() { 1 } else { BATCH };
        let later = waiting.requests.split_off(now.min(waiting.requests.len()));
        let batch = &waiting.requests;
        let written = task.as_ref().map_or(0, Task::written);
        let served =
            queues.process_fetched(index, batch, written, |requests, memory, answers| {
                self.serve_batch(requests, task, memory, answers, &deadline)
            })?;
        queues.reschedule(index);
        let mut rest = keep_unanswered(queues, waiting.requests, &served);
        let fault = served.fault.or(waiting.fault);
        rest.extend(later);
        if !rest.is_empty() {
            if let Some(place) = self.suspended.get_mut(index) {
                *place = Some(Suspended { requests: rest, task: served.task, fault });
            }
            return Ok(());
        }
        fault.map_or(Ok(()), Err)
    }
}

/// Takes requests apart, up to the first that is malformed. `task`: the rest of the first of them,
/// if it was begun.
fn parse<'r, 'm, M: DeviceMemory>(
    requests: &'r [VirtioRequest],
    mut task: Option<Task>,
    memory: &'m M,
    batch: &mut [Option<Parsed<'r, 'm>>; BATCH],
) -> BatchOutcome {
    let mut served = BatchOutcome::default();
    for (place, request) in batch.iter_mut().zip(requests) {
        match Parsed::new(request, task.take(), memory) {
            Ok(parsed) => *place = Some(parsed),
            Err(first) => {
                served.fault = Some(first);
                break;
            }
        }
        served.good += 1;
    }
    served
}

/// Takes back the room of requests that are answered, and gives the others.
fn keep_unanswered<M: DeviceMemory>(
    queues: &mut QueueContext<'_, M>,
    mut requests: Vec<VirtioRequest>,
    served: &BatchOutcome,
) -> Vec<VirtioRequest> {
    let mut rest = Vec::new();
    if !served.is_whole() {
        let good = std::mem::take(&mut requests).into_iter().take(served.good);
        for (number, request) in good.enumerate() {
            let list = if served.is_answered(number) { &mut requests } else { &mut rest };
            list.push(request);
        }
    }
    queues.recycle(requests);
    rest
}

impl Block {
    /// Serves a batch, as far as there is time. What reads and writes move is moved together first,
    /// if that can be.
    fn serve_batch<M: DeviceMemory>(
        &mut self,
        requests: &[VirtioRequest],
        task: Option<Task>,
        memory: &M,
        answers: &mut Completions<'_>,
        deadline: &Deadline,
    ) -> Result<BatchOutcome, Fault> {
        let mut batch = [const { None }; BATCH];
        let mut served = parse(requests, task, memory, &mut batch);
        let moved = self.transfer(&mut batch, memory);
        let mut progress = Progress::Done;
        for (number, (request, mut parsed)) in
            requests.iter().zip(batch.into_iter().flatten()).enumerate()
        {
            let begun = progress == Progress::Unfinished;
            let outcome = match parsed.wrong.take() {
                Some(wrong) => Err(wrong),
                None if moved.has(number) => Ok(Progress::Done),
                None if begun => Ok(Progress::Unfinished),
                None => self.execute(&mut parsed.request, memory, deadline),
            };
            if matches!(outcome, Ok(Progress::Unfinished)) {
                parsed.place.into_iter().for_each(|mut byte| byte.copy_from(&[PENDING]));
                if !begun {
                    (progress, served.task) = (Progress::Unfinished, Some(parsed.request.task));
                }
                continue;
            }
            self.answer(request, parsed, outcome.map(drop), memory, answers)?;
            served.answered |= 1 << number;
            if !moved.has(number) && !served.is_whole() && deadline.is_over() {
                progress = Progress::Unfinished;
            }
        }
        if let Err(error) = self.target.finish_batch() {
            self.stats
                .log
                .line(Level::WARN, format_args!("disk not written back: {}", Causes(&error)));
        }
        Ok(served)
    }

    /// Moves the data of reads and writes together, up to the first with which something is wrong.
    fn transfer<M: DeviceMemory>(
        &mut self,
        batch: &mut [Option<Parsed<'_, '_>>],
        memory: &M,
    ) -> Completed {
        let mut transfers = self.transfers.batch();
        if batch.iter().flatten().nth(1).is_some() && self.target.has_file() {
            for (number, parsed) in batch.iter_mut().flatten().enumerate() {
                let what = (&parsed.request.task.command, parsed.request.data);
                if let Err(wrong) = self.target.add(number, what, memory, &mut transfers) {
                    parsed.wrong = Some(wrong);
                    break;
                }
            }
        }
        self.target.run(transfers)
    }

    /// Does what a request asks, as far as there is time.
    fn execute<M: DeviceMemory>(
        &mut self,
        request: &mut BlockRequest<'_>,
        memory: &M,
        deadline: &Deadline,
    ) -> Result<Progress, TargetError> {
        let (data, Task { command, done }) = (request.data, &mut request.task);
        match command {
            BlockCommand::Read { sector } => {
                self.target.read(*sector, data, done, memory, deadline)
            }
            BlockCommand::Write { sector } => {
                self.target.write(*sector, data, done, memory, deadline)
            }
            BlockCommand::Flush => self.target.flush().map(|()| Progress::Done),
            BlockCommand::GetId => {
                data.copy_from(memory, &self.serial)?;
                Ok(Progress::Done)
            }
            BlockCommand::Change { change: RangeChange::Discard, .. } if self.refuses_discard() => {
                Err(TargetError::Unsupported)
            }
            BlockCommand::Change { change, ranges } => self.change(*change, ranges, done, deadline),
            BlockCommand::Unsupported => Err(TargetError::Unsupported),
        }
    }

    /// Whether a discard is an error: of a driver that was told so. One that negotiated it earlier
    /// has it done, by doing nothing.
    fn refuses_discard(&self) -> bool {
        self.target.discard_mode() == Discard::Refused
            && self.driver_features & 1 << VIRTIO_BLK_F_DISCARD == 0
    }

    /// Discards or zeroes ranges, and takes out those that are done. All of them are inside the
    /// disk, or none is changed.
    fn change(
        &mut self,
        change: RangeChange,
        ranges: &mut VecDeque<Range>,
        done: &mut u64,
        deadline: &Deadline,
    ) -> Result<Progress, TargetError> {
        ranges.iter().try_for_each(|range| self.target.check_range(*range))?;
        while let Some(range) = ranges.front() {
            if self.target.change(change, *range, done, deadline)? == Progress::Unfinished {
                return Ok(Progress::Unfinished);
            }
            ranges.pop_front();
            *done = 0;
            if deadline.is_over() && !ranges.is_empty() {
                return Ok(Progress::Unfinished);
            }
        }
        Ok(Progress::Done)
    }

    /// Tells the driver how a request went.
    fn answer<M: DeviceMemory>(
        &self,
        request: &VirtioRequest,
        parsed: Parsed<'_, '_>,
        outcome: Result<(), TargetError>,
        memory: &M,
        answers: &mut Completions<'_>,
    ) -> Result<(), Fault> {
        let status = self.status(outcome, memory)?;
        self.count(&parsed.request, status);
        parsed.place.into_iter().for_each(|mut byte| byte.copy_from(&[status as u8]));
        memory.copied(STATUS_SIZE.into());
        let data = if status == BlockStatus::Ok { parsed.request.bytes_in() } else { 0 };
        answers.push(request, data + STATUS_SIZE);
        Ok(())
    }

    /// What the driver is told of an outcome. A fault that is the guest's own costs it the device.
    fn status<M: DeviceMemory>(
        &self,
        outcome: Result<(), TargetError>,
        memory: &M,
    ) -> Result<BlockStatus, Fault> {
        match outcome {
            Ok(()) => Ok(BlockStatus::Ok),
            Err(TargetError::Guest(Fault::Memory { source, .. }))
                if memory.is_shortage(&source) =>
            {
                self.stats.log.line(Level::WARN, format_args!("request failed: {source}"));
                Ok(BlockStatus::IoError)
            }
            Err(TargetError::Guest(fault)) => Err(fault),
            Err(TargetError::Unsupported) => Ok(BlockStatus::Unsupported),
            Err(error) => {
                self.stats
                    .log
                    .line(Level::WARN, format_args!("request failed: {}", Causes(&error)));
                Ok(BlockStatus::IoError)
            }
        }
    }

    fn count(&self, request: &BlockRequest<'_>, status: BlockStatus) {
        if status != BlockStatus::Ok {
            DeviceStats::count(&self.stats.failed);
            return;
        }
        let add = |counter: &std::sync::atomic::AtomicU64, bytes| {
            counter.fetch_add(bytes, Ordering::Relaxed);
        };
        let length = request.data.length();
        match request.task.command {
            BlockCommand::Read { .. } => {
                DeviceStats::count(&self.stats.reads);
                add(&self.stats.bytes_read, length);
            }
            BlockCommand::Write { .. } => {
                DeviceStats::count(&self.stats.writes);
                add(&self.stats.bytes_written, length);
            }
            BlockCommand::Flush => DeviceStats::count(&self.stats.flushes),
            BlockCommand::Change { .. } => DeviceStats::count(&self.stats.discards),
            BlockCommand::GetId => DeviceStats::count(&self.stats.identities),
            BlockCommand::Unsupported => {}
        }
    }
}

impl<M: DeviceMemory> VirtioDevice<M> for Block {
    fn id(&self) -> DeviceId {
        DeviceId::Block
    }

    fn kind(&self) -> &'static str {
        "blk"
    }

    fn features(&self) -> u64 {
        let always = 1 << VIRTIO_BLK_F_SEG_MAX
            | 1 << VIRTIO_BLK_F_BLK_SIZE
            | 1 << VIRTIO_BLK_F_TOPOLOGY
            | 1 << VIRTIO_BLK_F_FLUSH
            | 1 << VIRTIO_BLK_F_MQ;
        let by_target = match (self.target.mode(), self.target.can_discard()) {
            (AccessMode::ReadOnly, _) => 1 << VIRTIO_BLK_F_RO,
            (AccessMode::ReadWrite, false) => 1 << VIRTIO_BLK_F_WRITE_ZEROES,
            (AccessMode::ReadWrite, true) => {
                1 << VIRTIO_BLK_F_WRITE_ZEROES | 1 << VIRTIO_BLK_F_DISCARD
            }
        };
        always | by_target
    }

    /// Discards too where the target cannot: they are done by doing nothing.
    fn accepted_features(&self) -> u64 {
        let offered = VirtioDevice::<M>::features(self);
        match self.target.mode() {
            AccessMode::ReadOnly => offered,
            AccessMode::ReadWrite => offered | 1 << VIRTIO_BLK_F_DISCARD,
        }
    }

    fn longest_request(&self) -> u64 {
        request::LONGEST
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE; QUEUES as usize]
    }

    fn config(&self) -> &[u8] {
        &self.config
    }

    /// A driver that cannot flush has every write last (virtio 1.3 section 5.2.6.2).
    fn start(&mut self, features: u64) -> Result<(), Fault> {
        self.driver_features = features;
        let flushes = features & 1 << VIRTIO_BLK_F_FLUSH != 0;
        let mode = if flushes { WriteMode::Back } else { WriteMode::Through };
        if let Err(error) = self.target.start(mode) {
            self.stats
                .log
                .line(Level::WARN, format_args!("requests will fail: {}", Causes(&error)));
        }
        Ok(())
    }

    fn reset(&mut self) {
        self.suspended = Default::default();
        self.driver_features = 0;
        if let Err(error) = self.target.stop() {
            self.stats
                .log
                .line(Level::WARN, format_args!("disk not written back: {}", Causes(&error)));
        }
    }

    fn reset_queue(&mut self, index: usize) {
        if let Some(place) = self.suspended.get_mut(index) {
            *place = None;
        }
    }

    fn work_source(&self) -> WorkSource {
        WorkSource::Driver
    }

    fn process(&mut self, index: usize, queues: &mut QueueContext<'_, M>) -> Result<(), Fault> {
        let suspended = self.suspended.get_mut(index).and_then(Option::take);
        let waiting = suspended.unwrap_or_else(|| {
            let (requests, fault) = queues.fetch(index, BATCH);
            Suspended { requests, task: None, fault }
        });
        if waiting.requests.is_empty() {
            queues.recycle(waiting.requests);
            queues.mark_idle(index);
            return waiting.fault.map_or(Ok(()), Err);
        }
        self.serve_requests(index, waiting, queues)
    }

    fn sources(&self) -> Vec<Source<'_>> {
        self.target.size_source().into_iter().collect()
    }

    /// The target's size may have changed: the guest is told by its configuration.
    fn handle_sources(&mut self, _queues: &mut QueueContext<'_, M>) -> Result<(), Fault> {
        match self.target.refresh() {
            Ok(true) => {
                self.config = config::bytes(&self.target, QUEUES, QUEUE_SIZE);
                self.config_changed = true;
                let sectors = self.target.sectors();
                self.stats.log.line(Level::INFO, format_args!("disk has {sectors} sectors now"));
            }
            Ok(false) => {}
            Err(error) => {
                self.stats
                    .log
                    .line(Level::WARN, format_args!("size not known: {}", Causes(&error)));
            }
        }
        Ok(())
    }

    fn take_config_change(&mut self) -> bool {
        std::mem::take(&mut self.config_changed)
    }
}
