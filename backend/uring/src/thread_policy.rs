//! The kernel's scheduling policy of the calling thread.

use std::io;
use std::sync::OnceLock;
use std::thread;

/// A policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ThreadPolicy {
    /// `SCHED_OTHER`: the policy of programs.
    Normal,
    /// `SCHED_IDLE`: every other program runs first.
    Idle,
}

/// Sets the policy of the calling thread; one system call.
///
/// # Errors
/// The kernel's error. To leave [`ThreadPolicy::Idle`] takes `CAP_SYS_NICE` or an `RLIMIT_NICE` of
/// 20: see [`can_be_idle`].
pub fn set(policy: ThreadPolicy) -> io::Result<()> {
    let number = match policy {
        ThreadPolicy::Normal => libc::SCHED_OTHER,
        ThreadPolicy::Idle => libc::SCHED_IDLE,
    };
    // SAFETY: `sched_param` consists of integers, for which zeros are valid; both policies take the
    // priority 0.
    let parameters: libc::sched_param = unsafe { std::mem::zeroed() };
    // SAFETY: `parameters` outlives the call, which only reads it; thread 0 is the calling one.
    match unsafe { libc::sched_setscheduler(0, number, &raw const parameters) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Whether a thread of this process can become idle and leave that again. Tried once, in a thread
/// of its own, which stays idle if not.
pub fn can_be_idle() -> bool {
    static ANSWER: OnceLock<bool> = OnceLock::new();
    *ANSWER.get_or_init(|| {
        let both = || set(ThreadPolicy::Idle).and_then(|()| set(ThreadPolicy::Normal)).is_ok();
        thread::Builder::new().spawn(both).is_ok_and(|thread| thread.join().unwrap_or(false))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn current() -> i32 {
        // SAFETY: the call takes no pointer.
        unsafe { libc::sched_getscheduler(0) }
    }

    #[test]
    fn thread_becomes_idle_and_where_it_may_normal_again() {
        assert_eq!(current(), libc::SCHED_OTHER);
        let can = can_be_idle();
        assert_eq!(current(), libc::SCHED_OTHER, "another thread tried it");
        thread::spawn(move || {
            set(ThreadPolicy::Idle).unwrap();
            assert_eq!(current(), libc::SCHED_IDLE);
            assert_eq!(set(ThreadPolicy::Normal).is_ok(), can);
            assert_eq!(current() == libc::SCHED_OTHER, can);
        })
        .join()
        .unwrap();
    }
}
