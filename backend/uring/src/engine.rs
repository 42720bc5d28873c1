//! Operations on files that are submitted together and end in the order in which storage answers.
//!
//! The engine never waits for storage, except in [`Engine::wait`]. It uses io_uring, or a few
//! threads of its own where the kernel does not permit that. An operation owns a share of its
//! memory, so that the memory stays reachable until the kernel has finished with it.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

use io_uring::{IoUring, squeue, types};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::operation::{Operation, Step};
use crate::owned::OwnedVector;
use crate::registered::Registered;
use crate::threads::Threads;
use crate::waiting::{AwaitedFd, POLL_MARK, RingPolls, WITHOUT_MEMORY, wait_by_poll};

/// Number of submissions that are handed to the kernel together at most.
const SUBMISSIONS: u32 = 64;
/// Number of completions that the ring holds; the kernel keeps more in a list.
const COMPLETIONS: u32 = 512;
/// Maximum number of the kernel's threads for one engine, for calls that block.
const KERNEL_THREADS: u32 = 4;

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
            Self::Ring => open().is_some(),
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
        operation.region = match operation.vector.vectors() {
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
        if let (Backend::Ring(ring), 0) = (&self.backend, self.flights.len() - self.free.len()) {
            self.registered.clear(ring);
        }
    }

    /// Divides a vector for direct I/O so that each part is in one region, if few parts will do.
    pub fn divide(&self, vector: OwnedVector) -> Vec<OwnedVector> {
        self.registered.divide(vector)
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
            Method::Ring => open(),
            Method::Threads => None,
        };
        self.backend = match ring {
            Some(ring) => Backend::Ring(Box::new(ring)),
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
        if !has_room(ring, fds.len() + self.polls.len()) {
            // The queue is full of what the kernel does not take.
            return wait_by_poll(fds, limit);
        }
        push_polls(ring, &self.polls.change_to(fds, own));
        let is_ready = !self.results.is_empty() || self.polls.has_fired();
        let waited = submit_and_wait(ring, if is_ready { 0 } else { 1 }, limit);
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
            let own = ring.as_raw_fd();
            if has_room(ring, self.polls.len()) {
                push_polls(ring, &self.polls.change_to(&[], own));
                submit(ring);
            }
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

/// Whether the submission queue has room for so many entries, perhaps after others are submitted.
fn has_room(ring: &mut IoUring, count: usize) -> bool {
    let room = |ring: &mut IoUring| {
        let queue = ring.submission();
        queue.capacity().saturating_sub(queue.len()) >= count
    };
    room(ring) || submit(ring) && room(ring)
}

/// Adds submissions about polls, for which the queue has room.
fn push_polls(ring: &mut IoUring, entries: &[squeue::Entry]) {
    for entry in entries {
        // SAFETY: the entry refers to no memory.
        let pushed = unsafe { ring.submission().push(entry) };
        debug_assert!(pushed.is_ok());
    }
}

/// Submits the queue's entries and waits for so many completions, at most for `limit`.
fn submit_and_wait(ring: &IoUring, count: usize, limit: Duration) -> io::Result<()> {
    let waited = if limit == Duration::MAX {
        ring.submit_and_wait(count)
    } else {
        let limit = types::Timespec::from(limit);
        ring.submitter().submit_with_args(count, &types::SubmitArgs::new().timespec(&limit))
    };
    match waited {
        Ok(_) => Ok(()),
        Err(error) => match error.raw_os_error() {
            // The time is over, a signal, or completions have to be fetched first.
            Some(libc::ETIME | libc::EINTR | libc::EBUSY) => Ok(()),
            Some(libc::EAGAIN | libc::ENOMEM) => {
                std::thread::sleep(WITHOUT_MEMORY.min(limit));
                Ok(())
            }
            _ => Err(error),
        },
    }
}

/// Submits the queue's entries; returns whether the kernel took all. What it does not take stays
/// in the queue for the next call.
fn submit(ring: &mut IoUring) -> bool {
    while !ring.submission().is_empty() {
        match ring.submit() {
            Ok(0) => return false,
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // Completions have to be taken first, or memory is short.
            Err(_) => return false,
        }
    }
    true
}

/// Opens a ring, if the kernel permits it and has what the engine needs.
fn open() -> Option<IoUring> {
    let mut builder = IoUring::builder();
    let ring = builder.setup_cqsize(COMPLETIONS).build(SUBMISSIONS);
    let ring = ring
        .inspect_err(|error| {
            tracing::debug!(%error, "io_uring is unavailable; threads serve storage");
        })
        .ok()?;
    let parameters = ring.params();
    if !parameters.is_feature_nodrop() || !parameters.is_feature_submit_stable() {
        tracing::debug!("io_uring is too old (Linux 5.5 is needed); threads serve storage");
        return None;
    }
    // Kernels before 5.15 have no such limit.
    drop(ring.submitter().register_iowq_max_workers(&mut [KERNEL_THREADS, KERNEL_THREADS]));
    Some(ring)
}

impl<T> Drop for Engine<T> {
    /// Leaks what the kernel may still access.
    fn drop(&mut self) {
        self.unregister();
        if self.in_flight() > 0 {
            let flights = std::mem::take(&mut self.flights);
            std::mem::forget((flights, std::mem::take(&mut self.registered)));
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::fs::File;
    use std::io::Write;
    use std::os::fd::AsFd;
    use std::os::unix::fs::FileExt;
    use std::sync::Arc;

    use vm_memory::VolatileSlice;

    use super::*;
    use crate::iovec::WriteMode;
    use crate::operation::Work;

    /// Memory that operations share.
    pub(crate) struct Memory(std::sync::Mutex<Box<[u8]>>, *mut u8);

    // SAFETY: the pointer is to the box, which the value owns.
    unsafe impl Send for Memory {}
    // SAFETY: as above; it is accessed with volatile accesses only.
    unsafe impl Sync for Memory {}

    impl Memory {
        pub(crate) fn new(length: usize) -> Self {
            let mut bytes = vec![0; length].into_boxed_slice();
            let start = bytes.as_mut_ptr();
            Self(std::sync::Mutex::new(bytes), start)
        }

        pub(crate) fn vector(owner: &Arc<Self>, offset: usize, length: usize) -> OwnedVector {
            OwnedVector::new(owner, |memory, pieces| {
                // SAFETY: the tests use ranges inside the box.
                let slice = unsafe { VolatileSlice::new(memory.1.add(offset), length) };
                assert!(pieces.push(&slice));
                Ok::<(), ()>(())
            })
            .unwrap()
        }

        fn bytes(&self) -> Vec<u8> {
            self.0.lock().unwrap().to_vec()
        }
    }

    const METHODS: [Method; 2] = [Method::Ring, Method::Threads];

    fn engine(method: Method) -> Engine<u32> {
        if method == Method::Ring && open().is_none() {
            println!("skipped in part: the kernel refuses io_uring, and threads serve both");
        }
        Engine::new(method)
    }

    /// Waits until all operations have ended; returns their tokens and outcomes by token.
    fn finish(engine: &mut Engine<u32>) -> Vec<(u32, Result<(), io::ErrorKind>)> {
        let mut landed = Vec::new();
        while engine.in_flight() > 0 {
            engine.wait(10_000);
            engine.take(&mut landed);
        }
        let outcome = |landed: Landed<u32>| (landed.token, landed.outcome.map_err(|e| e.kind()));
        let mut outcomes: Vec<_> = landed.into_iter().map(outcome).collect();
        outcomes.sort_by_key(|(token, _)| *token);
        outcomes
    }

    fn file(bytes: &[u8]) -> Arc<File> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        Arc::new(file)
    }

    fn operation(file: &Arc<File>, work: Work, vector: OwnedVector) -> Operation {
        Operation::new(Arc::clone(file), work, vector)
    }

    #[test]
    fn reads_writes_and_syncs_end_with_their_own_outcomes() {
        for method in METHODS {
            let mut engine = engine(method);
            let file = file(b"0123456789");
            let memory = Arc::new(Memory::new(16));
            let write = Work::Write { offset: 10, mode: WriteMode::Through };
            let past = Work::Read { offset: 100 };
            let vector = |offset, length| Memory::vector(&memory, offset, length);
            engine.submit(operation(&file, Work::Read { offset: 2 }, vector(0, 8)), 1);
            engine.submit(operation(&file, past, vector(8, 4)), 2);
            engine.submit(operation(&file, Work::Sync, OwnedVector::empty()), 3);
            engine.submit(operation(&file, write, vector(12, 4)), 4);
            assert_eq!(engine.in_flight(), 4);
            engine.commit().unwrap();
            let eof = Err(io::ErrorKind::UnexpectedEof);
            assert_eq!(finish(&mut engine), [(1, Ok(())), (2, eof), (3, Ok(())), (4, Ok(()))]);
            assert_eq!(memory.bytes()[..8], *b"23456789");
            assert_eq!(file.metadata().unwrap().len(), 14);
            assert!(!engine.has_completions() && engine.is_committed());
            assert_eq!(Arc::strong_count(&memory), 1, "the engine keeps nothing of what has ended");
        }
    }

    #[test]
    fn more_operations_than_the_queue_holds_all_end() {
        for method in METHODS {
            let mut engine = engine(method);
            let bytes: Vec<u8> = (0..200).collect();
            let file = file(&bytes);
            let memory = Arc::new(Memory::new(200));
            for index in 0..200u32 {
                let vector = Memory::vector(&memory, index as usize, 1);
                let read = Work::Read { offset: index.into() };
                engine.submit(operation(&file, read, vector), index);
            }
            engine.commit().unwrap();
            let outcomes = finish(&mut engine);
            assert!(outcomes.iter().enumerate().all(|(at, it)| *it == (at as u32, Ok(()))));
            assert_eq!((outcomes.len(), memory.bytes()), (200, bytes));
        }
    }

    #[test]
    fn more_completions_than_the_ring_holds_are_all_taken() {
        let mut engine = engine(Method::Ring);
        let file = file(&[1; 8]);
        let memory = Arc::new(Memory::new(8));
        let count = 3 * COMPLETIONS;
        for index in 0..count {
            let vector = Memory::vector(&memory, 0, 8);
            engine.submit(operation(&file, Work::Read { offset: 0 }, vector), index);
            // The kernel begins and ends each at once; nobody takes any.
            drop(engine.commit());
        }
        assert_eq!(finish(&mut engine).len(), count as usize);
    }

    #[test]
    fn an_operation_that_storage_does_not_answer_holds_up_no_other() {
        for method in METHODS {
            let mut engine = engine(method);
            // A pipe without a writer's data answers as storage does that hangs.
            let (hung, mut answer) = std::io::pipe().unwrap();
            let hung = Arc::new(File::from(std::os::fd::OwnedFd::from(hung)));
            let other = file(b"data");
            let memory = Arc::new(Memory::new(8));
            // A pipe has no offsets: -1 is its position.
            let read = Work::Read { offset: u64::MAX };
            if method == Method::Ring {
                engine.submit(operation(&hung, read, Memory::vector(&memory, 0, 4)), 1);
            } else {
                // preadv refuses a pipe; the kernel's answer shows that the thread was there.
                engine.submit(operation(&hung, read, Memory::vector(&memory, 0, 4)), 9);
            }
            let vector = Memory::vector(&memory, 4, 4);
            engine.submit(operation(&other, Work::Read { offset: 0 }, vector), 2);
            engine.commit().unwrap();
            let mut landed = Vec::new();
            while !landed.iter().any(|landed: &Landed<u32>| landed.token == 2) {
                engine.wait(10_000);
                engine.take(&mut landed);
            }
            assert_eq!(memory.bytes()[4..], *b"data");
            answer.write_all(b"late").unwrap();
            finish(&mut engine);
            drop(answer);
        }
    }

    #[test]
    fn one_wait_is_for_operations_and_descriptors() {
        for method in METHODS {
            let mut engine = engine(method);
            let file = file(b"data");
            let memory = Arc::new(Memory::new(4));
            let ((news, mut sender), (quiet, _sender)) =
                (std::io::pipe().unwrap(), std::io::pipe().unwrap());
            // Before there is a backend, and with it.
            for _ in 0..2 {
                let wait = |engine: &mut Engine<u32>, limit| {
                    let own = engine.completions();
                    let fds = [news.as_fd(), quiet.as_fd()].into_iter().chain(own);
                    let mut fds: Vec<_> = fds.map(AwaitedFd::readable).collect();
                    engine.wait_for(&mut fds, limit).unwrap();
                    fds.iter().map(|awaited| awaited.is_ready).collect::<Vec<_>>()
                };
                assert!(wait(&mut engine, Duration::ZERO).iter().all(|ready| !ready));
                sender.write_all(b"x").unwrap();
                // It stays ready until it is read.
                for _ in 0..2 {
                    assert_eq!(wait(&mut engine, Duration::MAX)[..2], [true, false]);
                }
                std::io::Read::read_exact(&mut &news, &mut [0]).unwrap();
                assert!(wait(&mut engine, Duration::ZERO).iter().all(|ready| !ready));
                let read = Work::Read { offset: 0 };
                engine.submit(operation(&file, read, Memory::vector(&memory, 0, 4)), 1);
                engine.commit().unwrap();
                assert_eq!(wait(&mut engine, Duration::MAX), [false, false, true], "{method:?}");
                assert_eq!(finish(&mut engine), [(1, Ok(()))]);
            }
        }
    }

    #[test]
    fn a_ring_that_polls_no_more_keeps_no_file_open() {
        let mut engine = engine(Method::Ring);
        engine.choose().unwrap();
        let (reader, mut writer) = std::io::pipe().unwrap();
        let mut fds = [AwaitedFd::readable(reader.as_fd())];
        engine.wait_for(&mut fds, Duration::ZERO).unwrap();
        engine.stop_polling();
        drop(reader);
        // A pipe without a reader.
        assert_eq!(writer.write(b"x").unwrap_err().kind(), io::ErrorKind::BrokenPipe);
        assert!(!engine.has_completions());
    }

    #[test]
    fn an_engine_that_ends_early_leaves_the_memory_to_the_kernel() {
        let mut engine = engine(Method::Ring);
        let (hung, _answer) = std::io::pipe().unwrap();
        let hung = Arc::new(File::from(std::os::fd::OwnedFd::from(hung)));
        let memory = Arc::new(Memory::new(8));
        let vector = Memory::vector(&memory, 0, 4);
        engine.submit(operation(&hung, Work::Read { offset: u64::MAX }, vector), 1);
        engine.commit().unwrap();
        drop(engine);
        assert_eq!(Arc::strong_count(&memory), 2);
    }

    #[test]
    fn a_partial_transfer_goes_on_where_it_stopped() {
        for method in METHODS {
            let mut engine = engine(method);
            let file = file(&[5; 100]);
            let memory = Arc::new(Memory::new(200));
            // The file ends in the middle, and grows before the rest is submitted.
            let read = operation(&file, Work::Read { offset: 0 }, Memory::vector(&memory, 0, 200));
            engine.submit(read, 1);
            engine.commit().unwrap();
            engine.wait(10_000);
            file.write_all_at(&[6; 100], 100).unwrap();
            assert_eq!(finish(&mut engine), [(1, Ok(()))], "{method:?}");
            assert_eq!(memory.bytes(), [[5; 100], [6; 100]].concat());
        }
    }

    #[test]
    fn transfers_of_registered_memory_move_the_same_bytes() {
        let mut engine = engine(Method::Ring);
        let file = file(&[7; 8192]);
        let memory = Arc::new(Memory::new(12288));
        let whole = Memory::vector(&memory, 0, 8192);
        if engine.wants_region(&whole) {
            engine.register(Memory::vector(&memory, 0, 8192));
        }
        assert!(!engine.wants_region(&Memory::vector(&memory, 4096, 4096)));
        // A piece inside the region, one across its end, and one outside.
        for (token, offset) in [(1, 0), (2, 6144), (3, 8192)] {
            let vector = Memory::vector(&memory, offset, 4096);
            engine.submit(operation(&file, Work::Read { offset: 0 }, vector), token);
        }
        engine.commit().unwrap();
        assert_eq!(finish(&mut engine), [(1, Ok(())), (2, Ok(())), (3, Ok(()))]);
        let bytes = memory.bytes();
        assert!(bytes[..4096].iter().chain(&bytes[6144..]).all(|byte| *byte == 7));
        assert!(bytes[4096..6144].iter().all(|byte| *byte == 0));
        assert!(Arc::strong_count(&memory) > 1, "the registration has a share of the memory");
        engine.unregister();
        drop(whole);
        assert_eq!(Arc::strong_count(&memory), 1);
    }

    #[test]
    fn operations_of_a_thread_that_has_ended_are_begun_again() {
        if !Method::Ring.is_available() {
            println!("skipped: the kernel refuses io_uring");
            return;
        }
        let (pipe, mut writer) = io::pipe().unwrap();
        let file = Arc::new(File::from(std::os::fd::OwnedFd::from(pipe)));
        let memory = Arc::new(Memory::new(8));
        let read = operation(&file, Work::Read { offset: 0 }, Memory::vector(&memory, 0, 8));
        let mut engine = engine(Method::Ring);
        let submit = move || {
            engine.submit(read, 1);
            engine.commit().unwrap();
            engine
        };
        let mut engine = std::thread::spawn(submit).join().unwrap();
        let mut landed = Vec::new();
        engine.take(&mut landed);
        assert!(landed.is_empty(), "{:?}", landed.first().map(|landed| &landed.outcome));
        writer.write_all(&[7; 8]).unwrap();
        assert_eq!(finish(&mut engine), [(1, Ok(()))]);
        assert_eq!(memory.bytes(), [7; 8]);
    }

    #[test]
    fn a_vector_is_divided_only_where_all_is_registered() {
        let mut engine = engine(Method::Ring);
        let memory = Arc::new(Memory::new(16384));
        let two = || {
            OwnedVector::new(&memory, |memory, pieces| {
                for offset in [0, 8192] {
                    // SAFETY: the ranges are inside the box.
                    let slice = unsafe { VolatileSlice::new(memory.1.add(offset), 4096) };
                    assert!(pieces.push(&slice));
                }
                Ok::<(), ()>(())
            })
            .unwrap()
        };
        assert_eq!(engine.divide(two()).len(), 1);
        engine.register(Memory::vector(&memory, 0, 4096));
        assert_eq!(engine.divide(two()).len(), 1);
        engine.register(Memory::vector(&memory, 8192, 8192));
        if Method::Ring.is_available() {
            assert_eq!(engine.divide(two()).len(), 2);
        }
    }
}
