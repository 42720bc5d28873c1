//! Submits several transfers between a file and memory that another domain can change with one
//! io_uring system call. Slow storage processes them in parallel. The file may also be a message
//! device, such as a TAP interface.
//!
//! The engine reports the transfers that completed in full; the caller does the others one by one.
//! If the kernel has no io_uring or refuses it, the engine reports none.

use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsRawFd, BorrowedFd};

use io_uring::{IoUring, opcode, squeue, types};
use libc::RWF_NOWAIT;
use vm_memory::VolatileSlice;

use crate::iovec::{IoVec, WriteMode};

/// Maximum number of transfers in a batch.
pub const CAPACITY: usize = 32;

/// The direction of a transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the file into the vector.
    Read,
    /// From the vector to the file.
    Write,
}

/// The set of transfers that completed in full, by the numbers that the caller added them with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Completed(u64);

impl Completed {
    /// Whether transfer `number` completed in full.
    pub fn has(self, number: usize) -> bool {
        self.0 & bit(number) != 0
    }
}

/// The results of a batch of messages, by the numbers that the caller added them with.
#[derive(Clone, Copy, Debug)]
pub struct MessageResults([Option<i32>; CAPACITY]);

impl MessageResults {
    /// The length of message `number` in bytes, or the kernel's error; `None` if the engine did
    /// not try it.
    pub fn of(&self, number: usize) -> Option<io::Result<usize>> {
        let result = self.0.get(number).copied().flatten()?;
        Some(usize::try_from(result).map_err(|_| io::Error::from_raw_os_error(-result)))
    }
}

fn bit(number: usize) -> u64 {
    u32::try_from(number).ok().and_then(|number| 1u64.checked_shl(number)).unwrap_or(0)
}

/// The io_uring instance; the engine opens it for the first batch.
enum Ring {
    Untried,
    Ready(Box<IoUring>),
    Refused,
}

/// One transfer. Its vectors follow those of the previous transfer in `FileEngine::vectors`.
struct Transfer {
    number: usize,
    direction: Direction,
    offset: u64,
    pieces: usize,
    length: usize,
}

/// Flags of preadv2 (`read`) and pwritev2 (`write`).
#[derive(Clone, Copy)]
struct Flags {
    read: i32,
    write: i32,
}

/// Buffers and io_uring instance for one batch at a time.
pub struct FileEngine {
    ring: Ring,
    /// The file has no RWF_NOWAIT, so a read of a message would block.
    waits: bool,
    vectors: Vec<libc::iovec>,
    transfers: Vec<Transfer>,
}

// SAFETY: only a batch, which has the lifetime of the memory, dereferences the vectors' pointers.
// Between two batches the vectors are stale and nobody dereferences them.
unsafe impl Send for FileEngine {}

impl Default for FileEngine {
    fn default() -> Self {
        Self { ring: Ring::Untried, waits: false, vectors: Vec::new(), transfers: Vec::new() }
    }
}

impl FileEngine {
    /// Whether [`Batch::run_messages`] may work; `true` until the kernel refuses it.
    pub fn can_batch_messages(&self) -> bool {
        !self.waits && !matches!(self.ring, Ring::Refused)
    }

    /// Returns an empty batch.
    pub fn batch<'m>(&mut self) -> Batch<'_, 'm> {
        self.vectors.clear();
        self.transfers.clear();
        Batch { engine: self, memory: PhantomData }
    }
}

/// Transfers to be submitted together.
pub struct Batch<'t, 'm> {
    engine: &'t mut FileEngine,
    memory: PhantomData<VolatileSlice<'m>>,
}

impl<'m> Batch<'_, 'm> {
    /// Adds a transfer between `vector` and the file's bytes from `offset` on. `number`, below 64,
    /// identifies it. The batch ignores a transfer beyond [`CAPACITY`] and an empty one.
    pub fn add(&mut self, number: usize, direction: Direction, offset: u64, vector: &IoVec<'m>) {
        let vectors = vector.vectors();
        if vectors.is_empty() || self.engine.transfers.len() == CAPACITY {
            return;
        }
        self.engine.vectors.extend_from_slice(vectors);
        let (pieces, length) = (vectors.len(), vector.length());
        self.engine.transfers.push(Transfer { number, direction, offset, pieces, length });
    }

    /// Submits the transfers, in any order, and returns those that completed in full. A batch of
    /// one is not submitted: the caller's own system call costs as much.
    pub fn run(self, file: BorrowedFd<'_>, mode: WriteMode) -> Completed {
        let mut completed = Completed::default();
        let flags = Flags { read: 0, write: mode.flags() };
        self.engine.submit(file, flags, |transfer, result| {
            if usize::try_from(result).is_ok_and(|length| length == transfer.length) {
                completed.0 |= bit(transfer.number);
            }
        });
        completed
    }

    /// As [`Batch::run`] for a message device: each transfer receives or sends one message without
    /// blocking, in the order in which the caller added them. Numbers are below [`CAPACITY`].
    pub fn run_messages(self, file: BorrowedFd<'_>) -> MessageResults {
        let mut results = MessageResults([None; CAPACITY]);
        let mut waits = false;
        let flags = Flags { read: RWF_NOWAIT, write: RWF_NOWAIT };
        self.engine.submit(file, flags, |transfer, result| {
            // TAP interfaces support RWF_NOWAIT since Linux 6.4.
            waits |= result == -libc::EOPNOTSUPP;
            let place = results.0.get_mut(transfer.number).into_iter();
            place.for_each(|at| *at = Some(result).filter(|_| !waits));
        });
        self.engine.waits = waits;
        results
    }
}

impl FileEngine {
    /// Submits all transfers and calls `done` with the kernel's result of each. Calls it for none
    /// if there are fewer than two or if io_uring does not work.
    fn submit(&mut self, file: BorrowedFd<'_>, flags: Flags, done: impl FnMut(&Transfer, i32)) {
        let Self { ring, vectors, transfers, .. } = self;
        if transfers.len() < 2 {
            return;
        }
        if matches!(ring, Ring::Untried) {
            *ring = open();
        }
        let Ring::Ready(ready) = ring else { return };
        if let Err(error) = run(ready, (file, flags), vectors, transfers, done) {
            tracing::warn!(%error, "io_uring failed; requests are served one by one from now on");
            // The kernel has no transfer in flight, and nobody submits the remaining ones.
            *ring = Ring::Refused;
        }
    }
}

fn open() -> Ring {
    match IoUring::new(CAPACITY as u32) {
        Ok(ring) => Ring::Ready(Box::new(ring)),
        Err(error) => {
            tracing::debug!(%error, "io_uring is unavailable; requests are served one by one");
            Ring::Refused
        }
    }
}

/// Submits all transfers to the kernel and waits until every one completes.
///
/// # Errors
/// The kernel's error; no transfer is in flight then.
fn run(
    ring: &mut IoUring,
    file: (BorrowedFd<'_>, Flags),
    vectors: &[libc::iovec],
    transfers: &[Transfer],
    done: impl FnMut(&Transfer, i32),
) -> io::Result<()> {
    let mut rest = vectors;
    for transfer in transfers {
        let (own, later) = rest
            .split_at_checked(transfer.pieces)
            .ok_or_else(|| io::Error::other("internal error: a transfer without its vectors"))?;
        rest = later;
        let entry = entry(transfer, file, own);
        // SAFETY: range: the kernel reads the vectors and reads or writes the memory that they
        // describe: bytes of the slices in the batch's vector. If such memory is mapped read-only,
        // the kernel's write fails. Lifetime: the slices live for 'm, as the batch does, and `wait`
        // returns only after the kernel has finished with them. Aliasing: no reference to these
        // bytes exists, since volatile slices make none.
        unsafe { ring.submission().push(&entry) }.map_err(io::Error::other)?;
    }
    wait(ring, transfers, done)
}

fn entry(
    transfer: &Transfer,
    (file, flags): (BorrowedFd<'_>, Flags),
    vectors: &[libc::iovec],
) -> squeue::Entry {
    let (file, count) = (types::Fd(file.as_raw_fd()), vectors.len() as u32);
    let (vectors, offset) = (vectors.as_ptr(), transfer.offset);
    let entry = match transfer.direction {
        Direction::Read => {
            opcode::Readv::new(file, vectors, count).offset(offset).rw_flags(flags.read).build()
        }
        Direction::Write => {
            opcode::Writev::new(file, vectors, count).offset(offset).rw_flags(flags.write).build()
        }
    };
    entry.user_data(transfer.number as u64)
}

/// Waits until the kernel has completed every transfer that it accepted, and calls `done` for each.
fn wait(
    ring: &mut IoUring,
    transfers: &[Transfer],
    mut done: impl FnMut(&Transfer, i32),
) -> io::Result<()> {
    let mut count = 0;
    loop {
        let waited = ring.submit_and_wait(transfers.len() - count);
        for completion in ring.completion() {
            count += 1;
            let number = completion.user_data();
            let transfer = transfers.iter().find(|transfer| transfer.number as u64 == number);
            transfer.into_iter().for_each(|transfer| done(transfer, completion.result()));
        }
        if count >= transfers.len() {
            return Ok(());
        }
        match waited.map_err(|error| (error.kind(), error)) {
            Ok(_) | Err((io::ErrorKind::Interrupted, _)) => {}
            // Transfers are in flight: if this returned, the kernel would write into memory that
            // belongs to the guest again.
            Err(_) if count + ring.submission().len() < transfers.len() => {
                std::thread::yield_now();
            }
            Err((_, error)) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek, SeekFrom, Write};
    use std::os::fd::AsFd;

    use super::*;

    fn vector<'m>(parts: &mut [&'m mut [u8]]) -> IoVec<'m> {
        let mut vector = IoVec::default();
        for part in parts {
            // Each part is moved out of the array, so this slice is its only user.
            let part: &'m mut [u8] = std::mem::take(part);
            assert!(vector.push(&VolatileSlice::from(part)));
        }
        vector
    }

    /// Whether the kernel permits io_uring.
    fn allowed() -> bool {
        let allowed = matches!(open(), Ring::Ready(_));
        if !allowed {
            println!("skipped in part: the kernel refuses io_uring");
        }
        allowed
    }

    #[test]
    fn batch_reads_and_writes_together() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"0123456789").unwrap();
        let (mut first, mut second, mut third) = ([0; 2], [0; 3], *b"ab");
        let mut transfers = FileEngine::default();
        let mut batch = transfers.batch();
        batch.add(7, Direction::Read, 1, &vector(&mut [&mut first, &mut second]));
        batch.add(63, Direction::Write, 8, &vector(&mut [&mut third]));
        let completed = batch.run(file.as_fd(), WriteMode::Back);
        assert_eq!(
            (completed.has(7), completed.has(63), completed.has(0)),
            (allowed(), allowed(), false)
        );
        if allowed() {
            let mut now = String::new();
            file.seek(SeekFrom::Start(0)).unwrap();
            file.read_to_string(&mut now).unwrap();
            assert_eq!((now.as_str(), &first, &second), ("01234567ab", b"12", b"345"));
        }
    }

    #[test]
    fn partial_and_failed_transfers_are_not_reported_as_completed() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"0123456789").unwrap();
        let mut bytes = [[0; 4]; 4];
        let [cut, past, whole, other] = &mut bytes;
        let mut transfers = FileEngine::default();
        let mut batch = transfers.batch();
        batch.add(0, Direction::Read, 8, &vector(&mut [cut]));
        batch.add(1, Direction::Read, u64::MAX / 2 + 1, &vector(&mut [past]));
        batch.add(2, Direction::Read, 6, &vector(&mut [whole]));
        let completed = batch.run(file.as_fd(), WriteMode::Back);
        assert_eq!([0, 1, 2].map(|number| completed.has(number)), [false, false, allowed()]);
        let mut batch = transfers.batch();
        batch.add(0, Direction::Read, 0, &vector(&mut [other]));
        assert_eq!(
            batch.run(file.as_fd(), WriteMode::Back),
            Completed::default(),
            "a batch of one is not submitted"
        );
    }

    #[test]
    fn message_results_have_order_lengths_and_missing_messages() {
        let (ours, theirs) = std::os::unix::net::UnixDatagram::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        theirs.set_nonblocking(true).unwrap();
        let (mut first, mut second) = (*b"one", *b"three");
        let mut transfers = FileEngine::default();
        let mut batch = transfers.batch();
        batch.add(0, Direction::Write, 0, &vector(&mut [&mut first]));
        batch.add(1, Direction::Write, 0, &vector(&mut [&mut second]));
        let sent = batch.run_messages(ours.as_fd());
        if !allowed() {
            assert!(sent.of(0).is_none() && sent.of(1).is_none());
            return;
        }
        assert_eq!([0, 1].map(|number| sent.of(number).unwrap().unwrap()), [3, 5]);
        let mut buffers = [[0; 8]; 3];
        let [one, two, three] = &mut buffers;
        let mut batch = transfers.batch();
        for (number, buffer) in [one, two, three].into_iter().enumerate() {
            batch.add(number, Direction::Read, 0, &vector(&mut [buffer]));
        }
        let taken = batch.run_messages(theirs.as_fd());
        assert_eq!([0, 1].map(|number| taken.of(number).unwrap().unwrap()), [3, 5]);
        let missing = taken.of(2).unwrap().unwrap_err();
        assert_eq!((missing.kind(), taken.of(3).is_none()), (io::ErrorKind::WouldBlock, true));
        assert_eq!((&buffers[0][..3], &buffers[1][..5]), (&b"one"[..], &b"three"[..]));
    }

    #[test]
    fn batch_ignores_transfers_beyond_its_capacity() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[1; CAPACITY + 1]).unwrap();
        let mut bytes = [[0]; CAPACITY + 1];
        let mut transfers = FileEngine::default();
        for _ in 0..3 {
            let mut batch = transfers.batch();
            for (number, byte) in bytes.iter_mut().enumerate() {
                *byte = [0];
                batch.add(number, Direction::Read, number as u64, &vector(&mut [byte]));
            }
            let completed = batch.run(file.as_fd(), WriteMode::Back);
            assert!(!completed.has(CAPACITY));
            assert!((0..CAPACITY).all(|number| completed.has(number) == allowed()));
            let filled = bytes.iter().filter(|byte| **byte == [1]).count();
            assert_eq!(filled, if allowed() { CAPACITY } else { 0 });
        }
    }
}
