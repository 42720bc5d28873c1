//! One operation on a file, and what is left of it.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use io_uring::{opcode, squeue, types};

use crate::iovec::WriteMode;
use crate::owned::OwnedVector;

/// What an operation does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// Reads the file from `offset` on into the vector.
    Read {
        /// Offset in the file, in bytes.
        offset: u64,
    },
    /// Writes the vector to the file from `offset` on.
    Write {
        /// Offset in the file, in bytes.
        offset: u64,
        /// When the data has to be durable.
        mode: WriteMode,
    },
    /// Makes written data durable, as fdatasync.
    Sync,
}

impl Work {
    /// The work without its first `count` bytes.
    pub fn skipped(self, count: u64) -> Self {
        match self {
            Self::Read { offset } => Self::Read { offset: offset.saturating_add(count) },
            Self::Write { offset, mode } => {
                Self::Write { offset: offset.saturating_add(count), mode }
            }
            Self::Sync => Self::Sync,
        }
    }
}

/// An operation that is submitted, or the rest of it.
#[derive(Clone)]
pub struct Operation {
    /// The file.
    pub file: Arc<File>,
    /// What to do with it.
    pub work: Work,
    /// The memory; empty for [`Work::Sync`].
    pub vector: OwnedVector,
    /// The registered region that has all of the memory, which is one piece then.
    pub(crate) region: Option<u16>,
    /// The memory that the kernel transfers from or to instead.
    bounce: Option<OwnedVector>,
}

/// What the kernel's result means for an operation.
#[derive(Debug)]
pub(crate) enum Step {
    /// The operation has ended.
    Ended(io::Result<()>),
    /// A part is done, or the kernel did nothing of it: the rest is submitted again.
    Again,
}

impl Operation {
    /// An operation on `file`.
    pub fn new(file: Arc<File>, work: Work, vector: OwnedVector) -> Self {
        Self { file, work, vector, region: None, bounce: None }
    }

    /// Has the kernel transfer from and to `bounce`, of the same length.
    pub(crate) fn go_through(&mut self, bounce: OwnedVector) {
        if let Work::Write { .. } = self.work {
            self.vector.copy_to(&bounce, self.vector.length());
        }
        self.bounce = Some(bounce);
    }

    /// The memory that the kernel transfers from or to.
    pub(crate) fn memory(&self) -> &OwnedVector {
        self.bounce.as_ref().unwrap_or(&self.vector)
    }

    /// Takes the kernel's result, a number of bytes or a negated error number, and removes from the
    /// operation what is done.
    pub(crate) fn take_result(&mut self, result: i32) -> Step {
        let count = match usize::try_from(result) {
            Ok(count) => count,
            // The kernel cancels what waits when the thread that submitted it ends: another thread
            // begins it again.
            Err(_) if matches!(-result, libc::EINTR | libc::EAGAIN | libc::ECANCELED) => {
                return Step::Again;
            }
            Err(_) => return Step::Ended(Err(io::Error::from_raw_os_error(-result))),
        };
        let (offset, end) = match &mut self.work {
            Work::Sync => return Step::Ended(Ok(())),
            Work::Read { offset } => (offset, io::ErrorKind::UnexpectedEof),
            Work::Write { offset, .. } => (offset, io::ErrorKind::WriteZero),
        };
        *offset = offset.saturating_add(count as u64);
        if let Some(bounce) = &mut self.bounce {
            if let Work::Read { .. } = self.work {
                bounce.copy_to(&self.vector, count);
            }
            bounce.skip(count);
        }
        self.vector.skip(count);
        match (self.vector.length(), count) {
            (0, _) => Step::Ended(Ok(())),
            (_, 0) => Step::Ended(Err(end.into())),
            _ => Step::Again,
        }
    }

    /// The submission queue entry. Its pointers are valid while `self` is neither changed nor
    /// dropped.
    pub(crate) fn entry(&self, user_data: u64) -> squeue::Entry {
        let file = types::Fd(self.file.as_raw_fd());
        let vectors = self.memory().vectors();
        let (start, count) = (vectors.as_ptr(), vectors.len() as u32);
        let registered = match vectors {
            [piece] => self.region.map(|region| (region, piece.iov_base.cast(), length(piece))),
            _ => None,
        };
        let entry = match (self.work, registered) {
            (Work::Read { offset }, None) => {
                opcode::Readv::new(file, start, count).offset(offset).build()
            }
            (Work::Read { offset }, Some((region, start, length))) => {
                opcode::ReadFixed::new(file, start, length, region).offset(offset).build()
            }
            (Work::Write { offset, mode }, None) => {
                let entry = opcode::Writev::new(file, start, count).offset(offset);
                entry.rw_flags(mode.flags()).build()
            }
            (Work::Write { offset, mode }, Some((region, start, length))) => {
                let entry = opcode::WriteFixed::new(file, start, length, region).offset(offset);
                entry.rw_flags(mode.flags()).build()
            }
            (Work::Sync, _) => opcode::Fsync::new(file).flags(types::FsyncFlags::DATASYNC).build(),
        };
        entry.user_data(user_data)
    }

    /// Carries out the operation once in the calling thread; returns the kernel's result as
    /// io_uring does.
    pub(crate) fn call(&self) -> i32 {
        let file = self.file.as_raw_fd();
        let vectors = self.memory().vectors();
        let (start, count) = (vectors.as_ptr(), vectors.len() as i32);
        let place = |offset| i64::try_from(offset).unwrap_or(i64::MAX);
        let result = match self.work {
            // SAFETY: range and lifetime: each vector describes memory that its owner keeps
            // reachable while `self` has it. If it is mapped read-only, the call fails.
            // Aliasing: no reference to it exists, since volatile slices make none.
            Work::Read { offset } => unsafe { libc::preadv(file, start, count, place(offset)) },
            Work::Write { offset, mode } => {
                // SAFETY: as for the read; the kernel only reads the memory.
                unsafe { libc::pwritev2(file, start, count, place(offset), mode.flags()) }
            }
            // SAFETY: the call has no pointer.
            Work::Sync => unsafe { libc::fdatasync(file) as isize },
        };
        match i32::try_from(result) {
            Ok(count) if count >= 0 => count,
            _ => -io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO),
        }
    }
}

/// The length of a piece; more than the kernel takes at once is a partial transfer.
fn length(piece: &libc::iovec) -> u32 {
    u32::try_from(piece.iov_len).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_takes_no_more_or_ends_is_an_error() {
        let file = Arc::new(tempfile::tempfile().unwrap());
        let owner = Arc::new(crate::engine::tests::Memory::new(8));
        let read = |owner: &Arc<_>| {
            let vector = crate::engine::tests::Memory::vector(owner, 0, 8);
            Operation::new(Arc::clone(&file), Work::Read { offset: 0 }, vector)
        };
        let mut operation = read(&owner);
        assert!(matches!(operation.take_result(-libc::EINTR), Step::Again));
        assert!(matches!(operation.take_result(3), Step::Again));
        assert_eq!(operation.work, Work::Read { offset: 3 });
        let Step::Ended(Err(error)) = operation.take_result(0) else { panic!("it goes on") };
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        assert!(matches!(read(&owner).take_result(8), Step::Ended(Ok(()))));
        let Step::Ended(Err(error)) = read(&owner).take_result(-libc::EIO) else {
            panic!("it goes on")
        };
        assert_eq!(error.raw_os_error(), Some(libc::EIO));
    }
}
