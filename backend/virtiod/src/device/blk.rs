//! The block device (virtio 1.3 section 5.2).

mod claim;
mod config;
mod files;
mod image;
mod progress;
mod request;
#[cfg(any(test, feature = "sample-images"))]
#[allow(clippy::indexing_slicing, clippy::panic, reason = "test code: a panic fails the test")]
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

/// Number of queues that the device offers; the driver uses one per CPU, at most these.
const QUEUES: u16 = 4;
/// Number of entries of each queue.
const QUEUE_SIZE: u16 = 512;
/// Bytes of a request's status.
const STATUS_SIZE: u32 = 1;
/// Maximum time for which one call processes a queue. Then the rest waits for the next call, and
/// the bus handles everything else.
const SLICE: Duration = Duration::from_millis(10);

/// A block device.
pub struct Block {
    target: Target,
    config: [u8; config::SIZE],
    config_changed: bool,
    serial: [u8; SERIAL_SIZE],
    driver_features: u64,
    engine: IoEngine,
    /// For each queue, the requests that were taken from it and are not done.
    suspended: [Option<Suspended>; QUEUES as usize],
    stats: Arc<DeviceStats>,
}

/// Requests that were not done when the time was over.
struct Suspended {
    requests: Vec<VirtioRequest>,
    /// The rest of the first request, if it was begun.
    task: Option<Task>,
    /// The fault of the request behind the last one.
    fault: Option<Fault>,
}

/// A parsed request of a batch.
struct Parsed<'r, 'm> {
    request: BlockRequest<'r>,
    /// The buffer of the status byte.
    status_byte: Option<Writable<'m>>,
    /// The error that the check of its data found before any data was transferred.
    wrong: Option<TargetError>,
}

impl<'r, 'm> Parsed<'r, 'm> {
    /// Parses a request and reaches its status byte before its data, so that the status can report
    /// data that cannot be reached. `task`: the rest of a request that was begun.
    fn new<M: DeviceMemory>(
        request: &'r VirtioRequest,
        task: Option<Task>,
        memory: &'m M,
    ) -> Result<Self, Fault> {
        let request = match task {
            Some(task) => BlockRequest::resume(request, task)?,
            None => BlockRequest::parse(request, memory)?,
        };
        let status_byte = request.status.writable(memory).next().transpose()?;
        Ok(Self { request, status_byte, wrong: None })
    }
}

/// The status of an unfinished request: no value of the specification. The device may write a
/// device-writable buffer at any time before it returns the request.
const PENDING: u8 = 0xff;

/// The outcome of a batch.
#[derive(Default)]
struct BatchOutcome {
    /// Number of requests before the first malformed one; the others are dropped.
    good: usize,
    /// A bit for each request of them that was answered.
    answered: u64,
    /// The rest of the first unanswered request, if it was begun.
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

// `answered` has a bit for each request of a batch.
const _: () = assert!(BATCH <= u64::BITS as usize);

impl Block {
    /// A disk on `target`. The driver reads the first 20 bytes of `serial` as its identity.
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
            engine: IoEngine::default(),
            suspended: Default::default(),
            stats,
        }
    }

    /// Serves requests of a queue, whose first one may have been begun, and keeps those that are
    /// not done when the time is over.
    fn serve_requests<M: DeviceMemory>(
        &mut self,
        index: usize,
        mut waiting: Suspended,
        queues: &mut QueueContext<'_, M>,
    ) -> Result<(), Fault> {
        let deadline = Deadline::after(SLICE);
        let task = waiting.task.take();
        // A request that was begun is served alone, so that the buffers of the others need not be
        // made reachable for it.
        let now = if task.is_some() { 1 } else { BATCH };
        let later = waiting.requests.split_off(now.min(waiting.requests.len()));
        let batch = &waiting.requests;
        let written = task.as_ref().map_or(0, Task::written);
        let served =
            queues.process_fetched(index, batch, written, |requests, memory, completions| {
                self.serve_batch(requests, task, memory, completions, &deadline)
            })?;
        queues.reschedule(index);
        let mut rest = keep_unanswered(queues, waiting.requests, &served);
        let fault = served.fault.or(waiting.fault);
        rest.extend(later);
        if !rest.is_empty() {
            if let Some(slot) = self.suspended.get_mut(index) {
                *slot = Some(Suspended { requests: rest, task: served.task, fault });
            }
            return Ok(());
        }
        fault.map_or(Ok(()), Err)
    }
}

/// Parses requests, up to the first malformed one. `task`: the rest of the first request, if it was
/// begun.
fn parse<'r, 'm, M: DeviceMemory>(
    requests: &'r [VirtioRequest],
    mut task: Option<Task>,
    memory: &'m M,
    batch: &mut [Option<Parsed<'r, 'm>>; BATCH],
) -> BatchOutcome {
    let mut served = BatchOutcome::default();
    for (slot, request) in batch.iter_mut().zip(requests) {
        match Parsed::new(request, task.take(), memory) {
            Ok(parsed) => *slot = Some(parsed),
            Err(first) => {
                served.fault = Some(first);
                break;
            }
        }
        served.good += 1;
    }
    served
}

/// Recycles the allocations of answered requests, and returns the other requests.
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
    /// Serves a batch until the time is over. First transfers the data of reads and writes
    /// together, if that is possible.
    fn serve_batch<M: DeviceMemory>(
        &mut self,
        requests: &[VirtioRequest],
        task: Option<Task>,
        memory: &M,
        completions: &mut Completions<'_>,
        deadline: &Deadline,
    ) -> Result<BatchOutcome, Fault> {
        let mut batch = [const { None }; BATCH];
        let mut served = parse(requests, task, memory, &mut batch);
        let completed = self.transfer(&mut batch, memory);
        let mut progress = Progress::Done;
        for (number, (request, mut parsed)) in
            requests.iter().zip(batch.into_iter().flatten()).enumerate()
        {
            let begun = progress == Progress::Unfinished;
            let outcome = match parsed.wrong.take() {
                Some(wrong) => Err(wrong),
                None if completed.has(number) => Ok(Progress::Done),
                None if begun => Ok(Progress::Unfinished),
                None => self.execute(&mut parsed.request, memory, deadline),
            };
            if matches!(outcome, Ok(Progress::Unfinished)) {
                parsed.status_byte.into_iter().for_each(|mut byte| byte.copy_from(&[PENDING]));
                if !begun {
                    (progress, served.task) = (Progress::Unfinished, Some(parsed.request.task));
                }
                continue;
            }
            self.answer(request, parsed, outcome.map(drop), memory, completions)?;
            served.answered |= 1 << number;
            if !completed.has(number) && !served.is_whole() && deadline.is_over() {
                progress = Progress::Unfinished;
            }
        }
        if let Err(error) = self.target.finish_batch() {
            self.stats.log.line(
                Level::WARN,
                format_args!("cannot write cached data to the disk: {}", Causes(&error)),
            );
        }
        Ok(served)
    }

    /// Transfers the data of reads and writes together, up to the first request with an error.
    fn transfer<M: DeviceMemory>(
        &mut self,
        batch: &mut [Option<Parsed<'_, '_>>],
        memory: &M,
    ) -> Completed {
        let mut transfers = self.engine.batch();
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

    /// Carries out a request until the time is over.
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

    /// Whether a discard is an error: only if the driver did not negotiate discards. For a driver
    /// that negotiated them earlier, a refused discard succeeds and does nothing.
    fn refuses_discard(&self) -> bool {
        self.target.discard_mode() == Discard::Refused
            && self.driver_features & 1 << VIRTIO_BLK_F_DISCARD == 0
    }

    /// Discards or zeroes ranges, and removes those that are done. If one range is outside the
    /// disk, none is changed.
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

    /// Answers a request: writes its status and completes it.
    fn answer<M: DeviceMemory>(
        &self,
        request: &VirtioRequest,
        parsed: Parsed<'_, '_>,
        outcome: Result<(), TargetError>,
        memory: &M,
        completions: &mut Completions<'_>,
    ) -> Result<(), Fault> {
        let status = self.status(outcome, memory)?;
        self.count(&parsed.request, status);
        parsed.status_byte.into_iter().for_each(|mut byte| byte.copy_from(&[status as u8]));
        memory.copied(STATUS_SIZE.into());
        let data = if status == BlockStatus::Ok { parsed.request.bytes_in() } else { 0 };
        completions.push(request, data + STATUS_SIZE);
        Ok(())
    }

    /// The status for an outcome. A fault that the guest caused stops the device.
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

    /// Includes discards, even if the target cannot discard: they succeed and do nothing.
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

    /// Without flushes, every write must be durable when it completes (virtio 1.3 section 5.2.6.2).
    fn start(&mut self, features: u64) -> Result<(), Fault> {
        self.driver_features = features;
        let flushes = features & 1 << VIRTIO_BLK_F_FLUSH != 0;
        let mode = if flushes { WriteMode::Back } else { WriteMode::Through };
        if let Err(error) = self.target.start(mode) {
            self.stats.log.line(
                Level::WARN,
                format_args!("disk not usable, requests will fail: {}", Causes(&error)),
            );
        }
        Ok(())
    }

    fn reset(&mut self) {
        self.suspended = Default::default();
        self.driver_features = 0;
        if let Err(error) = self.target.stop() {
            self.stats.log.line(
                Level::WARN,
                format_args!("cannot write cached data to the disk: {}", Causes(&error)),
            );
        }
    }

    fn reset_queue(&mut self, index: usize) {
        if let Some(slot) = self.suspended.get_mut(index) {
            *slot = None;
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

    /// Checks the target's size, and reports a change in the configuration space.
    fn handle_sources(&mut self, _queues: &mut QueueContext<'_, M>) -> Result<(), Fault> {
        match self.target.refresh() {
            Ok(true) => {
                self.config = config::bytes(&self.target, QUEUES, QUEUE_SIZE);
                self.config_changed = true;
                let sectors = self.target.sectors();
                self.stats
                    .log
                    .line(Level::INFO, format_args!("disk resized: it has {sectors} sectors now"));
            }
            Ok(false) => {}
            Err(error) => {
                self.stats.log.line(
                    Level::WARN,
                    format_args!("cannot read the size of the disk: {}", Causes(&error)),
                );
            }
        }
        Ok(())
    }

    fn take_config_change(&mut self) -> bool {
        std::mem::take(&mut self.config_changed)
    }
}
