//! Transfers by the engine: adjacent ones joined, and what their ends mean.

use std::io;
use std::sync::Arc;

use uring::engine::Landed;
use uring::operation::{Operation, Work};
use uring::owned::{MOST_PIECES, OwnedVector};

use super::Block;
use super::disk_file::DiskFile;
use super::in_flight::{HeldBatch, InFlight, Way};
use super::request::{BlockCommand, BlockRequest, SECTOR_SIZE, Task};
use super::target::TargetError;
use crate::device::{Fault, WriteMode};

/// Maximum bytes of transfers that are joined to one operation.
const MOST_JOINED: u64 = 256 << 10;

/// What an operation of the engine belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ticket {
    /// The request in this slot, and those that are joined to it.
    Transfer(usize),
    /// The sync in flight.
    Sync,
}

/// The direction and the place of a transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    work: Work,
    bytes: u64,
    pieces: usize,
}

impl Place {
    /// Of a request in flight; `None` if it transfers nothing.
    fn of(entry: &InFlight, mode: WriteMode) -> Option<Self> {
        let (sector, writes) = match entry.task.command {
            BlockCommand::Read { sector } => (sector, false),
            BlockCommand::Write { sector } => (sector, true),
            _ => return None,
        };
        // The request was checked: the disk contains these sectors.
        let offset = sector.saturating_mul(SECTOR_SIZE);
        let mode = if entry.needs_sync { WriteMode::Back } else { mode };
        let work = if writes { Work::Write { offset, mode } } else { Work::Read { offset } };
        let length = entry.request.length();
        Some(Self { work, bytes: length, pieces: entry.request.count() })
    }

    /// Whether `next` goes on where this ends, and both may be one operation.
    fn joins(&self, data: u64, next: &Self) -> bool {
        let follows = match (self.work, next.work) {
            (Work::Read { offset }, Work::Read { offset: other }) => offset + data == other,
            (Work::Write { offset, .. }, Work::Write { offset: other, .. }) => {
                offset + data == other
            }
            _ => false,
        };
        follows
            && self.bytes + next.bytes <= MOST_JOINED
            && self.pieces + next.pieces <= MOST_PIECES
    }
}

impl Block {
    /// Submits the transfers in these slots, in the order of their requests.
    pub(super) fn submit(&mut self, slots: &[usize]) {
        let mut slots = slots.iter().copied().peekable();
        while let Some(first) = slots.next() {
            let Some(mut joined) = self.place(first) else { continue };
            let (mut data, mut last) = (self.data_length(first), first);
            while let Some(next) = slots.peek().copied() {
                let Some(place) = self.place(next).filter(|next| joined.joins(data, next)) else {
                    break;
                };
                joined.bytes += place.bytes;
                joined.pieces += place.pieces;
                data += self.data_length(next);
                if let Some(entry) = self.in_flight.get_mut(last) {
                    entry.next = Some(next);
                }
                last = next;
                slots.next();
            }
            self.submit_joined(first);
        }
    }

    fn place(&self, slot: usize) -> Option<Place> {
        Place::of(self.in_flight.get(slot)?, self.facts.write_mode)
    }

    fn data_length(&self, slot: usize) -> u64 {
        let data = self.in_flight.get(slot).and_then(|entry| data_of(entry).ok());
        data.map_or(0, |request| request.data.length())
    }

    /// Submits the transfer of a request, with those that are joined to it.
    fn submit_joined(&mut self, first: usize) {
        let chain = self.chain(first);
        match self.operation(&chain) {
            Ok(Some(operation)) => self.engine.submit(operation, Ticket::Transfer(first)),
            Ok(None) => {}
            Err(fault) => {
                // The first request reports the fault, which ends the device for all.
                let mut fault = Some(fault);
                for slot in chain {
                    let outcome = fault.take().map_or(Err(TargetError::Unsupported), |fault| {
                        Err(TargetError::Guest(fault))
                    });
                    self.end_request(slot, outcome, Vec::new());
                }
            }
        }
    }

    /// The slots of a request and of those that are joined to it.
    fn chain(&self, first: usize) -> Vec<usize> {
        let next = |slot: &usize| self.in_flight.get(*slot)?.next;
        std::iter::successors(Some(first), next).collect()
    }

    /// The operation for these requests, which are of one batch.
    fn operation(&self, chain: &[usize]) -> Result<Option<Operation>, Fault> {
        let entries = || chain.iter().filter_map(|slot| self.in_flight.get(*slot));
        let Some(first) = entries().next() else { return Ok(None) };
        let Way::Engine { held, file } = &first.way else { return Ok(None) };
        let Some(place) = Place::of(first, self.facts.write_mode) else { return Ok(None) };
        let vector = OwnedVector::new(held, |held: &HeldBatch, pieces| {
            entries().try_for_each(|entry| {
                data_of(entry)?.data.for_each_held(held.0.as_ref(), |slice| {
                    let full = Fault::Internal("a request has more buffers than its queue");
                    if pieces.push(&slice) { Ok(()) } else { Err(full) }
                })
            })
        })?;
        Ok(Some(Operation { file: Arc::clone(file.waiting()), work: place.work, vector }))
    }

    /// Handles the end of an operation.
    pub(super) fn land(&mut self, landed: Landed<Ticket>) {
        match landed.token {
            Ticket::Sync => self.end_sync(&landed.outcome),
            Ticket::Transfer(first) => {
                let file = self.in_flight.get(first).and_then(|entry| match &entry.way {
                    Way::Engine { file, .. } => Some(Arc::clone(file)),
                    Way::Worker => None,
                });
                if let Some(file) = file {
                    self.land_transfer(first, landed.operation, landed.outcome, &file);
                }
            }
        }
    }

    fn land_transfer(
        &mut self,
        first: usize,
        operation: Operation,
        outcome: io::Result<()>,
        file: &DiskFile,
    ) {
        let chain = self.chain(first);
        let error = match outcome {
            Ok(()) => return chain.into_iter().for_each(|slot| self.end_transfer(slot)),
            Err(error) => error,
        };
        match remedy(&operation, &error, file) {
            Remedy::None if chain.len() > 1 && self.is_wanted(first) => {
                chain.into_iter().for_each(|slot| {
                    self.in_flight.get_mut(slot).into_iter().for_each(|entry| entry.next = None);
                    self.submit_joined(slot);
                })
            }
            Remedy::None => {
                if let Work::Write { mode, .. } = operation.work {
                    note_write_loss(mode, &error, file);
                }
                let mut error = Some(error);
                for slot in chain {
                    // The others are not wanted any more.
                    let outcome = error.take().map_or(Ok(()), |error| Err(error.into()));
                    self.end_request(slot, outcome, Vec::new());
                }
            }
            Remedy::Zeros => {
                operation.vector.zero();
                chain.into_iter().for_each(|slot| self.end_transfer(slot));
            }
            Remedy::PageCache => {
                let cached = Arc::clone(&file.cached);
                self.engine
                    .submit(Operation { file: cached, ..operation }, Ticket::Transfer(first));
            }
            Remedy::SyncBehind(work) => {
                for slot in chain {
                    let entry = self.in_flight.get_mut(slot);
                    entry.into_iter().for_each(|entry| entry.needs_sync = true);
                }
                self.engine.submit(Operation { work, ..operation }, Ticket::Transfer(first));
            }
        }
    }

    fn is_wanted(&self, slot: usize) -> bool {
        self.in_flight.get(slot).is_some_and(|entry| entry.is_wanted)
    }

    /// Ends a request whose data is transferred.
    fn end_transfer(&mut self, slot: usize) {
        let needs_sync = self.in_flight.get(slot).is_some_and(|entry| entry.needs_sync);
        if needs_sync {
            self.syncs.add(slot);
        } else {
            self.end_request(slot, Ok(()), Vec::new());
        }
    }
}

/// The parts of a request in flight.
fn data_of(entry: &InFlight) -> Result<BlockRequest<'_>, Fault> {
    let command = match &entry.task.command {
        BlockCommand::Write { sector } => BlockCommand::Write { sector: *sector },
        _ => BlockCommand::Flush,
    };
    BlockRequest::resume(&entry.request, Task { command, done: 0 })
}

/// What can be done about a failed transfer.
enum Remedy {
    None,
    /// The file ends inside the disk's last sector, which reads as zeros from there on.
    Zeros,
    /// These buffers or this range are not aligned as direct I/O requires: through the page cache.
    PageCache,
    /// The file system cannot write through: this work, and a sync behind it.
    SyncBehind(Work),
}

fn remedy(operation: &Operation, error: &io::Error, file: &DiskFile) -> Remedy {
    let is_direct = file.direct.as_ref().is_some_and(|file| Arc::ptr_eq(file, &operation.file));
    match (operation.work, error.raw_os_error()) {
        (_, Some(libc::EINVAL | libc::EFAULT)) if is_direct => Remedy::PageCache,
        (Work::Write { offset, mode: WriteMode::Through }, Some(libc::EOPNOTSUPP)) => {
            Remedy::SyncBehind(Work::Write { offset, mode: WriteMode::Back })
        }
        (Work::Read { offset }, None) if error.kind() == io::ErrorKind::UnexpectedEof => {
            let end = offset.saturating_add(operation.vector.length() as u64);
            let is_last = offset >= file.bytes && end <= file.bytes.next_multiple_of(SECTOR_SIZE);
            if is_last { Remedy::Zeros } else { Remedy::None }
        }
        _ => Remedy::None,
    }
}

/// Notes the loss of data after a failed write-through write: the kernel does not say whether the
/// write or its sync failed. Unless storage was exhausted, data of earlier writes may be lost too.
pub(super) fn note_write_loss(mode: WriteMode, error: &io::Error, file: &DiskFile) {
    if mode == WriteMode::Through && !is_exhaustion(error) {
        file.durability.note_loss();
    }
}

/// Whether a write failed because storage is exhausted, which loses no earlier data.
pub(super) fn is_exhaustion(error: &io::Error) -> bool {
    let no_room = [libc::ENOSPC, libc::EDQUOT, libc::EFBIG];
    error.raw_os_error().is_some_and(|errno| no_room.contains(&errno))
}
