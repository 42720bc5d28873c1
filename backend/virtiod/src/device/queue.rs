//! Queues as a device sees them: requests out, answers back.

use virtio_queue::{Queue, QueueOwnedT, QueueT};

use super::{DeviceMemory, Fault, QueueSet, VirtioRequest};

/// Requests taken from a ring at once: their pages are mapped and unmapped together, and other
/// queues and messages get their turn between two batches.
pub const BATCH: usize = 32;
/// Bytes of the requests in a batch: what is larger is a batch of its own, which the driver can
/// look at while the next one is served.
pub const BATCH_BYTES: u64 = 256 << 10;
/// Pages that the requests of a batch touch, for which a batch ends as for its bytes: bytes alone
/// say little of a driver's many small buffers.
pub const BATCH_PAGES: u64 = 1024;
/// Requests of which the capacity is kept: for a whole turn's of a network device.
const POOLED_REQUESTS: usize = 256;
/// Descriptors of which the capacity is kept, in all these requests together.
const POOLED_DESCRIPTORS: usize = 8192;

/// Where the rings are.
pub trait Rings {
    /// The ring of queue `index`, while it is enabled.
    fn ring(&mut self, index: usize) -> Option<&mut Queue>;
}

/// What became of the queues in a turn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BatchSummary {
    /// Those in which requests were given back.
    pub used: QueueSet,
    /// How many requests.
    pub count: u32,
    /// How long those were together that were served each by itself, in bytes.
    pub bytes: u64,
    /// Those that want another turn.
    pub rescheduled: QueueSet,
    /// Those in which nothing is left.
    pub empty: QueueSet,
}

/// Room for requests that is used again and again.
#[derive(Debug, Default)]
pub struct RequestPool {
    list: Vec<VirtioRequest>,
    requests: Vec<VirtioRequest>,
    /// Descriptors that these have capacity for.
    descriptors: usize,
    done: Vec<(u16, u32)>,
}

impl RequestPool {
    fn request(&mut self) -> VirtioRequest {
        let request = self.requests.pop().unwrap_or_default();
        self.descriptors -= request.capacity();
        request
    }

    /// Keeps the capacity of a request, unless there is enough: what a long chain took is given
    /// back.
    fn keep(&mut self, request: VirtioRequest) {
        let descriptors = self.descriptors + request.capacity();
        if self.requests.len() < POOLED_REQUESTS && descriptors <= POOLED_DESCRIPTORS {
            self.descriptors = descriptors;
            self.requests.push(request);
        }
    }
}

/// Completions to requests of a batch, in their order.
pub struct Completions<'a> {
    done: &'a mut Vec<(u16, u32)>,
    bytes: &'a mut u64,
}

impl Completions<'_> {
    /// The request may be given back, with that many bytes written into its buffers.
    pub fn push(&mut self, request: &VirtioRequest, written: u32) {
        self.done.push((request.head, written));
        *self.bytes += request.length();
    }
}

/// A device's queues, for a turn.
pub struct QueueContext<'a, M> {
    rings: &'a mut dyn Rings,
    memory: &'a mut M,
    request_pool: &'a mut RequestPool,
    longest: u64,
    summary: BatchSummary,
    latest: Option<usize>,
}

impl<'a, M: DeviceMemory> QueueContext<'a, M> {
    /// The queues of a device over `memory` that does what requests of up to `longest` bytes ask.
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

    /// The guest's memory, where requests' buffers are.
    pub fn memory(&self) -> &M {
        self.memory
    }

    /// Entries of queue `index`; none while it is not enabled.
    pub fn size(&mut self, index: usize) -> usize {
        self.rings.ring(index).map_or(0, |ring| usize::from(ring.size()))
    }

    /// Takes up to a batch of requests, at most `limit`, and makes their buffers reachable. With
    /// them comes the fault of the first that is malformed, if one is: those before it are good.
    pub fn take(&mut self, index: usize, limit: usize) -> (Vec<VirtioRequest>, Option<Fault>) {
        let (requests, fault) = self.fetch(index, limit);
        self.prepare(&requests);
        (requests, fault)
    }

    /// Makes the buffers of requests reachable together: not of those that are longer than the
    /// device takes, since it will look at little of them.
    pub fn prepare(&self, requests: &[VirtioRequest]) {
        self.prepare_rest(requests, 0);
    }

    /// As [`QueueContext::prepare`], without the first `written` bytes that the device writes into
    /// the first request: the driver's memory has them.
    fn prepare_rest(&self, requests: &[VirtioRequest], written: u64) {
        let written = std::iter::once(written).chain(std::iter::repeat(0));
        let requests = requests.iter().zip(written);
        let requests = requests.filter(|(request, _)| request.length() <= self.longest);
        let mut buffers = requests.flat_map(|(request, written)| request.buffers(written));
        self.memory.prepare(&mut buffers);
    }

    /// As [`QueueContext::take`], without making buffers reachable: for a device that must look at
    /// requests to know which it will use, and keeps the others.
    pub fn fetch(&mut self, index: usize, limit: usize) -> (Vec<VirtioRequest>, Option<Fault>) {
        let mut requests = self.take_list();
        self.latest = Some(index);
        let Some(ring) = self.rings.ring(index) else { return (requests, None) };
        let (memory, queue_size) = (&*self.memory, ring.size());
        let chains = match ring.iter(memory) {
            Ok(chains) => chains,
            Err(error) => return (requests, Some(error.into())),
        };
        let (mut fault, mut bytes, mut pages) = (None, 0, 0);
        for chain in chains.take(limit.min(BATCH)) {
            let mut request = self.request_pool.request();
            match request.collect(chain.head_index(), queue_size, chain, || memory.last_fault()) {
                Ok(()) => {
                    bytes += request.length();
                    pages += request.pages();
                    requests.push(request);
                    if bytes >= BATCH_BYTES || pages >= BATCH_PAGES {
                        break;
                    }
                }
                Err(first) => {
                    fault = Some(first);
                    break;
                }
            }
        }
        (requests, fault)
    }

    /// Room for requests; to be taken back by [`QueueContext::recycle`].
    pub fn take_list(&mut self) -> Vec<VirtioRequest> {
        std::mem::take(&mut self.request_pool.list)
    }

    /// Takes back the capacity of requests that were given back to the driver.
    pub fn recycle(&mut self, mut requests: Vec<VirtioRequest>) {
        requests.drain(..).for_each(|request| self.request_pool.keep(request));
        self.request_pool.list = requests;
    }

    /// Gives requests back, with the number of bytes written into each. All access to buffers ends
    /// before the driver hears of it: a grant it gets back must not be mapped any more.
    ///
    /// # Errors
    /// [`Fault::WriteBack`], [`Fault::Ring`].
    pub fn give_back(&mut self, index: usize, done: &[(u16, u32)]) -> Result<(), Fault> {
        self.latest = Some(index);
        // Also of requests that go on later: their bytes are nowhere else.
        self.memory.write_back().map_err(Fault::WriteBack)?;
        self.memory.release();
        if done.is_empty() {
            return Ok(());
        }
        let ring = self.rings.ring(index);
        let ring = ring.ok_or(Fault::Internal("a queue that is not enabled has used buffers"))?;
        for (head, written) in done {
            ring.add_used(&*self.memory, *head, *written)?;
        }
        self.summary.used.insert(index);
        self.summary.count += done.len() as u32;
        Ok(())
    }

    /// Has the queue served again soon: work is left that no doorbell will tell of.
    pub fn reschedule(&mut self, index: usize) {
        self.summary.rescheduled.insert(index);
    }

    /// Nothing is left in the queue: it is served again when the driver has put something there.
    pub fn mark_idle(&mut self, index: usize) {
        self.summary.empty.insert(index);
    }

    /// Serves a batch of requests one after the other, and asks for another turn or rests.
    ///
    /// # Errors
    /// The first [`Fault`]; what was served before it has been given back.
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
        self.process_batch(index, limit, |requests, memory, answers| {
            requests.iter().try_for_each(|request| {
                answers.push(request, serve(request, memory)?);
                Ok(())
            })
        })
    }

    /// As [`QueueContext::process_some`], but `serve` has the requests of a batch together, of
    /// which it answers those up to its first fault.
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
        if let Err(first) = self.process_fetched(index, &requests, 0, &mut serve) {
            fault = Some(first);
        }
        self.recycle(requests);
        self.reschedule(index);
        fault.map_or(Ok(()), Err)
    }

    /// Has requests that were fetched served together, and gives back those that are answered,
    /// whatever the outcome. The others stay the device's. `written`: bytes that it wrote into the
    /// first of them before.
    ///
    /// # Errors
    /// That of `serve`, or as of [`QueueContext::give_back`].
    pub fn process_fetched<R>(
        &mut self,
        index: usize,
        requests: &[VirtioRequest],
        written: u64,
        serve: impl FnOnce(&[VirtioRequest], &M, &mut Completions<'_>) -> Result<R, Fault>,
    ) -> Result<R, Fault> {
        self.prepare_rest(requests, written);
        let mut done = std::mem::take(&mut self.request_pool.done);
        done.clear();
        let mut answers = Completions { done: &mut done, bytes: &mut self.summary.bytes };
        let outcome = serve(requests, self.memory, &mut answers);
        self.give_back(index, &done)?;
        self.request_pool.done = done;
        outcome
    }

    /// The queue that was worked on last, which is the one that a fault is of.
    pub fn latest(&self) -> Option<usize> {
        self.latest
    }

    /// What became of the queues.
    pub fn finish(self) -> BatchSummary {
        self.memory.release();
        self.summary
    }
}
