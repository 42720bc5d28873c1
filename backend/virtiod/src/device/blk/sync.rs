//! Flushes: one sync at a time, which covers all flushes that waited when it began. It covers all
//! writes that were answered before, and waits for no other.

use std::io;
use std::sync::Arc;

use uring::operation::{Operation, Work};
use uring::owned::OwnedVector;

use super::Block;
use super::claim::SyncStart;
use super::disk_file::DiskFile;
use super::in_flight::Carrier;
use super::request::{BlockCommand, Task};
use super::submit::{Ticket, copy_of};
use super::target::TargetError;
use super::worker::{Job, RequestJob};

/// Requests that wait for a sync.
#[derive(Default)]
pub(super) struct Syncs {
    /// The sync in flight: its file, and the slots of the requests that it covers.
    running: Option<(Arc<DiskFile>, Vec<usize>)>,
    /// The slots of requests that the next one covers.
    waiting: Vec<usize>,
}

impl Syncs {
    /// Adds a request.
    pub(super) fn add(&mut self, slot: usize) {
        self.waiting.push(slot);
    }
}

impl Block {
    /// Begins a sync, if requests wait and none is in flight.
    pub(super) fn begin_sync(&mut self) {
        if self.syncs.running.is_some() || self.syncs.waiting.is_empty() {
            return;
        }
        let covered = std::mem::take(&mut self.syncs.waiting);
        let file = covered.iter().find_map(|slot| self.in_flight.get(*slot)?.file());
        let Some(file) = file.cloned() else { return };
        match file.durability.begin_sync() {
            SyncStart::Begun => {
                let (of, work) = (Arc::clone(&file.cached), Work::Sync);
                let operation = Operation::new(of, work, OwnedVector::empty());
                self.engine.submit(operation, Ticket::Sync);
                self.syncs.running = Some((file, covered));
            }
            SyncStart::Lost => {
                let lost = |slot| self.end_request(slot, Err(TargetError::Lost), Vec::new());
                covered.into_iter().for_each(lost);
            }
            SyncStart::Busy => covered.into_iter().for_each(|slot| self.sync_by_worker(slot)),
        }
    }

    /// Leaves a sync to the worker, which can wait for that of another device.
    fn sync_by_worker(&mut self, slot: usize) {
        let Some(entry) = self.in_flight.get_mut(slot) else { return };
        entry.carrier = Carrier::Worker;
        let task = Task { command: BlockCommand::Flush, done: 0 };
        let (part, queue) = (self.worker.part(), entry.queue);
        let job = RequestJob { part, slot, queue, task, data: Vec::new() };
        self.worker.add(Job::Request(job));
    }

    /// Ends the requests that a sync covers.
    pub(super) fn end_sync(&mut self, outcome: &io::Result<()>) {
        let Some((file, covered)) = self.syncs.running.take() else { return };
        file.durability.end_sync(outcome);
        for slot in covered {
            let outcome = outcome.as_ref().copied();
            let outcome = outcome.map_err(|error| TargetError::Sync(copy_of(error)));
            self.end_request(slot, outcome, Vec::new());
        }
    }
}
