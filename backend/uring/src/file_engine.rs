//! Several transfers between a file and memory that another domain can change, with one system
//! call, and side by side where the storage takes time: io_uring. The file may also be one of
//! messages, such as a TAP interface.
//!
//! Whoever asks is told what was moved whole, and moves the rest one by one: that also is what
//! happens where the kernel has no io_uring or refuses it.

use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsRawFd, BorrowedFd};

use io_uring::{IoUring, opcode, squeue, types};
use libc::RWF_NOWAIT;
use vm_memory::VolatileSlice;

use crate::iovec::{IoVec, WriteMode};

/// Most transfers of a batch.
pub const CAPACITY: usize = 32;

/// Which way bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the file into the pieces.
    Read,
    /// From the pieces to the file.
    Write,
}

/// Which transfers of a batch, by the numbers that they were added with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Completed(u64);

impl Completed {
    /// Whether the transfer of that number was moved whole.
    pub fn has(self, number: usize) -> bool {
        self.0 & bit(number) != 0
    }
}

/// What became of messages, by the numbers that they were added with.
#[derive(Clone, Copy, Debug)]
pub struct MessageResults([Option<i32>; CAPACITY]);

impl MessageResults {
    /// The length of the message of that number, or why there is none; `None` if it was not tried.
    pub fn of(&self, number: usize) -> Option<io::Result<usize>> {
        let result = self.0.get(number).copied().flatten()?;
        Some(usize::try_from(result).map_err(|_| io::Error::from_raw_os_error(-result)))
    }
}

fn bit(number: usize) -> u64 {
    u32::try_from(number).ok().and_then(|number| 1u64.checked_shl(number)).unwrap_or(0)
}

/// The kernel's side.
enum Ring {
    Untried,
    Ready(Box<IoUring>),
    Refused,
}

/// One transfer; its pieces follow those of the one before.
struct Transfer {
    number: usize,
    way: Direction,
    offset: u64,
    pieces: usize,
    length: usize,
}

/// Flags of preadv2 and pwritev2.
#[derive(Clone, Copy)]
struct Flags {
    fill: i32,
    store: i32,
}

/// Room for batches, one after the other.
pub struct FileEngine {
    ring: Ring,
    /// The kernel cannot be told not to wait for messages.
    waits: bool,
    vectors: Vec<libc::iovec>,
    transfers: Vec<Transfer>,
}

// SAFETY: what the vectors point to is looked at by a batch alone, which has their lifetime;
// between two batches they are leftovers that nobody follows.
unsafe impl Send for FileEngine {}

impl Default for FileEngine {
    fn default() -> Self {
        Self { ring: Ring::Untried, waits: false, vectors: Vec::new(), transfers: Vec::new() }
    }
}

impl FileEngine {
    /// Whether messages can be exchanged, as far as is known.
    pub fn can_batch_messages(&self) -> bool {
        !self.waits && !matches!(self.ring, Ring::Refused)
    }

    /// An empty batch.
    pub fn batch<'m>(&mut self) -> Batch<'_, 'm> {
        self.vectors.clear();
        self.transfers.clear();
        Batch { room: self, memory: PhantomData }
    }
}

/// FileEngine to be done together.
pub struct Batch<'t, 'm> {
    room: &'t mut FileEngine,
    memory: PhantomData<VolatileSlice<'m>>,
}

impl<'m> Batch<'_, 'm> {
    /// Adds a transfer of all the pieces, from or to the file's bytes from `offset` on. What finds
    /// no room is not moved. `number`, below 64, names it.
    pub fn add(&mut self, number: usize, way: Direction, offset: u64, pieces: &IoVec<'m>) {
        let vectors = pieces.vectors();
        if vectors.is_empty() || self.room.transfers.len() == CAPACITY {
            return;
        }
        self.room.vectors.extend_from_slice(vectors);
        let (pieces, length) = (vectors.len(), pieces.length());
        self.room.transfers.push(Transfer { number, way, offset, pieces, length });
    }

    /// Does them in any order, if there are two at least, and gives those that were moved whole.
    /// One alone is as well done by itself.
    pub fn run(self, file: BorrowedFd<'_>, mode: WriteMode) -> Completed {
        let mut moved = Completed::default();
        let flags = Flags { fill: 0, store: mode.flags() };
        self.room.submit(file, flags, |transfer, result| {
            if usize::try_from(result).is_ok_and(|length| length == transfer.length) {
                moved.0 |= bit(transfer.number);
            }
        });
        moved
    }

    /// As [`Batch::run`] with a file of messages: each transfer takes or gives one, in their order,
    /// and waits for none. Numbers are below [`CAPACITY`].
    pub fn run_messages(self, file: BorrowedFd<'_>) -> MessageResults {
        let mut exchanged = MessageResults([None; CAPACITY]);
        let mut waits = false;
        let flags = Flags { fill: RWF_NOWAIT, store: RWF_NOWAIT };
        self.room.submit(file, flags, |transfer, result| {
            // Before Linux 6.4 TAP interfaces knew no such flag.
            waits |= result == -libc::EOPNOTSUPP;
            let place = exchanged.0.get_mut(transfer.number).into_iter();
            place.for_each(|at| *at = Some(result).filter(|_| !waits));
        });
        self.room.waits = waits;
        exchanged
    }
}

impl FileEngine {
    /// Tells `done` the kernel's result of each transfer, of none if they are not to be done
    /// together.
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
            tracing::warn!(%error, "io_uring fails; requests are served one by one from now on");
            // Nothing is under way, and what was not taken up never will be.
            *ring = Ring::Refused;
        }
    }
}

fn open() -> Ring {
    match IoUring::new(CAPACITY as u32) {
        Ok(ring) => Ring::Ready(Box::new(ring)),
        Err(error) => {
            tracing::debug!(%error, "no io_uring; requests are served one by one");
            Ring::Refused
        }
    }
}

/// Hands all transfers to the kernel and waits for every one.
///
/// # Errors
/// The kernel's, with none under way any more.
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
        // SAFETY: the kernel reads the vectors and reads or writes the memory that they say: bytes
        // of the slices that were given to the batch's pieces and live for 'm, as the batch does,
        // and which are for writing or the kernel's access fails. No reference to them is there:
        // volatile slices make none. `wait` does not return before the kernel has done with them.
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
    let entry = match transfer.way {
        Direction::Read => {
            opcode::Readv::new(file, vectors, count).offset(offset).rw_flags(flags.fill).build()
        }
        Direction::Write => {
            opcode::Writev::new(file, vectors, count).offset(offset).rw_flags(flags.store).build()
        }
    };
    entry.user_data(transfer.number as u64)
}

/// Waits until the kernel has done with everything that it took up, and tells `done` of each.
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
            // Left alone, the kernel would write into memory that is the guest's again.
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

    fn pieces<'m>(parts: &mut [&'m mut [u8]]) -> IoVec<'m> {
        let mut pieces = IoVec::default();
        for part in parts {
            // Each part is used by this alone.
            let part: &'m mut [u8] = std::mem::take(part);
            assert!(pieces.push(&VolatileSlice::from(part)));
        }
        pieces
    }

    /// Whether this kernel lets us.
    fn allowed() -> bool {
        let allowed = matches!(open(), Ring::Ready(_));
        if !allowed {
            println!("skipped in part: the kernel refuses io_uring");
        }
        allowed
    }

    #[test]
    fn transfers_of_both_ways_are_done_together() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"0123456789").unwrap();
        let (mut first, mut second, mut third) = ([0; 2], [0; 3], *b"ab");
        let mut transfers = FileEngine::default();
        let mut batch = transfers.batch();
        batch.add(7, Direction::Read, 1, &pieces(&mut [&mut first, &mut second]));
        batch.add(63, Direction::Write, 8, &pieces(&mut [&mut third]));
        let moved = batch.run(file.as_fd(), WriteMode::Back);
        assert_eq!((moved.has(7), moved.has(63), moved.has(0)), (allowed(), allowed(), false));
        if allowed() {
            let mut now = String::new();
            file.seek(SeekFrom::Start(0)).unwrap();
            file.read_to_string(&mut now).unwrap();
            assert_eq!((now.as_str(), &first, &second), ("01234567ab", b"12", b"345"));
        }
    }

    #[test]
    fn what_is_cut_off_or_refused_is_not_moved_and_the_next_batch_is_its_own() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"0123456789").unwrap();
        let mut bytes = [[0; 4]; 4];
        let [cut, past, whole, other] = &mut bytes;
        let mut transfers = FileEngine::default();
        let mut batch = transfers.batch();
        batch.add(0, Direction::Read, 8, &pieces(&mut [cut]));
        batch.add(1, Direction::Read, u64::MAX / 2 + 1, &pieces(&mut [past]));
        batch.add(2, Direction::Read, 6, &pieces(&mut [whole]));
        let moved = batch.run(file.as_fd(), WriteMode::Back);
        assert_eq!([0, 1, 2].map(|number| moved.has(number)), [false, false, allowed()]);
        let mut batch = transfers.batch();
        batch.add(0, Direction::Read, 0, &pieces(&mut [other]));
        assert_eq!(
            batch.run(file.as_fd(), WriteMode::Back),
            Completed::default(),
            "one alone is not worth it"
        );
    }

    #[test]
    fn messages_keep_their_order_and_their_lengths_and_those_that_are_missing_are_known() {
        let (ours, theirs) = std::os::unix::net::UnixDatagram::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        theirs.set_nonblocking(true).unwrap();
        let (mut first, mut second) = (*b"one", *b"three");
        let mut transfers = FileEngine::default();
        let mut batch = transfers.batch();
        batch.add(0, Direction::Write, 0, &pieces(&mut [&mut first]));
        batch.add(1, Direction::Write, 0, &pieces(&mut [&mut second]));
        let sent = batch.run_messages(ours.as_fd());
        if !allowed() {
            assert!(sent.of(0).is_none() && sent.of(1).is_none());
            return;
        }
        assert_eq!([0, 1].map(|number| sent.of(number).unwrap().unwrap()), [3, 5]);
        let mut rooms = [[0; 8]; 3];
        let [one, two, three] = &mut rooms;
        let mut batch = transfers.batch();
        for (number, room) in [one, two, three].into_iter().enumerate() {
            batch.add(number, Direction::Read, 0, &pieces(&mut [room]));
        }
        let taken = batch.run_messages(theirs.as_fd());
        assert_eq!([0, 1].map(|number| taken.of(number).unwrap().unwrap()), [3, 5]);
        let missing = taken.of(2).unwrap().unwrap_err();
        assert_eq!((missing.kind(), taken.of(3).is_none()), (io::ErrorKind::WouldBlock, true));
        assert_eq!((&rooms[0][..3], &rooms[1][..5]), (&b"one"[..], &b"three"[..]));
    }

    #[test]
    fn there_is_room_for_so_many() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[1; CAPACITY + 1]).unwrap();
        let mut bytes = [[0]; CAPACITY + 1];
        let mut transfers = FileEngine::default();
        for _ in 0..3 {
            let mut batch = transfers.batch();
            for (number, byte) in bytes.iter_mut().enumerate() {
                *byte = [0];
                batch.add(number, Direction::Read, number as u64, &pieces(&mut [byte]));
            }
            let moved = batch.run(file.as_fd(), WriteMode::Back);
            assert!(!moved.has(CAPACITY));
            assert!((0..CAPACITY).all(|number| moved.has(number) == allowed()));
            let filled = bytes.iter().filter(|byte| **byte == [1]).count();
            assert_eq!(filled, if allowed() { CAPACITY } else { 0 });
        }
    }
}
