//! Whether what devices wrote to a file is durable, for all of them together.

use std::io;
use std::sync::{Condvar, Mutex, MutexGuard};

/// The state of a file's written data.
#[derive(Debug, Default)]
struct State {
    /// A sync failed, and some data may be lost.
    is_lost: bool,
    /// One device syncs.
    is_syncing: bool,
}

/// Whether a device may sync.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::device::blk) enum SyncStart {
    /// It syncs from now on, until [`Durability::end_sync`].
    Begun,
    /// Another device does.
    Busy,
    /// Earlier data may be lost.
    Lost,
}

/// The durability of one file's data. One device syncs at a time: the kernel reports a failure to
/// one of them only, and the others must not take its silence for success.
#[derive(Debug, Default)]
pub(in crate::device::blk) struct Durability {
    state: Mutex<State>,
    /// Signalled at the end of a sync.
    ended: Condvar,
}

impl Durability {
    /// The state. That of a poisoned mutex is still valid.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Whether data that a device wrote to the file may be lost.
    pub(in crate::device::blk) fn is_lost(&self) -> bool {
        self.state().is_lost
    }

    /// Notes that data which a device wrote to the file may be lost.
    pub(in crate::device::blk) fn note_loss(&self) {
        self.state().is_lost = true;
    }

    /// Begins a sync, unless that has to wait.
    pub(in crate::device::blk) fn begin_sync(&self) -> SyncStart {
        let mut state = self.state();
        if state.is_lost {
            return SyncStart::Lost;
        }
        if state.is_syncing {
            return SyncStart::Busy;
        }
        state.is_syncing = true;
        SyncStart::Begun
    }

    /// Ends a sync that has begun.
    pub(in crate::device::blk) fn end_sync(&self, outcome: &io::Result<()>) {
        let mut state = self.state();
        state.is_syncing = false;
        state.is_lost |= outcome.is_err();
        self.ended.notify_all();
    }

    /// Syncs, after a device that does; returns `None`, without a sync, if data is lost.
    pub(in crate::device::blk) fn sync(
        &self,
        sync: impl FnOnce() -> io::Result<()>,
    ) -> Option<io::Result<()>> {
        let mut state = self.state();
        while state.is_syncing {
            state = self.ended.wait(state).unwrap_or_else(|poisoned| poisoned.into_inner());
        }
        if state.is_lost {
            return None;
        }
        state.is_syncing = true;
        drop(state);
        let outcome = sync();
        self.end_sync(&outcome);
        Some(outcome)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_device_syncs_at_a_time_and_all_learn_of_a_failure() {
        let durability = Durability::default();
        assert_eq!(durability.begin_sync(), SyncStart::Begun);
        assert_eq!(durability.begin_sync(), SyncStart::Busy);
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| durability.sync(|| Ok(())));
            durability.end_sync(&Err(io::Error::other("no")));
            assert!(waiting.join().unwrap().is_none());
        });
        assert!(durability.is_lost());
        assert_eq!(durability.begin_sync(), SyncStart::Lost);
    }
}
