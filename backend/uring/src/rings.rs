//! The io_uring instances of a process: made when they are needed or, for a process that gives up
//! the right to make any, before.

use std::io;
use std::mem;
use std::sync::{Mutex, MutexGuard, OnceLock};

use io_uring::register::Restriction;
use io_uring::{IoUring, opcode};

/// Number of submissions that are handed to the kernel together at most.
const SUBMISSIONS: u32 = 64;
/// Number of completions that the ring holds; the kernel keeps more in a list.
pub(crate) const COMPLETIONS: u32 = 512;
/// Maximum number of the kernel's threads for one ring, for calls that block.
const KERNEL_THREADS: u32 = 4;

/// Operations that a restricted ring carries out: on files that are open, and nothing else.
const OPERATIONS: [u8; 7] = [
    opcode::Readv::CODE,
    opcode::Writev::CODE,
    opcode::ReadFixed::CODE,
    opcode::WriteFixed::CODE,
    opcode::Fsync::CODE,
    opcode::PollAdd::CODE,
    opcode::PollRemove::CODE,
];

/// What may be registered with a restricted ring (`IORING_REGISTER_…` of Linux
/// `include/uapi/linux/io_uring.h`): `UNREGISTER_BUFFERS`, `BUFFERS2` and `BUFFERS_UPDATE`.
pub const REGISTRATIONS: [u8; 3] = [1, 15, 16];

/// A ring without operations or polls.
pub(crate) struct IdleRing {
    pub(crate) ring: IoUring,
    /// The number of its latest poll: a late result of an earlier user's has another.
    pub(crate) last_poll: u32,
}

/// The rings that are left of [`stock`]; unset if rings are made when they are needed.
static STOCK: OnceLock<Mutex<Vec<IdleRing>>> = OnceLock::new();

/// Makes `count` rings that read, write and sync files that are open, and that this process cannot
/// extend. From then on it makes no other ring; where none is left, threads do the work.
///
/// # Errors
/// The kernel's. Then the process has no ring.
pub fn stock(count: usize) -> io::Result<()> {
    let rings = (0..count).map(|_| restricted()).collect::<io::Result<Vec<_>>>();
    let (rings, outcome) = match rings {
        Ok(rings) => (rings, Ok(())),
        Err(error) => (Vec::new(), Err(error)),
    };
    STOCK.set(Mutex::new(rings)).map_err(|_| io::ErrorKind::AlreadyExists)?;
    outcome
}

fn restricted() -> io::Result<IdleRing> {
    let ring = make(IoUring::builder().setup_r_disabled())?;
    let operations = OPERATIONS.into_iter().map(Restriction::sqe_op);
    let registrations = REGISTRATIONS.into_iter().map(Restriction::register_op);
    let mut permitted: Vec<_> = operations.chain(registrations).collect();
    ring.submitter().register_restrictions(&mut permitted)?;
    ring.submitter().register_enable_rings()?;
    Ok(IdleRing { ring, last_poll: 0 })
}

fn make(builder: &mut io_uring::Builder) -> io::Result<IoUring> {
    let ring = builder.setup_cqsize(COMPLETIONS).build(SUBMISSIONS)?;
    let parameters = ring.params();
    if !parameters.is_feature_nodrop() || !parameters.is_feature_submit_stable() {
        return Err(io::Error::other("io_uring is too old (Linux 5.5 is needed)"));
    }
    // Kernels before 5.15 have no such limit.
    drop(ring.submitter().register_iowq_max_workers(&mut [KERNEL_THREADS, KERNEL_THREADS]));
    Ok(ring)
}

fn lock(stock: &Mutex<Vec<IdleRing>>) -> MutexGuard<'_, Vec<IdleRing>> {
    stock.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// Takes a ring, if the kernel permits it and has what the engines need.
pub(crate) fn take() -> Option<IdleRing> {
    if let Some(stock) = STOCK.get() {
        let ring = lock(stock).pop();
        if ring.is_none() {
            tracing::debug!("all io_uring instances are in use; threads serve storage");
        }
        return ring;
    }
    let ring = make(&mut IoUring::builder()).inspect_err(|error| {
        tracing::debug!(%error, "io_uring is unavailable; threads serve storage");
    });
    Some(IdleRing { ring: ring.ok()?, last_poll: 0 })
}

/// Gives a ring back that is idle.
pub(crate) fn give_back(mut idle: IdleRing) {
    let is_idle = idle.ring.submission().is_empty() && idle.ring.completion().is_empty();
    if let Some(stock) = STOCK.get().filter(|_| is_idle) {
        lock(stock).push(idle);
    } else {
        mem::drop(idle);
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use io_uring::{squeue, types};

    use super::*;

    /// The result of one operation.
    fn result(ring: &mut IoUring, entry: &squeue::Entry) -> i32 {
        // SAFETY: the operation's memory lives until its result is here.
        unsafe { ring.submission().push(entry) }.unwrap();
        ring.submit_and_wait(1).unwrap();
        ring.completion().next().unwrap().result()
    }

    #[test]
    fn restricted_ring_opens_nothing_and_takes_no_further_rights() {
        let Ok(IdleRing { mut ring, .. }) = restricted() else {
            return println!("skipped: the kernel refuses io_uring");
        };
        let file = tempfile::tempfile().unwrap();
        let sync = opcode::Fsync::new(types::Fd(file.as_raw_fd())).build();
        assert_eq!(result(&mut ring, &sync), 0);
        let root = types::Fd(libc::AT_FDCWD);
        let socket = opcode::Socket::new(libc::AF_UNIX, libc::SOCK_STREAM, 0).build();
        let others = [
            opcode::OpenAt::new(root, c"/".as_ptr()).build(),
            socket,
            opcode::UnlinkAt::new(root, c"/nothing".as_ptr()).build(),
            opcode::Close::new(types::Fd(file.as_raw_fd())).build(),
            sync.flags(squeue::Flags::ASYNC),
        ];
        for other in others {
            assert_eq!(result(&mut ring, &other), -libc::EACCES);
        }
        let submitter = ring.submitter();
        let refused = [
            submitter.register_personality().map(drop),
            submitter.register_files(&[file.as_raw_fd()]),
            submitter.register_restrictions(&mut [Restriction::sqe_op(opcode::OpenAt::CODE)]),
        ];
        refused.into_iter().for_each(|refused| assert!(refused.is_err()));
    }
}
