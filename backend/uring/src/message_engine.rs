//! Submits several messages between a message device, such as a TAP interface, and memory that
//! another domain can change, with one io_uring system call. If the kernel has no io_uring or
//! refuses it, the engine submits none, and the caller does them one by one.

use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsRawFd, BorrowedFd};

use io_uring::{IoUring, opcode, squeue, types};
use libc::RWF_NOWAIT;
use vm_memory::VolatileSlice;

use crate::iovec::IoVec;
use crate::rings::{self, IdleRing};

/// Maximum number of messages in a batch; their numbers are below it.
pub const CAPACITY: usize = 32;

/// The direction of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the device into the vector.
    Read,
    /// From the vector to the device.
    Write,
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

/// The io_uring instance; the engine opens it for the first batch.
enum Ring {
    Untried,
    Ready(Box<IdleRing>),
    Refused,
}

/// One transfer. Its vectors follow those of the previous transfer in `MessageEngine::vectors`.
struct Transfer {
    number: usize,
    direction: Direction,
    pieces: usize,
}

/// Buffers and io_uring instance for one batch at a time.
pub struct MessageEngine {
    ring: Ring,
    /// The file has no RWF_NOWAIT, so a read of a message would block.
    waits: bool,
    vectors: Vec<libc::iovec>,
    transfers: Vec<Transfer>,
}

// SAFETY: only a batch, which has the lifetime of the memory, dereferences the vectors' pointers.
// Between two batches the vectors are stale and nobody dereferences them.
unsafe impl Send for MessageEngine {}

impl Default for MessageEngine {
    fn default() -> Self {
        Self { ring: Ring::Untried, waits: false, vectors: Vec::new(), transfers: Vec::new() }
    }
}

impl Drop for MessageEngine {
    fn drop(&mut self) {
        // No batch is under way.
        if let Ring::Ready(ring) = std::mem::replace(&mut self.ring, Ring::Refused) {
            rings::give_back(*ring);
        }
    }
}

impl MessageEngine {
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
    engine: &'t mut MessageEngine,
    memory: PhantomData<VolatileSlice<'m>>,
}

impl<'m> Batch<'_, 'm> {
    /// Adds a message in `vector`. `number`, below [`CAPACITY`], identifies it. The batch ignores a
    /// message beyond [`CAPACITY`] and an empty one.
    pub fn add(&mut self, number: usize, direction: Direction, vector: &IoVec<'m>) {
        let vectors = vector.vectors();
        if vectors.is_empty() || self.engine.transfers.len() == CAPACITY {
            return;
        }
        self.engine.vectors.extend_from_slice(vectors);
        self.engine.transfers.push(Transfer { number, direction, pieces: vectors.len() });
    }

    /// Receives or sends the messages without blocking, in the order in which the caller added
    /// them. A batch of one is not submitted: the caller's own system call costs as much.
    pub fn run_messages(self, file: BorrowedFd<'_>) -> MessageResults {
        let mut results = MessageResults([None; CAPACITY]);
        let mut waits = false;
        self.engine.submit(file, |transfer, result| {
            // TAP interfaces support RWF_NOWAIT since Linux 6.4.
            waits |= result == -libc::EOPNOTSUPP;
            let place = results.0.get_mut(transfer.number).into_iter();
            place.for_each(|at| *at = Some(result).filter(|_| !waits));
        });
        self.engine.waits = waits;
        results
    }
}

impl MessageEngine {
    /// Submits all transfers and calls `done` with the kernel's result of each. Calls it for none
    /// if there are fewer than two or if io_uring does not work.
    fn submit(&mut self, file: BorrowedFd<'_>, done: impl FnMut(&Transfer, i32)) {
        let Self { ring, vectors, transfers, .. } = self;
        if transfers.len() < 2 {
            return;
        }
        if matches!(ring, Ring::Untried) {
            *ring = open();
        }
        let Ring::Ready(ready) = ring else { return };
        if let Err(error) = run(&mut ready.ring, file, vectors, transfers, done) {
            tracing::warn!(%error, "io_uring failed; requests are served one by one from now on");
            // The kernel has no transfer in flight, and nobody submits the remaining ones.
            *ring = Ring::Refused;
        }
    }
}

fn open() -> Ring {
    match rings::take() {
        Some(ring) => Ring::Ready(Box::new(ring)),
        None => Ring::Refused,
    }
}

/// Submits all transfers to the kernel and waits until every one completes.
///
/// # Errors
/// The kernel's error; no transfer is in flight then.
fn run(
    ring: &mut IoUring,
    file: BorrowedFd<'_>,
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

fn entry(transfer: &Transfer, file: BorrowedFd<'_>, vectors: &[libc::iovec]) -> squeue::Entry {
    let (file, count) = (types::Fd(file.as_raw_fd()), vectors.len() as u32);
    let vectors = vectors.as_ptr();
    let entry = match transfer.direction {
        Direction::Read => opcode::Readv::new(file, vectors, count).rw_flags(RWF_NOWAIT).build(),
        Direction::Write => opcode::Writev::new(file, vectors, count).rw_flags(RWF_NOWAIT).build(),
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
    fn message_results_have_order_lengths_and_missing_messages() {
        let (ours, theirs) = std::os::unix::net::UnixDatagram::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        theirs.set_nonblocking(true).unwrap();
        let (mut first, mut second) = (*b"one", *b"three");
        let mut transfers = MessageEngine::default();
        let mut batch = transfers.batch();
        batch.add(0, Direction::Write, &vector(&mut [&mut first]));
        batch.add(1, Direction::Write, &vector(&mut [&mut second]));
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
            batch.add(number, Direction::Read, &vector(&mut [buffer]));
        }
        let taken = batch.run_messages(theirs.as_fd());
        assert_eq!([0, 1].map(|number| taken.of(number).unwrap().unwrap()), [3, 5]);
        let missing = taken.of(2).unwrap().unwrap_err();
        assert_eq!((missing.kind(), taken.of(3).is_none()), (io::ErrorKind::WouldBlock, true));
        assert_eq!((&buffers[0][..3], &buffers[1][..5]), (&b"one"[..], &b"three"[..]));
    }

    #[test]
    fn batch_ignores_messages_beyond_its_capacity_and_does_not_submit_one_alone() {
        let (ours, theirs) = std::os::unix::net::UnixDatagram::pair().unwrap();
        theirs.set_nonblocking(true).unwrap();
        let mut bytes = [[0]; CAPACITY + 1];
        let mut transfers = MessageEngine::default();
        for _ in 0..3 {
            for _ in 0..=CAPACITY {
                // The socket's queue may hold fewer.
                if ours.set_nonblocking(true).and_then(|()| ours.send(&[1])).is_err() {
                    break;
                }
            }
            let mut batch = transfers.batch();
            for (number, byte) in bytes.iter_mut().enumerate() {
                *byte = [0];
                batch.add(number, Direction::Read, &vector(&mut [byte]));
            }
            let results = batch.run_messages(theirs.as_fd());
            assert!(results.of(CAPACITY).is_none());
            assert!((0..CAPACITY).all(|number| results.of(number).is_some() == allowed()));
            let filled = bytes.iter().filter(|byte| **byte == [1]).count();
            let taken = (0..CAPACITY).filter(|number| matches!(results.of(*number), Some(Ok(1))));
            assert_eq!(filled, taken.count());
            while theirs.recv(&mut [0]).is_ok() {}
        }
        ours.send(&[1]).unwrap();
        let mut batch = transfers.batch();
        let mut alone = [0];
        batch.add(0, Direction::Read, &vector(&mut [&mut alone]));
        assert!(batch.run_messages(theirs.as_fd()).of(0).is_none());
        assert_eq!(alone, [0]);
    }
}
