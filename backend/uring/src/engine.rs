//! Operations on files that are submitted together and end in the order in which storage answers.
//!
//! The engine never waits for storage, except in [`Engine::wait`]. It uses io_uring, or a few
//! threads of its own where the kernel does not permit that. An operation owns a share of its
//! memory, so that the memory stays reachable until the kernel has finished with it.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

use io_uring::IoUring;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::bounce;
use crate::operation::{Operation, Step};
use crate::owned::OwnedVector;
use crate::registered::Registered;
use crate::rings::{self, IdleRing};
use crate::submission::{stop_polls, submit, wait_in_ring};
use crate::threads::Threads;
use crate::waiting::{AwaitedFd, POLL_MARK, RingPolls, wait_by_poll};

/// Maximum number of times that an operation is submitted again although nothing of it was done.
const MOST_VAIN: u8 = 16;

/// The time after which a backend is tried again.
const NO_BACKEND: Duration = Duration::from_millis(10);

/// What carries out operations.
enum Backend {
    /// The first operation chooses.
    Unchosen,
    Ring(Box<IoUring>),
    Threads(Threads),
}

/// The kinds of backends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// io_uring if the kernel permits it.
    Ring,
    /// Threads, whatever the kernel permits.
    Threads,
}

impl Method {
    /// Whether the kernel permits the method, now.
    pub fn is_available(self) -> bool {
        match self {
            Self::Ring => rings::take().map(rings::give_back).is_some(),
            Self::Threads => true,
        }
    }
}

/// An operation in flight.
struct Flight<T> {
    operation: Operation,
    token: T,
    /// Number of times that the kernel did nothing of it.
    vain: u8,
}

impl<T> Flight<T> {
    /// As [`Operation::take_result`], but the kernel may refuse to begin only so often.
    fn take_result(&mut self, result: i32) -> Step {
        let step = self.operation.take_result(result);
        match step {
            Step::Again if result < 0 && self.vain == MOST_VAIN => {
                Step::Ended(Err(io::Error::from_raw_os_error(-result)))
            }
            Step::Again if result < 0 => {
                self.vain += 1;
                step
            }
            _ => step,
        }
    }
}

/// An operation that has ended.
pub struct Landed<T> {
    /// The token that the operation was submitted with.
    pub token: T,
    /// The kernel's result for the whole operation.
    pub outcome: io::Result<()>,
    /// The operation, without what is done of it.
    pub operation: Operation,
}

/// Operations in flight, each with a token of the caller's.
pub struct Engine<T> {
    method: Method,
    backend: Backend,
    flights: Vec<Option<Flight<T>>>,
    free: Vec<u32>,
    /// Submissions that wait for [`Engine::commit`].
    uncommitted: Vec<u32>,
    /// Results of operations that were found beside those of polls.
    results: Vec<(u32, i32)>,
    polls: RingPolls,
    registered: Registered,
}

impl<T> Engine<T> {
    /// An engine without operations.
    pub fn new(method: Method) -> Self {
        Self {
            method,
            backend: Backend::Unchosen,
            flights: Vec::new(),
            free: Vec::new(),
            uncommitted: Vec::new(),
            results: Vec::new(),
            polls: RingPolls::default(),
            registered: Registered::default(),
        }
    }

    /// Number of operations in flight.
    pub fn in_flight(&self) -> usize {
        self.flights.len() - self.free.len()
    }

    /// A descriptor that is readable while operations have ended that nobody took. None before the
    /// first operation.
    pub fn completions(&self) -> Option<BorrowedFd<'_>> {
        match &self.backend {
            Backend::Unchosen => None,
            // SAFETY: the descriptor is open as long as the ring, which `self` owns.
            Backend::Ring(ring) => Some(unsafe { BorrowedFd::borrow_raw(ring.as_raw_fd()) }),
            Backend::Threads(threads) => Some(threads.as_fd()),
        }
    }

    /// Whether operations have ended that nobody took, without a system call.
    pub fn has_completions(&self) -> bool {
        !self.results.is_empty() || self.has_entries()
    }

    /// Whether the backend has results of operations, or of polls.
    fn has_entries(&self) -> bool {
        match &self.backend {
            Backend::Unchosen => false,
            // SAFETY: no other view of the completion queue exists: the others borrow the ring
            // exclusively, and this one ends with the expression.
            Backend::Ring(ring) => !unsafe { ring.completion_shared() }.is_empty(),
            Backend::Threads(threads) => threads.has_results(),
        }
    }

    /// Adds an operation. It begins with the next [`Engine::commit`].
    pub fn submit(&mut self, mut operation: Operation, token: T) {
        operation.region = match operation.memory().vectors() {
            [piece] => self.registered.index_of(piece),
            _ => None,
        };
        let flight = Some(Flight { operation, token, vain: 0 });
        let index = match self.free.pop() {
            Some(index) => index,
            None => {
                self.flights.push(None);
                (self.flights.len() - 1) as u32
            }
        };
        if let Some(slot) = self.flights.get_mut(index as usize) {
            *slot = flight;
        }
        self.uncommitted.push(index);
    }

    /// As [`Engine::submit`], through memory that the kernel may hold on to when this process is
    /// dead.
    ///
    /// # Errors
    /// The operation: there is no such memory.
    pub fn submit_bounced(
        &mut self,
        mut operation: Operation,
        token: T,
    ) -> Result<(), Box<Operation>> {
        let Some(bounce) = bounce::vector(operation.vector.length()) else {
            return Err(Box::new(operation));
        };
        operation.go_through(bounce);
        self.submit(operation, token);
        Ok(())
    }

    /// Whether direct I/O would gain from [`Engine::register`] for these pieces.
    pub fn wants_region(&self, vector: &OwnedVector) -> bool {
        let is_unknown = |piece| self.registered.index_of(piece).is_none();
        self.method == Method::Ring
            && !matches!(self.backend, Backend::Threads(_))
            && self.registered.has_room()
            && vector.vectors().iter().any(is_unknown)
    }

    /// Registers a region of memory, one piece, for direct I/O with bytes of it, if the kernel
    /// permits that. It stays reachable until [`Engine::unregister`].
    pub fn register(&mut self, region: OwnedVector) {
        // Without a backend, operations fail too.
        drop(self.choose());
        if let Backend::Ring(ring) = &self.backend {
            self.registered.add(ring, region);
        }
    }

    /// Has the kernel forget all regions, if no operation is in flight.
    pub fn unregister(&mut self) {
        if let (Backend::Ring(ring), 0) = (&self.backend, self.in_flight()) {
            self.registered.clear(ring);
        }
    }

    /// Divides a vector for direct I/O so that each part has at most `longest` bytes, and is in one
    /// region if few parts will do.
    pub fn divide(&self, vector: OwnedVector, longest: usize) -> Vec<OwnedVector> {
        let parts = self.registered.divide(vector).into_iter();
        parts.flat_map(|part| part.parts(longest)).collect()
    }

    /// Begins the operations that were added, as far as the kernel takes them now.
    ///
    /// # Errors
    /// No backend works; nothing has begun. The caller calls this again later.
    pub fn commit(&mut self) -> io::Result<()> {
        if self.is_committed() {
            return Ok(());
        }
        self.choose()?;
        let uncommitted = std::mem::take(&mut self.uncommitted);
        match &mut self.backend {
            Backend::Unchosen => {}
            Backend::Threads(threads) => {
                for index in uncommitted {
                    if let Some(Some(flight)) = self.flights.get(index as usize) {
                        threads.submit(index, &flight.operation);
                    }
                }
            }
            Backend::Ring(ring) => {
                self.uncommitted = push_all(ring, &self.flights, uncommitted);
            }
        }
        Ok(())
    }

    /// Whether operations wait for another [`Engine::commit`].
    pub fn is_committed(&mut self) -> bool {
        let handed_over = match &mut self.backend {
            Backend::Ring(ring) => ring.submission().is_empty(),
            Backend::Threads(_) | Backend::Unchosen => true,
        };
        handed_over && self.uncommitted.is_empty()
    }

    fn choose(&mut self) -> io::Result<()> {
        if !matches!(self.backend, Backend::Unchosen) {
            return Ok(());
        }
        let ring = match self.method {
            Method::Ring => rings::take(),
            Method::Threads => None,
        };
        self.backend = match ring {
            Some(IdleRing { ring, last_poll }) => {
                self.polls = RingPolls::after(last_poll);
                Backend::Ring(Box::new(ring))
            }
            None => Backend::Threads(Threads::new()?),
        };
        Ok(())
    }

    /// Takes the operations that have ended, and begins again those of which a part is left.
    pub fn take(&mut self, landed: &mut Vec<Landed<T>>) {
        self.fetch();
        let Self { results, flights, free, uncommitted, .. } = self;
        let mut land = |index: u32, result| {
            let slot = flights.get_mut(index as usize)?;
            match slot.as_mut()?.take_result(result) {
                Step::Again => uncommitted.push(index),
                Step::Ended(outcome) => {
                    let Flight { operation, token, .. } = slot.take()?;
                    free.push(index);
                    landed.push(Landed { token, outcome, operation });
                }
            }
            Some(())
        };
        results.drain(..).for_each(|(index, result)| {
            land(index, result);
        });
        // What the kernel does not take is submitted again by the caller's next commit.
        drop(self.commit());
    }

    /// Fetches all results from the backend.
    fn fetch(&mut self) {
        let Self { backend, results, polls, .. } = self;
        match backend {
            Backend::Unchosen => {}
            Backend::Ring(ring) => loop {
                ring.completion().for_each(|entry| match entry.user_data() {
                    number if number & POLL_MARK != 0 => polls.take_result(number, entry.result()),
                    index => results.push((index as u32, entry.result())),
                });
                // The kernel keeps what the ring cannot hold until it is asked.
                if !ring.submission().cq_overflow() || ring.submit().is_err() {
                    break;
                }
            },
            Backend::Threads(threads) => results.extend(threads.take()),
        }
    }

    /// Waits until one of `fds` is ready or an operation has ended, for at most `limit`
    /// ([`Duration::MAX`]: for ever); may return earlier. With a ring, one system call also begins
    /// what the kernel has not taken yet, and the ring keeps these files open until
    /// [`Engine::stop_polling`] or a wait without them.
    ///
    /// # Errors
    /// The kernel's.
    pub fn wait_for(&mut self, fds: &mut [AwaitedFd], limit: Duration) -> io::Result<()> {
        let ring = match &mut self.backend {
            Backend::Ring(ring) if ring.params().is_feature_ext_arg() => ring,
            Backend::Ring(_) | Backend::Threads(_) | Backend::Unchosen => {
                return wait_by_poll(fds, limit);
            }
        };
        let own = ring.as_raw_fd();
        let has_results = !self.results.is_empty();
        let waited = match wait_in_ring(ring, &mut self.polls, fds, has_results, limit) {
            Some(waited) => waited,
            // The queue is full of what the kernel does not take.
            None => return wait_by_poll(fds, limit),
        };
        self.fetch();
        self.polls.note(fds);
        let has_results = !self.results.is_empty();
        fds.iter_mut().filter(|awaited| awaited.is(own)).for_each(|awaited| {
            awaited.is_ready = has_results;
        });
        waited
    }

    /// Has the ring poll no descriptor any more, so that it keeps no file open.
    pub fn stop_polling(&mut self) {
        if let Backend::Ring(ring) = &mut self.backend {
            stop_polls(ring, &mut self.polls);
            self.fetch();
        }
    }

    /// Waits until at least one operation has ended, or `limit` milliseconds are over.
    pub fn wait(&mut self, limit: u16) {
        // A failure has begun nothing; the next call tries again.
        drop(self.commit());
        if self.has_completions() {
            return;
        }
        let Some(completions) = self.completions() else {
            // No descriptor is left for a backend.
            return std::thread::sleep(NO_BACKEND);
        };
        let mut fds = [PollFd::new(completions, PollFlags::POLLIN)];
        // An interruption is a short wait.
        let _ = poll(&mut fds, PollTimeout::from(limit));
    }
}

/// Hands operations to the kernel; returns those that it did not take.
fn push_all<T>(ring: &mut IoUring, flights: &[Option<Flight<T>>], indices: Vec<u32>) -> Vec<u32> {
    let mut left = Vec::new();
    let mut indices = indices.into_iter();
    for index in indices.by_ref() {
        let Some(Some(flight)) = flights.get(index as usize) else { continue };
        let entry = flight.operation.entry(index.into());
        if ring.submission().is_full() && !submit(ring) {
            left.push(index);
            break;
        }
        // SAFETY: range: the kernel reads the vectors and reads or writes the memory that they
        // describe. Lifetime: the operation stays unchanged in its slot until its completion was
        // taken, and owns a share of the memory; if the engine is dropped before, it leaks the
        // slots. Aliasing: no reference to these bytes exists, since volatile slices make none.
        if unsafe { ring.submission().push(&entry) }.is_err() {
            left.push(index);
            break;
        }
    }
    left.extend(indices);
    submit(ring);
    left
}

impl<T> Drop for Engine<T> {
    /// Leaks what the kernel may still access; gives an idle ring back.
    fn drop(&mut self) {
        self.unregister();
        if self.in_flight() > 0 {
            let flights = std::mem::take(&mut self.flights);
            std::mem::forget((flights, std::mem::take(&mut self.registered)));
            return;
        }
        self.stop_polling();
        let backend = std::mem::replace(&mut self.backend, Backend::Unchosen);
        if let Backend::Ring(ring) = backend
            && self.polls.len() == 0
        {
            rings::give_back(IdleRing { ring: *ring, last_poll: self.polls.last() });
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
