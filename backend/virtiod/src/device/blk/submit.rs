//! Transfers by the engine: adjacent ones joined, and what their ends mean.

use std::io;
use std::sync::Arc;

use uring::engine::Landed;
use uring::operation::{Operation, Work};
use uring::owned::{MOST_PIECES, OwnedVector};

use super::Block;
use super::disk_file::DiskFile;
use super::in_flight::{Carrier, HeldBatch, InFlight, PartFailure};
use super::request::{BlockCommand, SECTOR_SIZE, data_of};
use super::target::TargetError;
use crate::device::{Fault, SharedRegion, WriteMode};

/// Maximum bytes of transfers that are joined to one operation.
const MOST_JOINED: u64 = 256 << 10;

/// A region of the pool.
struct HeldRegion(Arc<dyn SharedRegion>);

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
struct TransferRange {
    work: Work,
    /// Bytes of data.
    data: u64,
    /// Bytes of all buffers, and their number.
    bytes: u64,
    pieces: usize,
}

impl TransferRange {
    /// Of a request in flight; `None` if it transfers nothing.
    fn of(entry: &InFlight, mode: WriteMode) -> Option<Self> {
        let (sector, writes) = match entry.command {
            BlockCommand::Read { sector } => (sector, false),
            BlockCommand::Write { sector } => (sector, true),
            _ => return None,
        };
        // The request was checked: the disk contains these sectors.
        let on_disk = sector.saturating_mul(SECTOR_SIZE);
        let offset = entry.located.as_ref().map_or(on_disk, |located| located.offset);
        let mode = if entry.needs_sync { WriteMode::Back } else { mode };
        let work = if writes { Work::Write { offset, mode } } else { Work::Read { offset } };
        let data = data_of(&entry.request, &entry.command).ok()?.length();
        Some(Self { work, data, bytes: entry.bytes(), pieces: entry.request.count() })
    }

    /// Whether `next` goes on where this ends, and both may be one operation.
    fn joins(&self, next: &Self, longest: u64) -> bool {
        let data = self.data;
        let follows = match (self.work, next.work) {
            (Work::Read { offset }, Work::Read { offset: other }) => offset + data == other,
            (Work::Write { offset, .. }, Work::Write { offset: other, .. }) => {
                offset + data == other
            }
            _ => false,
        };
        follows
            && self.bytes + next.bytes <= MOST_JOINED.min(longest)
            && self.pieces + next.pieces <= MOST_PIECES
    }
}

impl Block {
    /// Submits the transfers in these slots, in the order of their requests.
    pub(super) fn submit(&mut self, slots: &[usize]) {
        let mut slots = slots.iter().copied().peekable();
        while let Some(first) = slots.next() {
            let Some(mut joined) = self.range(first) else { continue };
            let file = self.in_flight.get(first).and_then(InFlight::file);
            let longest = file.map_or(0, |file| file.longest() as u64);
            let mut last = first;
            while let Some(next) = slots.peek().copied() {
                let is_near = self.may_be_joined(first, next);
                let range =
                    self.range(next).filter(|range| is_near && joined.joins(range, longest));
                let Some(range) = range else { break };
                joined.data += range.data;
                joined.bytes += range.bytes;
                joined.pieces += range.pieces;
                if let Some(entry) = self.in_flight.get_mut(last) {
                    entry.next = Some(next);
                }
                last = next;
                slots.next();
            }
            self.submit_joined(first);
        }
    }

    /// Whether two requests hold their buffers together, for the same file.
    fn may_be_joined(&self, first: usize, next: usize) -> bool {
        let carrier = |slot| self.in_flight.get(slot).map(|entry| &entry.carrier);
        let (Some(first), Some(next)) = (carrier(first), carrier(next)) else { return false };
        match (first, next) {
            (Carrier::Engine { held, file }, Carrier::Engine { held: next, file: other }) => {
                Arc::ptr_eq(held, next) && Arc::ptr_eq(file, other)
            }
            _ => false,
        }
    }

    fn range(&self, slot: usize) -> Option<TransferRange> {
        TransferRange::of(self.in_flight.get(slot)?, self.facts.write_mode)
    }

    /// Submits the transfer of a request, with those that are joined to it.
    fn submit_joined(&mut self, first: usize) {
        let chain = self.chain(first);
        match self.operation(&chain) {
            Ok(operation) => self.submit_in_regions(first, operation),
            Err(fault) => self.fail_chain(chain, fault),
        }
    }

    /// Ends requests of which no operation can be made.
    fn fail_chain(&mut self, chain: Vec<usize>, fault: Fault) {
        // The first request reports the fault, which ends the device for all.
        let mut fault = Some(fault);
        for slot in chain {
            let error = fault.take().map_or(TargetError::Unsupported, TargetError::Guest);
            self.end_request(slot, Err(error), Vec::new());
        }
    }

    /// Submits a transfer, by direct I/O from and to memory that the kernel has looked up before,
    /// where it permits that.
    fn submit_in_regions(&mut self, first: usize, operation: Operation) {
        let file = self.in_flight.get(first).and_then(InFlight::file);
        let Some(longest) = file.and_then(|file| Some(file.direct.as_ref()?.longest)) else {
            return self.start_operation(first, operation);
        };
        if self.may_be_pinned(first) && self.engine.wants_region(&operation.vector) {
            self.chain(first).into_iter().for_each(|slot| self.register_regions(slot));
        }
        let Operation { file, work, vector, .. } = operation;
        let parts = self.engine.divide(vector, longest);
        if let Some(entry) = self.in_flight.get_mut(first) {
            entry.operations = parts.len();
        }
        let mut skipped = 0;
        for part in parts {
            let (file, work) = (Arc::clone(&file), work.skipped(skipped));
            skipped += part.length() as u64;
            self.start_operation(first, Operation::new(file, work, part));
        }
    }

    /// Whether the kernel may hold the buffers of a request after this process has died.
    fn may_be_pinned(&self, slot: usize) -> bool {
        let held = self.in_flight.get(slot).and_then(InFlight::held);
        held.is_some_and(|held| held.0.may_be_pinned())
    }

    /// Hands an operation of a request to the engine: direct I/O by other memory where the kernel
    /// must not hold the guest's.
    fn start_operation(&mut self, first: usize, operation: Operation) {
        let file = self.in_flight.get(first).and_then(InFlight::file);
        let direct = file.filter(|file| file.is_direct(&operation.file)).cloned();
        let ticket = Ticket::Transfer(first);
        let Some(file) = direct.filter(|_| !self.may_be_pinned(first)) else {
            return self.engine.submit(operation, ticket);
        };
        if let Err(operation) = self.engine.submit_bounced(operation, ticket) {
            let (Operation { work, vector, .. }, cached) = (*operation, Arc::clone(&file.cached));
            // The page cache takes no memory of this process's.
            self.engine.submit(Operation::new(cached, past_cache(work), vector), ticket);
        }
    }

    /// Registers the regions of the pool that a request's data is in.
    fn register_regions(&mut self, slot: usize) {
        let Some(entry) = self.in_flight.get(slot) else { return };
        let Some(held) = entry.held() else { return };
        let Ok(data) = data_of(&entry.request, &entry.command) else { return };
        for buffer in data.buffers() {
            let Some(region) = held.0.region(buffer).map(|region| Arc::new(HeldRegion(region)))
            else {
                continue;
            };
            let vector = OwnedVector::new(&region, |region: &HeldRegion, pieces| {
                let pushed = region.0.bytes().is_some_and(|bytes| pieces.push(&bytes));
                if pushed { Ok(()) } else { Err(()) }
            });
            vector.into_iter().for_each(|vector| self.engine.register(vector));
        }
    }

    /// Notes the end of one of several operations of a transfer. Returns whether others have not
    /// ended.
    fn note_end(&mut self, first: usize, failure: Option<PartFailure>) -> bool {
        let Some(entry) = self.in_flight.get_mut(first) else { return true };
        entry.operations -= 1;
        if !matches!(entry.failure, Some(PartFailure::Final(_))) {
            entry.failure = failure.or_else(|| entry.failure.take());
        }
        entry.operations > 0
    }

    /// The slots of a request and of those that are joined to it.
    fn chain(&self, first: usize) -> Vec<usize> {
        let next = |slot: &usize| self.in_flight.get(*slot)?.next;
        std::iter::successors(Some(first), next).collect()
    }

    /// The operation for these requests, which are of one batch.
    ///
    /// # Errors
    /// A [`Fault`]: their buffers cannot be reached, or they are no transfers.
    fn operation(&self, chain: &[usize]) -> Result<Operation, Fault> {
        let entries = || chain.iter().filter_map(|slot| self.in_flight.get(*slot));
        let none = || Fault::Internal("a transfer is none of the engine's");
        let first = entries().next().ok_or_else(none)?;
        let Carrier::Engine { held, file } = &first.carrier else { return Err(none()) };
        let range = TransferRange::of(first, self.facts.write_mode).ok_or_else(none)?;
        let vector = OwnedVector::new(held, |held: &HeldBatch, pieces| {
            entries().try_for_each(|entry| {
                data_of(&entry.request, &entry.command)?.for_each_held(held.0.as_ref(), |slice| {
                    let full = Fault::Internal("a request has more buffers than its queue");
                    if pieces.push(&slice) { Ok(()) } else { Err(full) }
                })
            })
        })?;
        Ok(Operation::new(Arc::clone(file.waiting()), range.work, vector))
    }

    /// Handles the end of an operation.
    pub(super) fn land(&mut self, landed: Landed<Ticket>) {
        match landed.token {
            Ticket::Sync => self.end_sync(&landed.outcome),
            Ticket::Transfer(first) => {
                let file = self.in_flight.get(first).and_then(InFlight::file);
                if let Some(file) = file.cloned() {
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
        let is_divided = |entry: &InFlight| entry.operations > 1 || entry.failure.is_some();
        if self.in_flight.get(first).is_some_and(is_divided) {
            return self.land_divided(first, &operation, outcome, file);
        }
        match outcome {
            Ok(()) => self.end_transfers(first),
            Err(error) => self.mend(first, operation, error, file),
        }
    }

    /// Handles the end of one of several operations of a transfer.
    fn land_divided(
        &mut self,
        first: usize,
        operation: &Operation,
        outcome: io::Result<()>,
        file: &DiskFile,
    ) {
        let failure = outcome.err().map(|error| part_failure(operation, error, file));
        if self.note_end(first, failure) {
            return;
        }
        let chain = self.chain(first);
        match self.in_flight.get_mut(first).and_then(|entry| entry.failure.take()) {
            None => self.end_transfers(first),
            Some(PartFailure::Final(error)) => self.give_up(first, chain, error),
            Some(PartFailure::Mendable) if !self.is_wanted(first) => {
                self.end_chain(chain, &io::ErrorKind::Other.into());
            }
            // As one operation, whose error says what to do.
            Some(PartFailure::Mendable) => match self.operation(&chain) {
                Ok(whole) => self.start_operation(first, whole),
                Err(fault) => self.fail_chain(chain, fault),
            },
        }
    }

    /// Ends a transfer about whose error nothing can be done.
    fn give_up(&mut self, first: usize, chain: Vec<usize>, error: io::Error) {
        if chain.len() == 1 || !self.is_wanted(first) {
            return self.end_chain(chain, &error);
        }
        // The error may be that of another request.
        for slot in chain {
            self.in_flight.get_mut(slot).into_iter().for_each(|entry| entry.next = None);
            self.submit_joined(slot);
        }
    }

    /// Does what can be done about a failed transfer.
    fn mend(&mut self, first: usize, operation: Operation, error: io::Error, file: &DiskFile) {
        let chain = self.chain(first);
        match remedy(&operation, &error, file) {
            Remedy::None => {
                note_loss(&operation, &error, file);
                self.give_up(first, chain, error);
            }
            Remedy::Zeros => {
                operation.vector.zero();
                self.end_transfers(first);
            }
            Remedy::PageCache => {
                let Operation { work, vector, .. } = operation;
                let operation = Operation::new(Arc::clone(&file.cached), past_cache(work), vector);
                self.start_operation(first, operation);
            }
            Remedy::SyncBehind(work) => {
                for slot in chain {
                    let entry = self.in_flight.get_mut(slot);
                    entry.into_iter().for_each(|entry| entry.needs_sync = true);
                }
                let Operation { file, vector, .. } = operation;
                self.start_operation(first, Operation::new(file, work, vector));
            }
        }
    }

    /// Ends requests that are joined, each with an error.
    fn end_chain(&mut self, chain: Vec<usize>, error: &io::Error) {
        for slot in chain {
            self.end_request(slot, Err(copy_of(error).into()), Vec::new());
        }
    }

    fn is_wanted(&self, slot: usize) -> bool {
        self.in_flight.get(slot).is_some_and(|entry| entry.is_wanted)
    }

    /// Ends a request whose data is transferred, and those that are joined to it.
    fn end_transfers(&mut self, first: usize) {
        let mut slot = Some(first);
        while let Some(ended) = slot {
            slot = self.in_flight.get(ended).and_then(|entry| entry.next);
            self.end_transfer(ended);
        }
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

/// An error for another of the requests that it concerns.
pub(super) fn copy_of(error: &io::Error) -> io::Error {
    error.raw_os_error().map_or_else(|| error.kind().into(), io::Error::from_raw_os_error)
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

/// The work on a file with direct I/O, through the page cache: what is written does not stay there
/// alone, since it must outlive this domain.
fn past_cache(work: Work) -> Work {
    match work {
        Work::Write { offset, .. } => Work::Write { offset, mode: WriteMode::Through },
        other => other,
    }
}

fn remedy(operation: &Operation, error: &io::Error, file: &DiskFile) -> Remedy {
    let is_direct = file.is_direct(&operation.file);
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

/// What the failure of a part says of the whole transfer. Notes the loss of data.
fn part_failure(operation: &Operation, error: io::Error, file: &DiskFile) -> PartFailure {
    note_loss(operation, &error, file);
    match remedy(operation, &error, file) {
        Remedy::None => PartFailure::Final(error),
        Remedy::Zeros | Remedy::PageCache | Remedy::SyncBehind(_) => PartFailure::Mendable,
    }
}

/// As [`note_write_loss`], for an operation, unless something else can be done about its error.
fn note_loss(operation: &Operation, error: &io::Error, file: &DiskFile) {
    if let (Work::Write { mode, .. }, Remedy::None) =
        (operation.work, remedy(operation, error, file))
    {
        note_write_loss(mode, error, file);
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
