//! A process that this one traces: it is stepped, stopped at chosen instructions, and killed there.

use std::hint::black_box;
use std::mem::offset_of;
use std::panic::{AssertUnwindSafe, catch_unwind};

use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, alarm, fork};

use crate::simulated::mark::{MARK, section};

/// The exit status of a process that must not be traced.
const UNTRACED: i32 = 99;
/// The exit status of a process that panicked.
const PANICKED: i32 = 101;

/// Offsets of debug registers in `struct user`: the address of a breakpoint, and which are enabled.
const ADDRESS: usize = offset_of!(libc::user, u_debugreg);
const CONTROL: usize = ADDRESS + 7 * size_of::<u64>();
/// Enables the first breakpoint, for the execution of an instruction.
const EXECUTION: i64 = 1;

/// Seconds after which a process ends by itself, which waits for something that does not come.
const LIFE_LIMIT: u32 = 120;

/// Whether processes can be traced, and stopped by breakpoints.
///
/// # Errors
/// The reason why not.
pub(super) fn check() -> Result<(), &'static str> {
    let child = Child::start(|| section(|| black_box(probe as fn())()));
    child.first_mark()?;
    let address = probe as fn() as usize as u64;
    let set = child.set_breakpoint(address, EXECUTION);
    let is_stopped = set.is_ok() && child.goes_on_to_breakpoint(Some(address));
    child.kill();
    if is_stopped { Ok(()) } else { Err("the system has no hardware breakpoints") }
}

#[inline(never)]
fn probe() {
    black_box(0);
}

/// A process. It dies with this one.
pub(super) struct Child(Pid);

impl Child {
    /// Runs `work` in a copy of this process, which must have one thread.
    pub(super) fn start(work: impl FnOnce()) -> Self {
        // SAFETY: this process has no other thread, so the copy has all of its state, and no lock
        // is held in it that nobody releases.
        match unsafe { fork() }.unwrap() {
            ForkResult::Parent { child } => Self(child),
            ForkResult::Child => {
                alarm::set(LIFE_LIMIT);
                let status = match ptrace::traceme() {
                    Ok(()) => catch_unwind(AssertUnwindSafe(work)).map_or(PANICKED, |()| 0),
                    Err(_) => UNTRACED,
                };
                // SAFETY: it ends the process, without the destructors of its origin's objects.
                unsafe { libc::_exit(status) }
            }
        }
    }

    fn wait(&self) -> WaitStatus {
        waitpid(self.0, None).unwrap()
    }

    /// Goes on to the next mark.
    pub(super) fn next_mark(&self) {
        assert!(!self.goes_on_to_breakpoint(None), "a breakpoint that is not set");
    }

    /// Waits for the first mark.
    ///
    /// # Errors
    /// The system permits no tracing.
    pub(super) fn first_mark(&self) -> Result<(), &'static str> {
        match self.wait() {
            WaitStatus::Stopped(_, MARK) => {
                ptrace::setoptions(self.0, Options::PTRACE_O_EXITKILL).unwrap();
                Ok(())
            }
            WaitStatus::Exited(_, UNTRACED) => Err("the system permits no ptrace"),
            other => panic!("a process did not come to its first mark: {other:?}"),
        }
    }

    /// Goes on to the `nth` execution of the instruction at `address`. Returns `false` at the next
    /// mark, if that comes first.
    pub(super) fn reaches(&self, address: u64, nth: u32) -> bool {
        self.set_breakpoint(address, EXECUTION).unwrap();
        let reached = (0..nth).all(|_| self.goes_on_to_breakpoint(Some(address)));
        self.set_breakpoint(0, 0).unwrap();
        reached
    }

    /// Only this thread has the breakpoint, and the code stays as it is.
    fn set_breakpoint(&self, address: u64, control: i64) -> nix::Result<()> {
        ptrace::write_user(self.0, std::ptr::without_provenance_mut(ADDRESS), address as i64)?;
        ptrace::write_user(self.0, std::ptr::without_provenance_mut(CONTROL), control)
    }

    /// Goes on to a breakpoint; returns `false` at the next mark.
    fn goes_on_to_breakpoint(&self, address: Option<u64>) -> bool {
        let mut passed = None;
        loop {
            ptrace::cont(self.0, passed).unwrap();
            match self.wait() {
                WaitStatus::Stopped(_, MARK) => return false,
                WaitStatus::Stopped(_, Signal::SIGTRAP) if Some(self.address()) == address => {
                    return true;
                }
                WaitStatus::Stopped(_, signal) => passed = Some(signal),
                other => panic!("the process that serves the disk failed: {other:?}"),
            }
        }
    }

    /// The address of the next instruction.
    fn address(&self) -> u64 {
        ptrace::getregs(self.0).unwrap().rip
    }

    /// Steps to the next mark, and calls `step` with the address of each instruction before that is
    /// executed. A repeated string instruction counts once, though each repetition is a step.
    pub(super) fn steps(&self, mut step: impl FnMut(u64)) {
        let mut before = 0;
        loop {
            ptrace::step(self.0, None).unwrap();
            match self.wait() {
                WaitStatus::Stopped(_, Signal::SIGTRAP) => {}
                WaitStatus::Stopped(_, MARK) => return,
                other => panic!("the process that serves the disk failed: {other:?}"),
            }
            let now = self.address();
            if now != before {
                step(now);
            }
            before = now;
        }
    }

    /// Kills the process where it is stopped, and waits until nothing of it is left.
    pub(super) fn kill(self) {
        kill(self.0, Signal::SIGKILL).unwrap();
        let status = self.wait();
        assert!(matches!(status, WaitStatus::Signaled(_, Signal::SIGKILL, _)), "{status:?}");
    }

    /// Lets the process go on to its end.
    pub(super) fn finish(self) {
        let _ = ptrace::cont(self.0, None);
        let status = self.wait();
        assert!(matches!(status, WaitStatus::Exited(_, 0)), "a process failed: {status:?}");
    }
}
