//! Queues as a device sees them: it takes requests and returns them with its answers.

use super::requests::Requests;
use super::{DeviceMemory, Fault, HeldBuffers, QueueSet, Ring, VirtioRequest};

/// Maximum number of requests that are taken from a ring at once. Their pages are mapped and
/// unmapped together, and the bus handles other queues and messages between two batches.
pub const BATCH: usize = 32;
/// Bytes of requests at which a batch ends. So a large request is a batch of its own, which the
/// driver can process while the device serves the next one.
pub const BATCH_BYTES: u64 = 256 << 10;
/// Pages touched by requests at which a batch ends, as for bytes: the number of bytes does not
/// bound the pages of many small buffers. Pages that the driver shared for good do not count.
pub const BATCH_PAGES: u64 = 1024;
/// Number of requests whose allocations are reused: enough for an iteration of a network device.
const POOLED_REQUESTS: usize = 256;
/// Maximum capacity of such an allocation, in descriptors.
const POOLED_DESCRIPTORS: usize = 32;

/// Access to a device's rings.
pub trait Rings {
    /// The ring of queue `index`, or `None` while the queue is not enabled.
    fn ring(&mut self, index: usize) -> Option<Ring<'_>>;
}

/// Summary of what a device did with its queues in one iteration.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BatchSummary {
    /// Queues in which the device returned requests.
    pub used: QueueSet,
    /// Number of requests that it returned.
    pub count: u32,
    /// Total length in bytes of the requests that were answered through [`Completions`].
    pub bytes: u64,
    /// Queues that need another iteration.
    pub rescheduled: QueueSet,
    /// Queues in which no request is left.
    pub empty: QueueSet,
}

/// Allocations for requests, which are reused. Those of long chains are not held.
#[derive(Debug, Default)]
pub struct RequestPool {
    requests: Requests,
    done: Vec<(u16, u32)>,
}

impl RequestPool {
    fn take(&mut self) -> Requests {
        std::mem::take(&mut self.requests)
    }

    fn keep(&mut self, mut requests: Requests) {
        requests.retire(self.take(), POOLED_REQUESTS, POOLED_DESCRIPTORS);
        self.requests = requests;
    }
}

/// The completions of a batch, in the order of its requests.
pub struct Completions<'a> {
    done: &'a mut Vec<(u16, u32)>,
    bytes: &'a mut u64,
}

impl Completions<'_> {
    /// Completes a request, with `written` bytes written into its buffers.
    pub fn push(&mut self, request: &VirtioRequest, written: u32) {
        self.done.push((request.head, written));
        *self.bytes += request.length();
    }
}

/// A device's queues, for one iteration.
pub struct QueueContext<'a, M> {
    rings: &'a mut dyn Rings,
    memory: &'a mut M,
    request_pool: &'a mut RequestPool,
    longest: u64,
    summary: BatchSummary,
    latest: Option<usize>,
}

impl<'a, M: DeviceMemory> QueueContext<'a, M> {
    /// The queues of a device over `memory` that carries out requests of up to `longest` bytes.
    pub fn new(
        rings: &'a mut dyn Rings,
        memory: &'a mut M,
        request_pool: &'a mut RequestPool,
        longest: u64,
    ) -> Self {
        Self {
            rings,
            memory,
            request_pool,
            longest,
            summary: BatchSummary::default(),
            latest: None,
        }
    }

    /// The guest's memory, which holds the requests' buffers.
    pub fn memory(&self) -> &M {
        self.memory
    }

    /// Number of entries of queue `index`; 0 while the queue is not enabled.
    pub fn size(&mut self, index: usize) -> usize {
        self.rings.ring(index).map_or(0, |ring| usize::from(ring.size()))
    }

    /// Takes up to a batch of requests, at most `limit`, and makes their buffers reachable. If a
    /// request is malformed, returns its fault with the requests before it, which are good.
    pub fn take(&mut self, index: usize, limit: usize) -> (Requests, Option<Fault>) {
        let (requests, fault) = self.fetch(index, limit);
        self.prepare(&requests);
        (requests, fault)
    }

    /// Makes the buffers of requests reachable together. Skips requests that are longer than the
    /// device's longest request: the device accesses little of them.
    pub fn prepare(&self, requests: &[VirtioRequest]) {
        let is_needed =
            |request: &&VirtioRequest| request.pages() > 0 && request.length() <= self.longest;
        let requests = requests.iter().filter(is_needed);
        self.memory.prepare(requests.flat_map(VirtioRequest::buffers));
    }

    /// As [`QueueContext::take`], but does not make buffers reachable: for a device that must
    /// examine requests to know which it will use, and keeps the others.
    #[inline(never)]
    pub fn fetch(&mut self, index: usize, limit: usize) -> (Requests, Option<Fault>) {
        let mut requests = self.request_pool.take();
        let fault = self.fill(index, limit, &mut requests);
        // The descriptors of indirect tables were copied: their grants are not needed any more.
        if self.memory.has_mappings() {
            self.memory.release();
        }
        (requests, fault)
    }

    /// Adds requests of a ring to a list, up to the first fault.
    fn fill(&mut self, index: usize, limit: usize, requests: &mut Requests) -> Option<Fault> {
        self.latest = Some(index);
        let mut ring = self.rings.ring(index)?;
        let (memory, table) = (&*self.memory, ring.descriptors());
        let heads = match ring.heads() {
            Ok(heads) => heads,
            Err(fault) => return Some(fault),
        };
        let (mut fault, mut bytes, mut pages, mut shared) = (None, 0, 0, 0);
        for head in heads.take(limit.min(BATCH)) {
            let added = requests.try_push(|request| {
                request.collect(head, table, memory)?;
                bytes += request.length();
                pages += request.pages();
                shared += request.shared();
                Ok(())
            });
            if let Err(first) = added {
                fault = Some(first);
                break;
            }
            if bytes >= BATCH_BYTES || pages >= BATCH_PAGES {
                break;
            }
        }
        memory.count_shared(shared);
        fault
    }

    /// An empty list for requests, whose allocation [`QueueContext::recycle`] takes back.
    pub fn take_list(&mut self) -> Requests {
        self.request_pool.take()
    }

    /// Keeps the allocations of requests that were returned to the driver, for reuse.
    pub fn recycle(&mut self, requests: Requests) {
        self.request_pool.keep(requests);
    }

    /// Returns requests to the driver, with the number of bytes written into each. All access to
    /// buffers ends before the driver can see them in the used ring: the backend must not map a
    /// grant that the driver owns again.
    ///
    /// # Errors
    /// [`Fault::WriteBack`], [`Fault::Ring`].
    pub fn give_back(&mut self, index: usize, done: &[(u16, u32)]) -> Result<(), Fault> {
        self.latest = Some(index);
        // Requests that continue later need this too: the copies hold the only instance of their
        // bytes.
        self.memory.write_back().map_err(Fault::WriteBack)?;
        self.memory.release();
        if done.is_empty() {
            return Ok(());
        }
        let ring = self.rings.ring(index);
        let mut ring =
            ring.ok_or(Fault::Internal("a queue that is not enabled has used buffers"))?;
        ring.give_back(done)?;
        self.summary.used.insert(index);
        self.summary.count += done.len() as u32;
        Ok(())
    }

    /// Takes over the buffers of the requests that were made reachable.
    pub fn hold(&mut self) -> Box<dyn HeldBuffers> {
        self.memory.hold()
    }

    /// As [`QueueContext::give_back`], for requests whose buffers have `bytes` bytes together.
    ///
    /// # Errors
    /// As there.
    pub fn complete(&mut self, index: usize, done: &[(u16, u32)], bytes: u64) -> Result<(), Fault> {
        self.summary.bytes += bytes;
        self.give_back(index, done)
    }

    /// Requests another iteration for the queue: work is left for which no doorbell will ring.
    pub fn reschedule(&mut self, index: usize) {
        self.summary.rescheduled.insert(index);
    }

    /// Requests another iteration for the queue if the driver has added requests, and marks it idle
    /// otherwise.
    pub fn reschedule_or_idle(&mut self, index: usize) {
        let ring = self.rings.ring(index);
        // The next iteration reports a ring that cannot be read.
        match ring.is_some_and(|ring| ring.has_requests().unwrap_or(true)) {
            true => self.reschedule(index),
            false => self.mark_idle(index),
        }
    }

    /// Notes that the queue is empty: it is processed again after the driver adds requests.
    pub fn mark_idle(&mut self, index: usize) {
        self.summary.empty.insert(index);
    }

    /// Serves a batch of requests one after the other, then reschedules the queue or marks it idle.
    ///
    /// # Errors
    /// The first [`Fault`]; requests that were served before it have been returned to the driver.
    pub fn process_each(
        &mut self,
        index: usize,
        serve: impl FnMut(&VirtioRequest, &M) -> Result<u32, Fault>,
    ) -> Result<(), Fault> {
        self.process_some(index, BATCH, serve)
    }

    /// As [`QueueContext::process_each`], with at most `limit` requests.
    ///
    /// # Errors
    /// As there.
    pub fn process_some(
        &mut self,
        index: usize,
        limit: usize,
        mut serve: impl FnMut(&VirtioRequest, &M) -> Result<u32, Fault>,
    ) -> Result<(), Fault> {
        self.process_batch(index, limit, |requests, memory, completions| {
            requests.iter().try_for_each(|request| {
                completions.push(request, serve(request, memory)?);
                Ok(())
            })
        })
    }

    /// As [`QueueContext::process_some`], but `serve` gets the requests of a batch together, and
    /// answers those before its first fault.
    ///
    /// # Errors
    /// As there.
    pub fn process_batch(
        &mut self,
        index: usize,
        limit: usize,
        mut serve: impl FnMut(&[VirtioRequest], &M, &mut Completions<'_>) -> Result<(), Fault>,
    ) -> Result<(), Fault> {
        let (requests, mut fault) = self.fetch(index, limit);
        if requests.is_empty() && fault.is_none() {
            self.recycle(requests);
            self.mark_idle(index);
            return Ok(());
        }
        if let Err(first) = self.process_fetched(index, &requests, &mut serve) {
            fault = Some(first);
        }
        self.recycle(requests);
        self.reschedule_or_idle(index);
        fault.map_or(Ok(()), Err)
    }

    /// Calls `serve` with requests that were fetched, and returns the answered ones to the driver,
    /// whatever the outcome. The device keeps the others.
    ///
    /// # Errors
    /// The error of `serve`, or as for [`QueueContext::give_back`].
    pub fn process_fetched<R>(
        &mut self,
        index: usize,
        requests: &[VirtioRequest],
        serve: impl FnOnce(&[VirtioRequest], &M, &mut Completions<'_>) -> Result<R, Fault>,
    ) -> Result<R, Fault> {
        self.prepare(requests);
        let mut done = std::mem::take(&mut self.request_pool.done);
        done.clear();
        let mut completions = Completions { done: &mut done, bytes: &mut self.summary.bytes };
        let outcome = serve(requests, self.memory, &mut completions);
        self.give_back(index, &done)?;
        self.request_pool.done = done;
        outcome
    }

    /// The queue that was used last; a fault belongs to it.
    pub fn latest(&self) -> Option<usize> {
        self.latest
    }

    /// Ends the iteration: releases all buffers and returns the summary.
    pub fn finish(self) -> BatchSummary {
        self.memory.release();
        self.summary
    }
}
