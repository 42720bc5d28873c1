//! Transfers between a file and memory that another domain can change, without a copy: several
//! pieces of memory with one system call.

use std::io;
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};

use vm_memory::VolatileSlice;

/// Maximum number of pieces in one system call.
const MOST: usize = 64;

/// When written data has to reach stable storage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WriteMode {
    /// At the next flush (write-back).
    #[default]
    Back,
    /// When the write completes (write-through).
    Through,
}

impl WriteMode {
    /// The flags of pwritev2 that request this mode.
    pub(crate) fn flags(self) -> libc::c_int {
        match self {
            Self::Back => 0,
            Self::Through => libc::RWF_DSYNC,
        }
    }
}

/// Memory for vectors, which is not cleared first: that would cost as much as a short transfer.
type Vectors = [MaybeUninit<libc::iovec>; MOST];

/// An ordered list of pieces of memory. Adjacent pieces are merged.
pub struct IoVec<'a> {
    vectors: Vectors,
    /// Number of vectors that are set.
    count: usize,
    length: usize,
    memory: PhantomData<VolatileSlice<'a>>,
}

impl Default for IoVec<'_> {
    fn default() -> Self {
        Self {
            vectors: [const { MaybeUninit::uninit() }; MOST],
            count: 0,
            length: 0,
            memory: PhantomData,
        }
    }
}

impl<'a> IoVec<'a> {
    /// Appends a piece; returns `false` if the list is full.
    pub fn push(&mut self, piece: &VolatileSlice<'a>) -> bool {
        let (start, length) = (piece.ptr_guard_mut().as_ptr(), piece.len());
        let last = set_mut(&mut self.vectors, self.count).last_mut();
        if !lengthen(last, start, length) {
            let Some(next) = self.vectors.get_mut(self.count) else { return false };
            next.write(libc::iovec { iov_base: start.cast(), iov_len: length });
            self.count += 1;
        }
        self.length += length;
        true
    }

    /// Total length in bytes.
    pub fn length(&self) -> usize {
        self.length
    }

    /// The pieces as the kernel expects them.
    pub(crate) fn vectors(&self) -> &[libc::iovec] {
        set(&self.vectors, self.count)
    }

    /// Iterates over the pieces, adjacent ones merged.
    pub fn slices(&self) -> impl Iterator<Item = VolatileSlice<'a>> {
        self.vectors().iter().map(|vector| {
            // SAFETY: range and lifetime: the vector is one slice that `push` took, or several
            // adjacent ones, and all live for 'a. Aliasing: accesses are volatile, as they are
            // through the original slices.
            unsafe { VolatileSlice::new(vector.iov_base.cast(), vector.iov_len) }
        })
    }

    /// Fills the vector with the file's bytes from `offset` on.
    ///
    /// # Errors
    /// The kernel's error, or [`io::ErrorKind::UnexpectedEof`] if the file ends early.
    pub fn read_from(&self, file: BorrowedFd<'_>, offset: u64) -> io::Result<()> {
        self.transfer(offset, io::ErrorKind::UnexpectedEof, |vectors, offset| {
            // SAFETY: range: the kernel writes into the memory that each vector describes: bytes of
            // the slices that `push` took. If they are mapped read-only, the call fails. Lifetime:
            // they live for 'a. Aliasing: no reference to them exists, since volatile slices make
            // none.
            unsafe { preadv(file.as_raw_fd(), vectors.as_ptr(), vectors.len(), offset) }
        })
    }

    /// Fills the vector with the file's bytes from `offset` on, if the page cache has all of them.
    /// Otherwise returns `false`; a part may have been filled.
    ///
    /// # Errors
    /// The kernel's error; [`io::ErrorKind::Unsupported`] if the file system cannot tell.
    pub fn read_cached(&self, file: BorrowedFd<'_>, offset: u64) -> io::Result<bool> {
        let offset = i64::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
        let (vectors, count) = (self.vectors(), self.vectors().len() as i32);
        // SAFETY: as for `read_from`.
        let read = unsafe {
            let file = file.as_raw_fd();
            libc::preadv2(file, vectors.as_ptr(), count, offset, libc::RWF_NOWAIT)
        };
        match usize::try_from(read) {
            Ok(count) => Ok(count == self.length),
            Err(_) => {
                let error = io::Error::last_os_error();
                match error.raw_os_error() {
                    Some(libc::EAGAIN | libc::EINTR) => Ok(false),
                    _ => Err(error),
                }
            }
        }
    }

    /// Writes the vector to the file from `offset` on.
    ///
    /// # Errors
    /// The kernel's error, or [`io::ErrorKind::WriteZero`] if the file takes no more bytes.
    pub fn write_to(&self, file: BorrowedFd<'_>, offset: u64, mode: WriteMode) -> io::Result<()> {
        self.transfer(offset, io::ErrorKind::WriteZero, |vectors, offset| {
            let (file, count) = (file.as_raw_fd(), vectors.len() as i32);
            // SAFETY: the kernel reads the memory that each vector describes: bytes of the slices
            // that `push` took, which live for 'a.
            unsafe { libc::pwritev2(file, vectors.as_ptr(), count, offset, mode.flags()) }
        })
    }

    /// Sends the vector as one message, for example to a TAP interface.
    ///
    /// # Errors
    /// The kernel's error, or [`io::ErrorKind::WriteZero`] if the kernel took only a part.
    pub fn send(&self, file: BorrowedFd<'_>) -> io::Result<()> {
        let vectors = self.vectors();
        // SAFETY: the kernel reads the memory that each vector describes: bytes of the slices that
        // `push` took, which live for 'a.
        let sent =
            unsafe { libc::writev(file.as_raw_fd(), vectors.as_ptr(), vectors.len() as i32) };
        match usize::try_from(sent) {
            Ok(count) if count == self.length => Ok(()),
            Ok(_) => Err(io::ErrorKind::WriteZero.into()),
            Err(_) => Err(io::Error::last_os_error()),
        }
    }

    /// Repeats `call` until all bytes are transferred. Fails with `end` if a call transfers none.
    fn transfer(
        &self,
        offset: u64,
        end: io::ErrorKind,
        call: impl Fn(&[libc::iovec], libc::off_t) -> isize,
    ) -> io::Result<()> {
        let at = i64::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
        let moved = call(self.vectors(), at);
        if usize::try_from(moved).is_ok_and(|moved| moved == self.length) {
            return Ok(());
        }
        self.transfer_rest(moved, offset, end, call)
    }

    /// Goes on after a first call that transferred `moved` bytes, or failed.
    #[cold]
    fn transfer_rest(
        &self,
        mut moved: isize,
        offset: u64,
        end: io::ErrorKind,
        call: impl Fn(&[libc::iovec], libc::off_t) -> isize,
    ) -> io::Result<()> {
        let (mut left, mut done) = (Left::of(self), 0);
        loop {
            match usize::try_from(moved) {
                Ok(0) => return Err(end.into()),
                Ok(count) => {
                    left.skip(count);
                    done += count;
                }
                Err(_) => {
                    let error = io::Error::last_os_error();
                    if error.kind() != io::ErrorKind::Interrupted {
                        return Err(error);
                    }
                }
            }
            if done >= self.length {
                return Ok(());
            }
            let at = offset.checked_add(done as u64).and_then(|at| i64::try_from(at).ok());
            moved = call(left.vectors(), at.ok_or(io::ErrorKind::InvalidInput)?);
        }
    }
}

/// The system call. The C library's function is a cancellation point, which costs more than the
/// rest of a short read here.
///
/// # Safety
/// As for the C library's function.
#[cfg(target_pointer_width = "64")]
unsafe fn preadv(file: RawFd, vectors: *const libc::iovec, count: usize, offset: i64) -> isize {
    // SAFETY: the caller's. On 64 bits the offset is one argument, and the last one is unused.
    unsafe { libc::syscall(libc::SYS_preadv, file, vectors, count, offset, 0) as isize }
}

/// The first `count` vectors, which are set.
fn set(vectors: &Vectors, count: usize) -> &[libc::iovec] {
    let set = vectors.get(..count).unwrap_or(&[]);
    // SAFETY: initialisation: `push` sets vector after vector and counts them, and copies of the
    // room keep the count, so the first `count` are set.
    unsafe { set.assume_init_ref() }
}

/// As [`set`].
fn set_mut(vectors: &mut Vectors, count: usize) -> &mut [libc::iovec] {
    let set = vectors.get_mut(..count).unwrap_or(&mut []);
    // SAFETY: as in `set`.
    unsafe { set.assume_init_mut() }
}

/// The vectors that remain after a partial transfer.
struct Left {
    vectors: Vectors,
    first: usize,
    count: usize,
}

impl Left {
    fn of(vector: &IoVec<'_>) -> Self {
        Self { vectors: vector.vectors, first: 0, count: vector.count }
    }

    fn vectors(&self) -> &[libc::iovec] {
        set(&self.vectors, self.count).get(self.first..).unwrap_or(&[])
    }

    /// Removes `count` bytes from the front.
    fn skip(&mut self, count: usize) {
        let vectors = set_mut(&mut self.vectors, self.count);
        self.first += skip(vectors.get_mut(self.first..).unwrap_or(&mut []), count);
    }
}

/// Lengthens a vector by `length` bytes at `start` if they follow it; returns whether they do.
pub(crate) fn lengthen(last: Option<&mut libc::iovec>, start: *mut u8, length: usize) -> bool {
    let end = |last: &libc::iovec| last.iov_base as usize + last.iov_len;
    let last = last.filter(|last| end(last) == start as usize);
    last.is_some_and(|last| {
        last.iov_len += length;
        true
    })
}

/// Removes `count` bytes from the front of a list; returns the number of vectors that have none
/// left.
pub(crate) fn skip(vectors: &mut [libc::iovec], mut count: usize) -> usize {
    let mut empty = 0;
    for vector in vectors {
        let taken = count.min(vector.iov_len);
        vector.iov_base = vector.iov_base.wrapping_byte_add(taken);
        vector.iov_len -= taken;
        count -= taken;
        if vector.iov_len > 0 {
            break;
        }
        empty += 1;
    }
    empty
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek, SeekFrom, Write};
    use std::os::fd::AsFd;

    use super::*;

    fn slice(bytes: &mut [u8]) -> VolatileSlice<'_> {
        VolatileSlice::from(bytes)
    }

    #[test]
    fn several_pieces_transfer_in_order() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"0123456789").unwrap();
        let (mut first, mut second) = ([0; 3], [0; 4]);
        {
            let mut vector = IoVec::default();
            assert!(vector.push(&slice(&mut first)) && vector.push(&slice(&mut second)));
            assert_eq!(vector.length(), 7);
            vector.read_from(file.as_fd(), 2).unwrap();
            vector.write_to(file.as_fd(), 0, WriteMode::Through).unwrap();
            let past = vector.read_from(file.as_fd(), 5).unwrap_err();
            assert_eq!(past.kind(), io::ErrorKind::UnexpectedEof);
        }
        let mut now = Vec::new();
        file.seek(SeekFrom::Start(0)).unwrap();
        file.read_to_end(&mut now).unwrap();
        assert_eq!(now, b"2345678789");
    }

    /// The number of dirty pages of a file, from cachestat; `None` if the kernel does not report
    /// it.
    fn dirty_pages(file: &std::fs::File) -> Option<u64> {
        /// The system call's number on x86-64 and arm64.
        const CACHESTAT: libc::c_long = 451;
        let (whole, mut counts) = ([0u64; 2], [0u64; 5]);
        // SAFETY: the kernel reads two u64 and writes five, which live past the call.
        let done = unsafe {
            libc::syscall(CACHESTAT, file.as_raw_fd(), &raw const whole, &raw mut counts, 0)
        };
        (done == 0).then_some(counts[1])
    }

    #[test]
    fn write_through_leaves_no_dirty_pages() {
        let file = tempfile::tempfile().unwrap();
        let mut bytes = [7; 4096];
        let mut vector = IoVec::default();
        assert!(vector.push(&slice(&mut bytes)));
        vector.write_to(file.as_fd(), 0, WriteMode::Back).unwrap();
        if dirty_pages(&file).is_none_or(|pages| pages == 0) {
            println!("skipped in part: no dirty page counts, or the file is in memory only");
            return;
        }
        vector.write_to(file.as_fd(), 0, WriteMode::Through).unwrap();
        assert_eq!(dirty_pages(&file), Some(0));
    }

    #[test]
    fn message_is_sent_whole_or_fails() {
        let (ours, theirs) = std::os::unix::net::UnixDatagram::pair().unwrap();
        let (mut first, mut second) = (*b"01", *b"234");
        let mut vector = IoVec::default();
        assert!(vector.push(&slice(&mut first)) && vector.push(&slice(&mut second)));
        vector.send(ours.as_fd()).unwrap();
        let mut message = [0; 8];
        assert_eq!(theirs.recv(&mut message).unwrap(), 5);
        assert_eq!(&message[..5], b"01234");
        drop(theirs);
        assert!(vector.send(ours.as_fd()).is_err());
    }

    #[test]
    fn adjacent_pieces_are_merged_and_others_are_limited() {
        let mut bytes = [0; 4 * MOST];
        let whole = slice(&mut bytes);
        let piece = |at| whole.subslice(at, 2).unwrap();
        let mut vector = IoVec::default();
        assert!((0..2 * MOST).all(|number| vector.push(&piece(2 * number))));
        assert_eq!(vector.slices().map(|slice| slice.len()).collect::<Vec<_>>(), [4 * MOST]);
        let mut vector = IoVec::default();
        assert!((0..MOST).all(|number| vector.push(&piece(4 * number))));
        assert!(!vector.push(&piece(0)));
        assert_eq!(vector.length(), 2 * MOST);
    }

    #[test]
    fn partial_transfer_continues_at_its_end() {
        let mut bytes = [0; 16];
        let whole = slice(&mut bytes);
        let mut vector = IoVec::default();
        for at in [0, 6, 12] {
            vector.push(&whole.subslice(at, 4).unwrap());
        }
        let seen = std::cell::RefCell::new(Vec::new());
        let moved = vector.transfer(100, io::ErrorKind::WriteZero, |vectors, offset| {
            seen.borrow_mut().push((vectors.len(), vectors[0].iov_len, offset));
            5
        });
        moved.unwrap();
        assert_eq!(*seen.borrow(), [(3, 4, 100), (2, 3, 105), (1, 2, 110)]);
    }
}
