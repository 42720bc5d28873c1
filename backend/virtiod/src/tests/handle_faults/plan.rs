//! Plans of injected faults: the call and its failure.

use std::collections::BTreeMap;

/// A call of a handle.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Call {
    OpenGrants,
    OpenEvents,
    OpenStore,
    Map,
    Copy,
    Bind,
    Notify,
    Pending,
    Unmask,
    Read,
    List,
    Write,
    WriteBeside,
    Remove,
    Watch,
    TakeEvents,
}

/// How a call fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// With an error of the kernel.
    Errno(i32),
    /// The hypervisor refuses; a copy gets this status.
    Refused(i16),
    /// xenstored refuses with this error.
    Store(&'static str),
    /// xenstored is gone.
    StoreGone,
    /// xenstored violates the protocol.
    StoreSpeaksNonsense,
}

/// How long the fault lasts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Lasting {
    Once,
    ForEver,
}

/// A planned fault.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    pub(super) call: Call,
    /// The number of the first failing call, from 0.
    pub(super) nth: usize,
    pub(super) failure: Failure,
    pub(super) lasting: Lasting,
}

/// The number of calls of each kind.
#[derive(Clone, Debug, Default)]
pub(super) struct Counts(BTreeMap<Call, usize>);

impl Counts {
    /// Counts a call; returns the number before it.
    pub(super) fn add(&mut self, call: Call) -> usize {
        let count = self.0.entry(call).or_default();
        *count += 1;
        *count - 1
    }

    /// The number of all calls.
    pub(super) fn total(&self) -> usize {
        self.0.values().sum()
    }
}

/// Plans for every call with one error of each kind; for the first call with all errors.
pub(super) fn plans(usual: &Counts) -> Vec<Plan> {
    let mut plans = Vec::new();
    for (call, count) in &usual.0 {
        let (kinds, others) = failures(*call);
        for lasting in [Lasting::Once, Lasting::ForEver] {
            let plan =
                |nth, failure: &Failure| Plan { call: *call, nth, failure: *failure, lasting };
            plans.extend(others.iter().map(|failure| plan(0, failure)));
            for nth in 0..*count {
                plans.extend(kinds.iter().map(|failure| plan(nth, failure)));
            }
        }
    }
    plans
}

/// One error of each kind that callers distinguish, and all others.
fn failures(call: Call) -> (&'static [Failure], &'static [Failure]) {
    use Failure::{Errno, Refused, Store, StoreGone, StoreSpeaksNonsense};
    match call {
        Call::OpenGrants | Call::OpenEvents => (
            &[Errno(libc::EMFILE)],
            &[
                Errno(libc::ENFILE),
                Errno(libc::ENOMEM),
                Errno(libc::ENOENT),
                Errno(libc::ENODEV),
                Errno(libc::EACCES),
            ],
        ),
        Call::OpenStore => (&[StoreGone], &[Errno(libc::EMFILE), Errno(libc::ENOMEM)]),
        // GNTST_bad_gntref.
        Call::Map => (
            &[Refused(-3), Errno(libc::ENOMEM)],
            &[Errno(libc::EINVAL), Errno(libc::EAGAIN), Errno(libc::ENOSPC), Errno(libc::EFAULT)],
        ),
        // All GNTST values.
        Call::Copy => (
            &[Refused(-3), Errno(libc::ENOMEM)],
            &[
                Refused(-1),
                Refused(-2),
                Refused(-4),
                Refused(-5),
                Refused(-6),
                Refused(-7),
                Refused(-8),
                Refused(-9),
                Refused(-10),
                Refused(-11),
                Refused(-12),
                Errno(libc::EFAULT),
                Errno(libc::EINVAL),
            ],
        ),
        Call::Bind => (
            &[Errno(libc::EINVAL)],
            &[
                Errno(libc::ENOSPC),
                Errno(libc::ENOMEM),
                Errno(libc::EACCES),
                Errno(libc::ESRCH),
                Errno(libc::EPERM),
            ],
        ),
        Call::Notify => (&[Errno(libc::ENOTCONN)], &[Errno(libc::EINVAL), Errno(libc::EFAULT)]),
        Call::Pending => (&[Errno(libc::EFBIG)], &[Errno(libc::EIO), Errno(libc::EFAULT)]),
        Call::Unmask => (&[Errno(libc::ENOMEM)], &[Errno(libc::EFAULT), Errno(libc::EINVAL)]),
        Call::Read | Call::List | Call::Write | Call::WriteBeside | Call::Remove | Call::Watch => (
            &[Store("ENOSPC"), StoreGone],
            &[
                StoreSpeaksNonsense,
                Store("EINVAL"),
                Store("EACCES"),
                Store("EEXIST"),
                Store("EISDIR"),
                Store("ENOMEM"),
                Store("EIO"),
                Store("ENOTEMPTY"),
                Store("ENOSYS"),
                Store("EROFS"),
                Store("EBUSY"),
                Store("EAGAIN"),
                Store("EISCONN"),
                Store("E2BIG"),
                Store("EPERM"),
            ],
        ),
        Call::TakeEvents => (&[StoreGone], &[StoreSpeaksNonsense]),
    }
}
