//! The answers to requests that have ended: data that the worker read, status, used buffers.

use std::iter::Peekable;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tracing::Level;

use super::in_flight::{Carrier, Ended, HeldBatch, InFlight};
use super::latency::AnswerMoment;
use super::request::{BlockCommand, BlockRequest, BlockStatus};
use super::target::TargetError;
use super::{Block, STATUS_SIZE};
use crate::Causes;
use crate::device::{
    BATCH, BATCH_PAGES, Buffer, DeviceMemory, Fault, QueueContext, VirtioRequest, probes,
};
use crate::stats::{DeviceStats, Operation};

/// The status for an outcome. A fault that the guest caused stops the device.
#[inline]
fn status_of<M: DeviceMemory>(
    outcome: Result<(), TargetError>,
    memory: &M,
    stats: &DeviceStats,
) -> Result<BlockStatus, Fault> {
    outcome.map_or_else(|error| status_of_error(error, memory, stats), |()| Ok(BlockStatus::Ok))
}

#[cold]
fn status_of_error<M: DeviceMemory>(
    error: TargetError,
    memory: &M,
    stats: &DeviceStats,
) -> Result<BlockStatus, Fault> {
    match error {
        TargetError::Guest(Fault::Memory { source, .. }) if memory.is_shortage(&source) => {
            stats.log.line(Level::WARN, format_args!("request failed: {source}"));
            Ok(BlockStatus::IoError)
        }
        TargetError::Guest(fault) => Err(fault),
        TargetError::Unsupported => Ok(BlockStatus::Unsupported),
        error => {
            stats.log.line(Level::WARN, format_args!("request failed: {}", Causes(&error)));
            Ok(BlockStatus::IoError)
        }
    }
}

/// The answer to a request.
pub(super) struct Answer {
    /// Number of bytes written into its buffers.
    pub(super) written: u32,
    /// The operation, if it is one that is timed and has succeeded.
    pub(super) succeeded: Option<Operation>,
}

/// Buffers of one batch that are copies, and have to be written back.
#[derive(Default)]
struct WriteBack {
    held: Option<Arc<HeldBatch>>,
    buffers: Vec<Buffer>,
}

impl WriteBack {
    /// Adds a request's buffers; writes those of another batch back before.
    fn add(&mut self, held: &Arc<HeldBatch>, request: &VirtioRequest) -> Result<(), Fault> {
        if self.held.as_ref().is_some_and(|before| !Arc::ptr_eq(before, held)) {
            self.finish()?;
        }
        if held.0.has_copies() {
            self.held = Some(Arc::clone(held));
            self.buffers.extend(request.writable().buffers());
        }
        Ok(())
    }

    fn finish(&mut self) -> Result<(), Fault> {
        let Some(held) = self.held.take() else { return Ok(()) };
        let written = held.0.write_back(&mut self.buffers.drain(..));
        written.map_err(Fault::WriteBack)
    }
}

/// The next requests, as many as are made reachable together.
fn next_batch(ended: &mut Peekable<impl Iterator<Item = Ended>>) -> Vec<Ended> {
    let (mut batch, mut pages) = (Vec::new(), 0);
    while batch.len() < BATCH && pages < BATCH_PAGES {
        let Some(next) = ended.next() else { break };
        pages += next.entry.request.pages();
        batch.push(next);
    }
    batch
}

impl Block {
    /// Answers the requests that have ended.
    ///
    /// # Errors
    /// The first [`Fault`]; of its queue, other requests may stay unanswered too.
    pub(super) fn answer_ended<M: DeviceMemory>(
        &mut self,
        queues: &mut QueueContext<'_, M>,
    ) -> Result<(), Fault> {
        let mut ended = std::mem::take(&mut self.ended);
        ended.retain(|ended| ended.entry.is_wanted);
        if self.pause.is_possible() {
            ended.retain(|ended| !self.keeps(ended));
        }
        let (mut outcome, mut at) = (Ok(()), AnswerMoment::default());
        let kind = |ended: &Ended| (ended.entry.queue, ended.entry.is_by_worker());
        // Stable: buffers that were mapped together are written back together.
        ended.sort_by_key(kind);
        while let Some(first) = ended.first() {
            let (queue, is_by_worker) = kind(first);
            let count = ended.partition_point(|ended| kind(ended) == (queue, is_by_worker));
            let some = ended.drain(..count);
            let answered = match is_by_worker {
                true => self.answer_by_worker(queue, some, &mut at, queues),
                false => self.answer_by_engine(queue, some, &mut at, queues),
            };
            outcome = outcome.and(answered);
        }
        // It is empty; the allocation is kept.
        self.ended = ended;
        outcome
    }

    /// Whether a request that has ended waits because the disk is paused.
    fn keeps(&mut self, ended: &Ended) -> bool {
        let Ended { entry, outcome, .. } = ended;
        outcome.as_ref().is_err_and(|error| {
            self.keeps_failed(entry.queue, &entry.request, &entry.command, error)
        })
    }

    /// Answers requests whose data is in their buffers, which they hold.
    fn answer_by_engine<M: DeviceMemory>(
        &mut self,
        queue: usize,
        ended: impl Iterator<Item = Ended>,
        at: &mut AnswerMoment,
        queues: &mut QueueContext<'_, M>,
    ) -> Result<(), Fault> {
        let (mut done, mut bytes) = (std::mem::take(&mut self.done), 0);
        done.clear();
        let mut back = WriteBack::default();
        let mut outcome = Ok(());
        let mut requests = queues.take_list();
        for Ended { entry, outcome: result, .. } in ended {
            let InFlight { request, command, carrier, begun, .. } = entry;
            if let Carrier::Engine { held, .. } = &carrier {
                let memory = queues.memory();
                let answered = self.write_status(&request, command, result, held, memory);
                let answered = answered.and_then(|Answer { written, succeeded }| {
                    back.add(held, &request)?;
                    probes::request_end(queue, request.head, written);
                    done.push((request.head, written));
                    bytes += request.length();
                    if let Some(operation) = succeeded {
                        self.latency.answer_later(operation, begun, at, &self.common.stats.latency);
                    }
                    Ok(())
                });
                outcome = outcome.and(answered);
            }
            requests.push(request);
        }
        outcome = outcome.and(back.finish());
        queues.recycle(requests);
        if outcome.is_ok() {
            queues.complete(queue, &done, bytes)?;
        }
        self.done = done;
        outcome
    }

    /// Writes a request's status.
    fn write_status<M: DeviceMemory>(
        &self,
        request: &VirtioRequest,
        command: BlockCommand,
        outcome: Result<(), TargetError>,
        held: &HeldBatch,
        memory: &M,
    ) -> Result<Answer, Fault> {
        let request = BlockRequest::split_again(request, command)?;
        let answer = self.conclude(&request, outcome, memory, |status| {
            request.status.for_each_held(held.0.as_ref(), |byte| {
                byte.copy_from(&[status]);
                Ok(())
            })
        })?;
        memory.copied(STATUS_SIZE.into());
        Ok(answer)
    }

    /// Answers requests that the worker did, whose buffers are made reachable again.
    fn answer_by_worker<M: DeviceMemory>(
        &mut self,
        queue: usize,
        ended: impl Iterator<Item = Ended>,
        at: &mut AnswerMoment,
        queues: &mut QueueContext<'_, M>,
    ) -> Result<(), Fault> {
        let mut ended = ended.peekable();
        while ended.peek().is_some() {
            self.answer_some_by_worker(queue, next_batch(&mut ended), at, queues)?;
        }
        Ok(())
    }

    /// Answers a batch of requests that the worker did.
    fn answer_some_by_worker<M: DeviceMemory>(
        &mut self,
        queue: usize,
        ended: Vec<Ended>,
        at: &mut AnswerMoment,
        queues: &mut QueueContext<'_, M>,
    ) -> Result<(), Fault> {
        let mut requests = queues.take_list();
        let mut rest = Vec::with_capacity(ended.len());
        for Ended { entry: InFlight { request, command, begun, .. }, outcome, data } in ended {
            requests.push(request);
            rest.push((command, begun, outcome, data));
        }
        let mut latency = std::mem::take(&mut self.latency);
        let answered = queues.process_fetched(queue, &requests, |requests, memory, done| {
            requests.iter().zip(rest).try_for_each(|(request, (command, begun, outcome, data))| {
                let parsed = BlockRequest::split_again(request, command)?;
                let outcome = outcome.and_then(|()| {
                    if matches!(parsed.command, BlockCommand::Read { .. }) {
                        parsed.data.copy_from(memory, &data)?;
                    }
                    Ok(())
                });
                let Answer { written, succeeded } =
                    self.conclude(&parsed, outcome, memory, |status| {
                        parsed.status_byte(memory)?.copy_from(&[status]);
                        Ok(())
                    })?;
                memory.copied(STATUS_SIZE.into());
                probes::request_end(queue, request.head, written);
                done.push(request, written);
                if let Some(operation) = succeeded {
                    latency.answer_later(operation, begun, at, &self.common.stats.latency);
                }
                Ok(())
            })
        });
        self.latency = latency;
        queues.recycle(requests);
        answered
    }

    /// Concludes a request: counts it, and has `write` write its status.
    pub(super) fn conclude<M: DeviceMemory>(
        &self,
        request: &BlockRequest<'_>,
        outcome: Result<(), TargetError>,
        memory: &M,
        write: impl FnOnce(u8) -> Result<(), Fault>,
    ) -> Result<Answer, Fault> {
        let status = status_of(outcome, memory, &self.common.stats)?;
        let succeeded = self.count(&request.command, request.data.length(), status);
        write(status as u8)?;
        Ok(Answer { written: request.written(status), succeeded })
    }

    /// Counts a request that is answered. Returns its operation, if that is timed and has
    /// succeeded.
    fn count(&self, command: &BlockCommand, length: u64, status: BlockStatus) -> Option<Operation> {
        if status != BlockStatus::Ok {
            DeviceStats::count(&self.common.stats.failed);
            return None;
        }
        let add = |counter: &AtomicU64, bytes| {
            counter.fetch_add(bytes, Ordering::Relaxed);
        };
        let (counter, operation) = match command {
            BlockCommand::Read { .. } => {
                add(&self.common.stats.bytes_read, length);
                (&self.common.stats.reads, Some(Operation::Read))
            }
            BlockCommand::Write { .. } => {
                add(&self.common.stats.bytes_written, length);
                (&self.common.stats.writes, Some(Operation::Write))
            }
            BlockCommand::Flush => (&self.common.stats.flushes, Some(Operation::Flush)),
            BlockCommand::Change { .. } => (&self.common.stats.discards, Some(Operation::Discard)),
            BlockCommand::GetId => (&self.common.stats.identities, None),
            BlockCommand::Unsupported => return None,
        };
        DeviceStats::count(counter);
        operation
    }
}
