//! The system calls of a guest's process, by purpose. The kernel kills the process at any other.

use std::collections::BTreeMap;

use seccompiler::{
    BackendError, BpfProgram, Error as SeccompError, SeccompAction, SeccompCmpArgLen, SeccompCmpOp,
    SeccompCondition, SeccompFilter, SeccompRule, TargetArch, apply_filter,
};

use crate::tap::IOCTLS as TAP_IOCTLS;
use uring::block_device::IOCTLS as BLOCK_IOCTLS;
use uring::rings::REGISTRATIONS;
use xen::GUEST_IOCTLS as XEN_IOCTLS;

/// Calls that are permitted with any arguments, by purpose.
const CALLS: &[libc::c_long] = &[
    // To read and write files that are open.
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_readv,
    libc::SYS_writev,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_preadv,
    libc::SYS_pwritev,
    libc::SYS_preadv2,
    libc::SYS_pwritev2,
    libc::SYS_io_uring_enter,
    libc::SYS_lseek,
    // To change disks that are open, and to have them written.
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_fallocate,
    libc::SYS_fadvise64,
    libc::SYS_ftruncate,
    // To ask what a file is that is open, or in the empty root.
    libc::SYS_fstat,
    libc::SYS_statx,
    libc::SYS_fstatfs,
    // To close a file; `fcntl` copies descriptors.
    libc::SYS_close,
    // To exchange messages by sockets that are open.
    libc::SYS_recvmsg,
    libc::SYS_sendmsg,
    libc::SYS_recvfrom,
    libc::SYS_sendto,
    libc::SYS_accept4,
    libc::SYS_shutdown,
    // To wait, and to wake another thread.
    #[cfg(target_arch = "x86_64")]
    libc::SYS_poll,
    libc::SYS_ppoll,
    libc::SYS_futex,
    libc::SYS_eventfd2,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_settime,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_restart_syscall,
    libc::SYS_sched_yield,
    // To use memory.
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_brk,
    // To start and end threads, and to end the process.
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_sched_getaffinity,
    libc::SYS_gettid,
    libc::SYS_getpid,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_getrandom,
];

/// Calls that have no effect but this error. The C library tries them, and goes on without: clone3
/// has its flags in memory, which a filter cannot read, so that threads are made by clone; the
/// allocator would read the number of processors.
const UNKNOWN: [libc::c_long; 2] = [libc::SYS_clone3, libc::SYS_openat];

/// Requests of `fcntl`. None is for locks: the supervisor marks files by them while operations of a
/// process may be under way.
const FCNTLS: [libc::c_int; 3] = [libc::F_GETFD, libc::F_GETFL, libc::F_DUPFD_CLOEXEC];

/// Requests of `ioctl` that no crate of ours has.
const OTHER_IOCTLS: [u64; 2] = [libc::FIONBIO, libc::TIOCGWINSZ];

/// Flags of `clone` for a thread.
const THREAD: u64 = (libc::CLONE_VM | libc::CLONE_SIGHAND | libc::CLONE_THREAD) as u64;
/// Flags of `clone` for namespaces, and for what else a thread does not have.
const NO_THREAD: u64 = (libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET
    | libc::CLONE_PTRACE
    | libc::CLONE_VFORK) as u64;

/// Filters that cannot be made or set.
#[derive(Debug, thiserror::Error)]
pub enum FilterError {
    /// The library cannot make it.
    #[error("cannot make the filter of system calls")]
    Make(#[from] BackendError),
    /// The kernel does not take it.
    #[error("cannot set the filter of system calls")]
    Set(#[from] SeccompError),
}

/// Restricts the calling thread, and those that it starts from now on.
///
/// # Errors
/// [`FilterError`].
pub fn restrict_system_calls() -> Result<(), FilterError> {
    let unknown = UNKNOWN.into_iter().map(|call| (call, Vec::new())).collect();
    let unknown = program(unknown, SeccompAction::Allow, SeccompAction::Errno(libc::ENOSYS as u32));
    let permitted = program(rules()?, SeccompAction::KillProcess, SeccompAction::Allow);
    apply_filter(&unknown?)?;
    apply_filter(&permitted?)?;
    Ok(())
}

type Rules = BTreeMap<libc::c_long, Vec<SeccompRule>>;

fn program(
    rules: Rules,
    others: SeccompAction,
    these: SeccompAction,
) -> Result<BpfProgram, BackendError> {
    let arch = TargetArch::try_from(std::env::consts::ARCH)?;
    SeccompFilter::new(rules, others, these, arch)?.try_into()
}

/// All calls that are permitted, each with its conditions; none if any arguments are.
fn rules() -> Result<Rules, BackendError> {
    // The stricter of both filters counts.
    let plain = CALLS.iter().chain(&UNKNOWN);
    let mut rules: Rules = plain.map(|call| (*call, Vec::new())).collect();
    let ioctls = [&XEN_IOCTLS[..], &TAP_IOCTLS, &BLOCK_IOCTLS, &OTHER_IOCTLS].concat();
    let registrations = REGISTRATIONS.map(u64::from);
    let fcntls = FCNTLS.map(|request| request as u64);
    rules.insert(libc::SYS_ioctl, one_of(1, &ioctls)?);
    rules.insert(libc::SYS_io_uring_register, one_of(1, &registrations)?);
    rules.insert(libc::SYS_fcntl, one_of(1, &fcntls)?);
    rules.insert(libc::SYS_prctl, one_of(0, &[libc::PR_SET_NAME as u64])?);
    // No code but the program's.
    for call in [libc::SYS_mmap, libc::SYS_mprotect] {
        rules.insert(call, vec![SeccompRule::new(vec![without(2, libc::PROT_EXEC as u64)?])?]);
    }
    let thread = SeccompCmpOp::MaskedEq(THREAD | NO_THREAD);
    let thread = SeccompCondition::new(0, SeccompCmpArgLen::Qword, thread, THREAD)?;
    rules.insert(libc::SYS_clone, vec![SeccompRule::new(vec![thread])?]);
    // The process ends itself only.
    let pid = u64::from(std::process::id());
    rules.insert(libc::SYS_tgkill, one_of(0, &[pid])?);
    Ok(rules)
}

/// Rules for a call whose argument number `argument` is one of these, of 32 bits.
fn one_of(argument: u8, values: &[u64]) -> Result<Vec<SeccompRule>, BackendError> {
    let rule = |value: &u64| {
        let equal = SeccompCmpOp::Eq;
        let condition = SeccompCondition::new(argument, SeccompCmpArgLen::Dword, equal, *value)?;
        SeccompRule::new(vec![condition])
    };
    values.iter().map(rule).collect()
}

/// The condition that an argument has none of these bits.
fn without(argument: u8, bits: u64) -> Result<SeccompCondition, BackendError> {
    let masked = SeccompCmpOp::MaskedEq(bits);
    SeccompCondition::new(argument, SeccompCmpArgLen::Dword, masked, 0)
}
