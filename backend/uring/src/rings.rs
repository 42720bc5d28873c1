//! The io_uring instances of a process: made when they are needed or, for a process that gives up
//! the right to make any, before.

use std::io;
use std::mem::{self, ManuallyDrop};
use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, MutexGuard, OnceLock};

use io_uring::register::{Probe, Restriction};
use io_uring::squeue::Flags;
use io_uring::{IoUring, opcode};

/// Number of submissions that are handed to the kernel together at most.
const SUBMISSIONS: u32 = 64;
/// Number of completions that the ring holds; the kernel keeps more in a list.
pub(crate) const COMPLETIONS: u32 = 512;
/// Maximum number of the kernel's threads for one ring, for calls that block.
const KERNEL_THREADS: u32 = 4;

/// Operations that a restricted ring carries out: on files that are open, and nothing else.
const OPERATIONS: [u8; 8] = [
    opcode::Readv::CODE,
    opcode::Writev::CODE,
    opcode::ReadFixed::CODE,
    opcode::WriteFixed::CODE,
    opcode::Fsync::CODE,
    opcode::PollAdd::CODE,
    opcode::PollRemove::CODE,
    opcode::AsyncCancel::CODE,
];

/// What may be registered with a restricted ring (`IORING_REGISTER_…` of Linux
/// `include/uapi/linux/io_uring.h`): `UNREGISTER_BUFFERS`, `BUFFERS2` and `BUFFERS_UPDATE`, and
/// buffers for messages: `PBUF_RING` and `UNREGISTER_PBUF_RING`.
pub const REGISTRATIONS: [u8; 5] = [1, 15, 16, 22, 23];

const PBUF_RING: u8 = 22;

/// A ring without operations or polls.
pub(crate) struct IdleRing {
    pub(crate) ring: IoUring,
    /// The number of its latest poll: a late result of an earlier user's has another.
    pub(crate) last_poll: u32,
}

/// Whether the kernel receives messages; unset before the first ring.
static CAN_RECEIVE: OnceLock<bool> = OnceLock::new();

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
    let receives = can_receive();
    let operations = OPERATIONS.into_iter().map(Restriction::sqe_op);
    let mut permitted: Vec<_> = operations.collect();
    if receives {
        // An older kernel refuses what it does not know.
        permitted.push(Restriction::sqe_op(opcode::ReadMulti::CODE));
        permitted.push(Restriction::sqe_flags_allowed(Flags::BUFFER_SELECT.bits()));
    }
    let known = REGISTRATIONS.into_iter().filter(|number| receives || *number < PBUF_RING);
    permitted.extend(known.map(Restriction::register_op));
    ring.submitter().register_restrictions(&mut permitted)?;
    ring.submitter().register_enable_rings()?;
    Ok(IdleRing { ring, last_poll: 0 })
}

/// Whether the kernel receives messages into buffers of a ring as they arrive (Linux 6.7), as far
/// as is known: from the first ring on.
pub(crate) fn can_receive() -> bool {
    CAN_RECEIVE.get().is_some_and(|can| *can)
}

fn probe(ring: &IoUring) -> bool {
    let mut probe = Probe::new();
    let probed = ring.submitter().register_probe(&mut probe);
    probed.is_ok() && probe.is_supported(opcode::ReadMulti::CODE)
}

fn make(builder: &mut io_uring::Builder) -> io::Result<IoUring> {
    let ring = builder.setup_cqsize(COMPLETIONS).build(SUBMISSIONS)?;
    let parameters = ring.params();
    if !parameters.is_feature_nodrop() || !parameters.is_feature_submit_stable() {
        return Err(io::Error::other("io_uring is too old (Linux 5.5 is needed)"));
    }
    CAN_RECEIVE.get_or_init(|| probe(&ring));
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
            tracing::debug!("all io_uring instances are in use: it goes on without");
        }
        return ring;
    }
    let ring = make(&mut IoUring::builder()).inspect_err(|error| {
        tracing::debug!(%error, "io_uring is unavailable: it goes on without");
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

/// A ring that goes back when it is dropped.
pub(crate) struct LentRing {
    ring: ManuallyDrop<IoUring>,
    last_poll: u32,
    /// It is in use, and for nobody else.
    is_kept: bool,
}

impl LentRing {
    /// A ring whose latest poll had this number.
    pub(crate) fn new(ring: IoUring, last_poll: u32) -> Self {
        Self { ring: ManuallyDrop::new(ring), last_poll, is_kept: false }
    }

    /// Notes the number of the latest poll.
    pub(crate) fn set_last_poll(&mut self, last_poll: u32) {
        self.last_poll = last_poll;
    }

    /// The ring does not go back: the kernel may work on something.
    pub(crate) fn keep_from_others(&mut self) {
        self.is_kept = true;
    }
}

impl Deref for LentRing {
    type Target = IoUring;

    fn deref(&self) -> &IoUring {
        &self.ring
    }
}

impl DerefMut for LentRing {
    fn deref_mut(&mut self) -> &mut IoUring {
        &mut self.ring
    }
}

impl Drop for LentRing {
    fn drop(&mut self) {
        // SAFETY: the field is taken once, here, and nothing uses it afterwards.
        let ring = unsafe { ManuallyDrop::take(&mut self.ring) };
        if !self.is_kept {
            give_back(IdleRing { ring, last_poll: self.last_poll });
        }
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
