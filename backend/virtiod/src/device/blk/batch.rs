//! A batch of requests: what can be answered at once is, and the rest is handed over.

use std::io;
use std::sync::Arc;

use super::answer::Answer;
use super::disk_file::{DiskFile, Store};
use super::facts::Extent;
use super::image::Located;
use super::in_flight::{Carrier, HeldBatch, InFlight};
use super::latency::{AnsweredAtOnce, Moment};
use super::request::{BlockCommand, BlockRequest, LONGEST, MAX_DATA, Range, RangeChange, Task};
use super::submit::note_write_loss;
use super::target::{PART_BYTES, TargetError};
use super::worker::{Job, RequestJob};
use super::{AccessMode, BATCH, Block, Discard, STATUS_SIZE, VIRTIO_BLK_F_DISCARD, WriteMode};
use crate::device::{
    Buffer, Buffers, DeviceMemory, Fault, Gather, QueueContext, Requests, Scatter, VirtioRequest,
    probes,
};
use crate::stats::Tick;

/// The status of an unfinished request: no value of the specification. The device may write a
/// device-writable buffer at any time before it returns the request.
const PENDING: u8 = 0xff;

/// What is left to do of a request.
enum Rest {
    /// The engine transfers its data.
    Transfer(Arc<DiskFile>),
    /// The engine transfers its data, which is elsewhere than its sectors say.
    Located(Box<Located>),
    /// It waits for a sync of this file.
    Sync(Arc<DiskFile>),
    /// Its data is zeros: the worker zeroes this range.
    Zero(Range),
    /// The worker does it, with this data.
    Job(Vec<u8>),
}

/// A request of a batch that is not answered at once.
struct Unanswered {
    /// Its number in the batch.
    number: usize,
    command: BlockCommand,
    rest: Rest,
}

impl Unanswered {
    fn uses_buffers(&self) -> bool {
        !matches!(self.rest, Rest::Job(_) | Rest::Zero(_))
    }
}

/// Whether it is worth a system call to ask the page cache before storage.
#[derive(Debug, Default)]
pub(super) struct CachedReads {
    /// Reads in succession that the page cache did not have.
    missed: u32,
    /// The file system cannot tell.
    is_unsupported: bool,
}

impl CachedReads {
    /// Number of misses after which only every such read asks.
    const PATIENCE: u32 = 8;

    fn is_worthwhile(&mut self) -> bool {
        let asks = self.missed < Self::PATIENCE || self.missed.is_multiple_of(Self::PATIENCE);
        if !asks {
            self.missed = self.missed.wrapping_add(1).max(Self::PATIENCE);
        }
        asks && !self.is_unsupported
    }

    /// Takes the answer; returns whether the bytes were read.
    fn take(&mut self, outcome: io::Result<bool>) -> io::Result<bool> {
        match outcome {
            Ok(true) => self.missed = 0,
            Ok(false) => self.missed = self.missed.wrapping_add(1).max(1),
            Err(error) if error.kind() == io::ErrorKind::Unsupported => {
                self.is_unsupported = true;
                return Ok(false);
            }
            Err(error) => return Err(error),
        }
        outcome
    }
}

const _: () = assert!(BATCH <= u32::BITS as usize, "a request of a batch has a bit");

/// The bit of a request's number in a batch.
fn bit(number: usize) -> u32 {
    u32::try_from(number).ok().and_then(|number| 1u32.checked_shl(number)).unwrap_or(0)
}

/// What became of a batch.
#[derive(Default)]
struct Judged {
    /// Number of requests before the first fault.
    count: usize,
    /// Requests that are answered: their heads, and the numbers of bytes written. Only the first
    /// `answered` are set.
    done: [(u16, u32); BATCH],
    answered: usize,
    /// Bytes of their buffers together.
    bytes: u64,
    /// Those that succeeded.
    succeeded: AnsweredAtOnce,
    /// The other requests, in order.
    left: Vec<Unanswered>,
    /// A bit for the number of each that waits because the disk is paused.
    kept: u32,
}

impl Judged {
    #[inline]
    fn answer(&mut self, request: &VirtioRequest, Answer { written, succeeded }: Answer) {
        if let Some(operation) = succeeded {
            self.succeeded.add(operation);
        }
        if let Some(place) = self.done.get_mut(self.answered) {
            *place = (request.head, written);
            self.answered += 1;
            self.bytes += request.length();
        }
    }

    fn is_kept(&self, number: usize) -> bool {
        self.kept & bit(number) != 0
    }

    fn done(&self) -> &[(u16, u32)] {
        self.done.get(..self.answered).unwrap_or(&[])
    }

    /// The buffers that the device may have written of the answered requests.
    fn written(&self, requests: &[VirtioRequest]) -> impl Iterator<Item = Buffer> {
        let is_left = |number: &usize| {
            self.left.iter().any(|left| left.number == *number) || self.is_kept(*number)
        };
        let judged = requests.iter().take(self.count).enumerate();
        let answered = judged.filter(move |(number, _)| !is_left(number));
        answered.flat_map(|(_, request)| request.writable().buffers())
    }
}

impl Block {
    /// Begins a batch of requests, and answers those that need no waiting.
    ///
    /// # Errors
    /// The first [`Fault`]; requests before it are served.
    pub(super) fn begin<M: DeviceMemory>(
        &mut self,
        index: usize,
        mut requests: Requests,
        queues: &mut QueueContext<'_, M>,
    ) -> Result<(), Fault> {
        let begun = self.latency.begin(Moment::now);
        queues.prepare(&requests);
        let mut judged = Judged::default();
        let outcome = self.judge_all(index, &requests, queues.memory(), &mut judged);
        if let Err(fault) = outcome {
            self.known.clear();
            self.set_fault(index, Some(fault));
        }
        let uses_buffers = judged.left.iter().any(Unanswered::uses_buffers);
        if uses_buffers && queues.memory().has_mappings() {
            // What is mapped for a request is unmapped before that is returned [3.5].
            queues.complete(index, judged.done(), judged.bytes)?;
            self.time_answered(&judged, begun);
            self.hand_over(index, &mut requests, judged.left, &mut |request| {
                hold_alone(request, queues)
            });
            queues.recycle(requests);
            return Ok(());
        }
        let mut written = Ok(());
        if !judged.left.is_empty() {
            let held = uses_buffers.then(|| Arc::new(HeldBatch(queues.hold())));
            written = held.as_ref().map_or(Ok(()), |held| {
                held.0.write_back(&mut judged.written(&requests)).map_err(Fault::WriteBack)
            });
            let left = std::mem::take(&mut judged.left);
            self.hand_over(index, &mut requests, left, &mut |_| {
                held.clone().ok_or(Fault::Internal("a batch does not hold its buffers"))
            });
        }
        queues.complete(index, judged.done(), judged.bytes)?;
        self.time_answered(&judged, begun);
        queues.recycle(requests);
        written
    }

    /// Records the times of requests that were answered at once.
    fn time_answered(&mut self, judged: &Judged, begun: Option<Moment>) {
        let (answered, to) = (&judged.succeeded, &self.common.stats.latency);
        self.latency.answer_at_once(answered, begun, to, Moment::now);
    }

    /// Judges requests up to the first fault.
    fn judge_all<M: DeviceMemory>(
        &mut self,
        queue: usize,
        requests: &[VirtioRequest],
        memory: &M,
        judged: &mut Judged,
    ) -> Result<(), Fault> {
        let outcome = requests.iter().try_for_each(|request| {
            self.judge(queue, request, memory, judged)?;
            judged.count += 1;
            Ok(())
        });
        memory.copied(judged.answered as u64 * u64::from(STATUS_SIZE));
        outcome
    }

    fn judge<M: DeviceMemory>(
        &mut self,
        queue: usize,
        request: &VirtioRequest,
        memory: &M,
        judged: &mut Judged,
    ) -> Result<(), Fault> {
        let known = if self.may_hold_back { self.known.pop_front() } else { None };
        let parsed = match known {
            None => BlockRequest::parse(request, memory)?,
            Some(command) => BlockRequest::split_again(request, command?)?,
        };
        let kind = parsed.command.kind().unwrap_or(u32::MAX);
        probes::request_begin(queue, request.head, kind, request.length());
        // Before the data, so that the status can report data that cannot be reached.
        let mut status_byte = parsed.status_byte(memory)?;
        let outcome = if request.length() > LONGEST {
            Err(too_long(&parsed.command, request.length()))
        } else {
            self.step(&parsed, memory)
        };
        if let Ok(Some(rest)) = outcome {
            status_byte.copy_from(&[PENDING]);
            let (number, command) = (judged.count, parsed.command);
            judged.left.push(Unanswered { number, command, rest });
            probes::request_wait(queue, request.head);
            return Ok(());
        }
        let outcome = match outcome {
            Ok(_) => Ok(()),
            Err(error) if self.keeps_failed(queue, request, &parsed.command, &error) => {
                status_byte.copy_from(&[PENDING]);
                judged.kept |= bit(judged.count);
                return Ok(());
            }
            Err(error) => Err(error),
        };
        let answer = self.conclude(&parsed, outcome, memory, |status| {
            status_byte.copy_from(&[status]);
            Ok(())
        })?;
        probes::request_end(queue, request.head, answer.written);
        judged.answer(request, answer);
        Ok(())
    }

    /// Does what can be done of a request at once. Returns the rest, if it is not complete.
    fn step<M: DeviceMemory>(
        &mut self,
        request: &BlockRequest<'_>,
        memory: &M,
    ) -> Result<Option<Rest>, TargetError> {
        let data = request.data;
        match (&request.command, &self.facts.file) {
            (BlockCommand::Unsupported, _) => Err(TargetError::Unsupported),
            (BlockCommand::GetId, _) => {
                data.copy_from(memory, &self.common.serial)?;
                Ok(None)
            }
            (BlockCommand::Change { change: RangeChange::Discard, .. }, _)
                if self.refuses_discard() =>
            {
                Err(TargetError::Unsupported)
            }
            (BlockCommand::Flush, _) => match self.sync_file() {
                Some(file) => self.sync_at_once(file),
                None => Ok(Some(Rest::Job(Vec::new()))),
            },
            (BlockCommand::Change { .. }, _) => Ok(Some(Rest::Job(Vec::new()))),
            (BlockCommand::Read { sector }, None) => {
                self.in_place(request, *sector, AccessMode::ReadOnly, memory)
            }
            (BlockCommand::Read { sector }, Some(file)) => {
                let extent = Extent::of_data(*sector, data.length(), self.facts.sectors)?;
                read_at_once(&mut self.cached_reads, extent, data, memory, file)
            }
            (BlockCommand::Write { sector }, file) => {
                if let Some(range) = self.zeroed_by(*sector, data, memory)? {
                    return Ok(Some(Rest::Zero(range)));
                }
                match file {
                    Some(file) => self.write_file(*sector, data, memory, file),
                    None => self.in_place(request, *sector, AccessMode::ReadWrite, memory),
                }
            }
        }
    }

    /// Writes to a raw target's file, or leaves it to the engine.
    fn write_file<M: DeviceMemory>(
        &self,
        sector: u64,
        data: Buffers<'_>,
        memory: &M,
        file: &Arc<DiskFile>,
    ) -> Result<Option<Rest>, TargetError> {
        self.facts.check_writable()?;
        if self.facts.write_mode == WriteMode::Through {
            self.check_durable(file)?;
        }
        let extent = Extent::of_data(sector, data.length(), self.facts.sectors)?;
        self.write_at_once(extent, data, memory, file)
    }

    /// The file that a flush has to sync; `None` if the worker has to do more.
    fn sync_file(&self) -> Option<&Arc<DiskFile>> {
        let by_image = || self.facts.sync_file.as_ref().filter(|_| !self.worker.has_unwritten());
        self.facts.file.as_ref().or_else(by_image)
    }

    fn sync_at_once(&self, file: &Arc<DiskFile>) -> Result<Option<Rest>, TargetError> {
        match file.store {
            // It has nothing to write.
            Store::Memory => self.check_durable(file).map(|()| None),
            Store::Slow | Store::Direct => Ok(Some(Rest::Sync(Arc::clone(file)))),
        }
    }

    /// As [`Block::step`], for a transfer of an image that is not its sectors in order: leaves to
    /// the worker what it knows no place of.
    #[inline(never)]
    fn in_place<M: DeviceMemory>(
        &mut self,
        request: &BlockRequest<'_>,
        sector: u64,
        access: AccessMode,
        memory: &M,
    ) -> Result<Option<Rest>, TargetError> {
        let data = request.data;
        let located = match (&self.facts.in_place, access, self.facts.access) {
            // The worker refuses it.
            (None, ..) | (_, AccessMode::ReadWrite, AccessMode::ReadOnly) => None,
            (Some(image), ..) => {
                let extent = Extent::of_data(sector, data.length(), self.facts.sectors)?;
                let range = extent.offset..extent.offset + extent.bytes;
                Arc::clone(image).locate(range, access)
            }
        };
        let Some(located) = located else { return Ok(Some(Rest::Job(job_data(request, memory)?))) };
        let file = Arc::clone(&located.file);
        let extent = Extent { offset: located.offset, bytes: data.length() };
        let step = match access {
            AccessMode::ReadOnly => {
                read_at_once(&mut self.cached_reads, extent, data, memory, &file)?
            }
            AccessMode::ReadWrite => {
                if self.facts.write_mode == WriteMode::Through {
                    self.check_durable(&file)?;
                }
                self.write_at_once(extent, data, memory, &file)?
            }
        };
        Ok(match step {
            Some(Rest::Transfer(_)) => Some(Rest::Located(Box::new(located))),
            other => other,
        })
    }

    /// Whether a discard is an error: only if the driver did not negotiate discards. For a driver
    /// that negotiated them earlier, a refused discard succeeds and does nothing.
    fn refuses_discard(&self) -> bool {
        self.facts.discard == Discard::Refused
            && self.driver_features & 1 << VIRTIO_BLK_F_DISCARD == 0
    }

    /// A driver without flush cannot write after data was lost, and no driver can flush.
    fn check_durable(&self, file: &DiskFile) -> Result<(), TargetError> {
        if file.durability.is_lost() { Err(TargetError::Lost) } else { Ok(()) }
    }

    /// Writes to memory, or leaves it to the engine.
    fn write_at_once<M: DeviceMemory>(
        &self,
        Extent { offset, bytes }: Extent,
        data: Buffers<'_>,
        memory: &M,
        file: &Arc<DiskFile>,
    ) -> Result<Option<Rest>, TargetError> {
        // A request with a malformed last buffer changes nothing on the disk.
        data.readable(memory).try_for_each(|buffer| buffer.map(drop))?;
        if file.store != Store::Memory || bytes > PART_BYTES as u64 {
            return Ok(Some(Rest::Transfer(Arc::clone(file))));
        }
        let mut at = offset;
        let mut gather = Gather::default();
        for buffer in data.readable(memory) {
            if let Err(buffer) = gather.push(buffer?) {
                self.write_now(file, at, &gather)?;
                at += gather.length() as u64;
                gather = Gather::default();
                // An empty vector has capacity for one piece.
                drop(gather.push(buffer));
            }
        }
        self.write_now(file, at, &gather)?;
        Ok(None)
    }

    fn write_now(&self, file: &DiskFile, at: u64, from: &Gather<'_>) -> Result<(), TargetError> {
        let mode = self.facts.write_mode;
        Ok(file.write(at, from, mode).inspect_err(|error| note_write_loss(mode, error, file))?)
    }

    /// Hands requests to the engine and the worker; leaves the others in the list.
    fn hand_over(
        &mut self,
        queue: usize,
        requests: &mut Requests,
        left: Vec<Unanswered>,
        hold: &mut dyn FnMut(&VirtioRequest) -> Result<Arc<HeldBatch>, Fault>,
    ) {
        let begun = self.latency.begin_rest(Tick::now(), Moment::now);
        let mut left = left.into_iter().peekable();
        let (mut transfers, mut jobs) = (Vec::new(), Vec::new());
        let mut answered = Vec::new();
        for (number, request) in requests.drain().enumerate() {
            let next = left.next_if(|next| next.number == number);
            let Some(Unanswered { command, rest, .. }) = next else {
                answered.push(request);
                continue;
            };
            let (file, located) = match rest {
                Rest::Transfer(file) | Rest::Sync(file) => (file, None),
                Rest::Located(located) => (Arc::clone(&located.file), Some(located)),
                Rest::Job(data) => {
                    let entry = InFlight::new(queue, request, command, Carrier::Worker, begun);
                    let job = entry.command.clone();
                    jobs.push(self.add_job(entry, job, data));
                    continue;
                }
                Rest::Zero(range) => {
                    let entry = InFlight::new(queue, request, command, Carrier::Worker, begun);
                    jobs.push(self.add_job(entry, range.zeroed(), Vec::new()));
                    continue;
                }
            };
            let held = hold(&request);
            let mut entry = InFlight::new(queue, request, command, Carrier::Worker, begun);
            entry.located = located;
            transfers.extend(self.add_transfer(entry, file, held));
        }
        answered.into_iter().for_each(|request| requests.push(request));
        if !jobs.is_empty() {
            self.worker.add_all(jobs);
        }
        self.submit(&transfers);
        self.begin_sync();
        self.commit();
    }

    /// Adds a request that the worker carries out by `command`; returns its job.
    fn add_job(&mut self, entry: InFlight, command: BlockCommand, data: Vec<u8>) -> Job {
        let task = Task { command, done: 0 };
        let (part, queue) = (self.worker.part(), entry.queue);
        let slot = self.in_flight.add(entry);
        Job::Request(RequestJob { part, slot, queue, task, data })
    }

    /// Adds a request of the engine's, whose buffers are `held`; returns its slot if it is a
    /// transfer, and not a sync.
    fn add_transfer(
        &mut self,
        mut entry: InFlight,
        file: Arc<DiskFile>,
        held: Result<Arc<HeldBatch>, Fault>,
    ) -> Option<usize> {
        let is_sync = entry.command == BlockCommand::Flush;
        let fault = match held {
            Ok(held) => {
                entry.carrier = Carrier::Engine { held, file };
                None
            }
            Err(fault) => Some(fault),
        };
        let slot = self.in_flight.add(entry);
        match fault {
            Some(fault) => self.end_request(slot, Err(TargetError::Guest(fault)), Vec::new()),
            None if is_sync => self.syncs.add(slot),
            None => return Some(slot),
        }
        None
    }
}

/// The error of a request that is longer than any may be, whether or not its command needs all of
/// its buffers: none of them is mapped.
#[cold]
fn too_long(command: &BlockCommand, bytes: u64) -> TargetError {
    let sector = match command {
        BlockCommand::Read { sector } | BlockCommand::Write { sector } => *sector,
        _ => 0,
    };
    TargetError::Range { sector, bytes }
}

/// Makes the buffers of one request reachable, for its operation alone.
fn hold_alone<M: DeviceMemory>(
    request: &VirtioRequest,
    queues: &mut QueueContext<'_, M>,
) -> Result<Arc<HeldBatch>, Fault> {
    queues.prepare(std::slice::from_ref(request));
    let memory = queues.memory();
    let touched = request.readable().readable(memory).try_for_each(|buffer| buffer.map(drop));
    let touched = touched
        .and_then(|()| request.writable().writable(memory).try_for_each(|buffer| buffer.map(drop)));
    let held = queues.hold();
    touched.map(|()| Arc::new(HeldBatch(held)))
}

/// Reads from memory or the page cache, or leaves it to the engine.
fn read_at_once<M: DeviceMemory>(
    cached_reads: &mut CachedReads,
    Extent { offset, bytes }: Extent,
    data: Buffers<'_>,
    memory: &M,
    file: &Arc<DiskFile>,
) -> Result<Option<Rest>, TargetError> {
    let is_short = bytes <= PART_BYTES as u64 && offset + bytes <= file.bytes;
    match file.store {
        Store::Memory if is_short => {
            read_all(file, offset, data, memory)?;
            return Ok(None);
        }
        Store::Slow if is_short && cached_reads.is_worthwhile() => {
            let mut scatter = Scatter::default();
            if fill(&mut scatter, data, memory)?
                && cached_reads.take(file.read_cached(offset, &scatter))?
            {
                return Ok(None);
            }
        }
        Store::Memory | Store::Slow | Store::Direct => {}
    }
    // An error of the guest's is found before anything is read.
    data.writable(memory).try_for_each(|buffer| buffer.map(drop))?;
    Ok(Some(Rest::Transfer(Arc::clone(file))))
}

/// Adds the buffers for a read to `scatter`; returns whether it has room for all.
fn fill<'m, M: DeviceMemory>(
    scatter: &mut Scatter<'m>,
    data: Buffers<'_>,
    memory: &'m M,
) -> Result<bool, Fault> {
    for buffer in data.writable(memory) {
        if scatter.push(buffer?).is_err() {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Reads into all buffers, at once.
fn read_all<M: DeviceMemory>(
    file: &DiskFile,
    mut offset: u64,
    data: Buffers<'_>,
    memory: &M,
) -> Result<(), TargetError> {
    let mut scatter = Scatter::default();
    for buffer in data.writable(memory) {
        if let Err(buffer) = scatter.push(buffer?) {
            file.read(offset, &scatter)?;
            offset += scatter.length() as u64;
            scatter = Scatter::default();
            // An empty vector has capacity for one piece.
            drop(scatter.push(buffer));
        }
    }
    Ok(file.read(offset, &scatter)?)
}

/// The data of a request for the worker: what it writes, or room for what it reads.
fn job_data<M: DeviceMemory>(
    request: &BlockRequest<'_>,
    memory: &M,
) -> Result<Vec<u8>, TargetError> {
    let length = request.data.length();
    let (sector, writes) = match request.command {
        BlockCommand::Read { sector } => (sector, false),
        BlockCommand::Write { sector } => (sector, true),
        _ => return Ok(Vec::new()),
    };
    if length > MAX_DATA {
        return Err(TargetError::Range { sector, bytes: length });
    }
    let mut data = vec![0; length as usize];
    if writes {
        request.data.copy_to(memory, &mut data)?;
    } else {
        request.data.writable(memory).try_for_each(|buffer| buffer.map(drop))?;
    }
    Ok(data)
}
