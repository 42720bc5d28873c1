//! Marks in the execution of a process, for the process that traces it.

use nix::sys::signal::{Signal, raise};

/// The traced process raises it where a section begins or ends.
pub(crate) const MARK: Signal = Signal::SIGUSR1;

/// Marks the begin and the end of `work`, in a process that is traced.
pub(crate) fn section<T>(work: impl FnOnce() -> T) -> T {
    raise(MARK).unwrap();
    let done = work();
    raise(MARK).unwrap();
    done
}
