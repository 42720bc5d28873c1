//! Takes from a guest's process every right that it does not need to serve the guest's devices.
//!
//! What is left is what the supervisor sends it: open files. The process does this before its first
//! device starts, so before it reads a byte of its guest's.

pub mod system_calls;

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use caps::CapSet;
use landlock::{
    ABI, Access, AccessFs, AccessNet, Ruleset, RulesetAttr, RulesetError, RulesetStatus, Scope,
};
use nix::sys::prctl;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::Signal;
use nix::unistd::{Gid, Uid, chdir, chroot, geteuid, setgroups, setresgid, setresuid};

use self::system_calls::{FilterError, restrict_system_calls};
use crate::Causes;
use uring::rings;

/// The root directory of guests' processes, which stays empty.
const EMPTY: &str = "/run/xen-virtiod/empty";

/// Number of io_uring instances that a process has: one for each thread of a disk's queues, and two
/// for a network device. Where none is left, threads do a disk's work, and packets are asked for.
const RINGS: usize = 32;

/// A right that cannot be given up.
#[derive(Debug, thiserror::Error)]
pub enum ConfinementError {
    /// The kernel refuses a step.
    #[error("cannot confine the guest's process: {0}")]
    Step(&'static str, #[source] io::Error),
    /// The kernel refuses to drop capabilities.
    #[error("cannot confine the guest's process: drop capabilities")]
    Capabilities(#[from] caps::errors::CapsError),
    /// The kernel refuses the rules of Landlock.
    #[error("cannot confine the guest's process: set the rules of Landlock")]
    Landlock(#[from] RulesetError),
    /// The kernel refuses the filter.
    #[error(transparent)]
    Filter(#[from] FilterError),
}

/// Confines this process, which has one thread, as a user that no other process has.
///
/// # Errors
/// [`ConfinementError`]; the process must end then.
pub fn confine(user: u32) -> Result<(), ConfinementError> {
    set_limits();
    // Before the rights to make them go.
    if let Err(error) = rings::stock(RINGS) {
        let why = Causes(&error);
        tracing::warn!("threads serve storage: cannot make io_uring instances: {why}");
    }
    if geteuid().is_root() {
        limit_locked_memory();
        enter_empty_root()?;
        become_user(user)?;
    }
    let step = |what| move |errno: nix::Error| ConfinementError::Step(what, errno.into());
    // Behind the change of the user, which removes it.
    prctl::set_pdeathsig(Signal::SIGKILL).map_err(step("end with its supervisor"))?;
    prctl::set_dumpable(false).map_err(step("hide its memory"))?;
    prctl::set_no_new_privs().map_err(step("give up new privileges"))?;
    restrict_files()?;
    restrict_system_calls()?;
    Ok(())
}

/// Maximum number of threads of a process: far more than its devices have.
const MOST_THREADS: u64 = 4096;

/// Has the kernel end this process before the host's other ones if memory is short, and sets limits
/// that it cannot raise later.
fn set_limits() {
    // The supervisor has a lower number, which its children get.
    let first_to_end = std::fs::write("/proc/self/oom_score_adj", "0");
    let limit = |resource, most| setrlimit(resource, most, most).map_err(io::Error::from);
    let outcomes = [
        ("the order in which it ends without memory", first_to_end),
        ("its core files", limit(Resource::RLIMIT_CORE, 0)),
        ("its threads", limit(Resource::RLIMIT_NPROC, MOST_THREADS)),
    ];
    for (what, outcome) in outcomes {
        if let Err(error) = outcome {
            tracing::warn!("cannot limit {what}: {}", Causes(&error));
        }
    }
}

/// Lets the process lock no memory any more. Its rings, which root made, may keep what is
/// registered with them.
fn limit_locked_memory() {
    if let Err(error) = setrlimit(Resource::RLIMIT_MEMLOCK, 0, 0) {
        tracing::warn!(%error, "cannot limit its locked memory");
    }
}

fn enter_empty_root() -> Result<(), ConfinementError> {
    let step = |error: io::Error| ConfinementError::Step("enter an empty directory", error);
    let empty = Path::new(EMPTY);
    DirBuilder::new().recursive(true).mode(0o555).create(empty).map_err(step)?;
    if empty.read_dir().map_err(step)?.next().is_some() {
        return Err(step(io::Error::other(format!("{EMPTY} is not empty"))));
    }
    chroot(empty).and_then(|()| chdir("/")).map_err(|errno| step(errno.into()))
}

fn become_user(user: u32) -> Result<(), ConfinementError> {
    for capability in caps::all() {
        // The kernel knows fewer than the library.
        if caps::has_cap(None, CapSet::Bounding, capability).unwrap_or(false) {
            caps::drop(None, CapSet::Bounding, capability)?;
        }
    }
    let step = |errno: nix::Error| ConfinementError::Step("become another user", errno.into());
    let (uid, gid) = (Uid::from_raw(user), Gid::from_raw(user));
    setgroups(&[]).map_err(step)?;
    setresgid(gid, gid, gid).map_err(step)?;
    setresuid(uid, uid, uid).map_err(step)?;
    // The kernel dropped them with the user.
    for set in [CapSet::Effective, CapSet::Permitted, CapSet::Inheritable] {
        if !caps::read(None, set)?.is_empty() {
            return Err(step(nix::Error::EPERM));
        }
    }
    Ok(())
}

/// Denies all paths, ports and abstract sockets, as far as the kernel has Landlock.
fn restrict_files() -> Result<(), ConfinementError> {
    let newest = ABI::V6;
    let rules = Ruleset::default()
        .handle_access(AccessFs::from_all(newest))?
        .handle_access(AccessNet::from_all(newest))?
        .scope(Scope::from_all(newest))?;
    let status = rules.create()?.restrict_self()?;
    if status.ruleset == RulesetStatus::NotEnforced {
        tracing::info!("the kernel has no Landlock, which would deny paths once more");
    }
    Ok(())
}
