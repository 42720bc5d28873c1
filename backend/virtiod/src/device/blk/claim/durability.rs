//! Whether what devices wrote to a file is durable, for all of them together.

use std::io;
use std::sync::{Condvar, Mutex, MutexGuard};

use crate::record::LossMark;

/// The state of a file's written data.
#[derive(Debug, Default)]
struct State {
    /// A sync failed, and some data may be lost.
    is_lost: bool,
    /// One device syncs.
    is_syncing: bool,
    /// Where the devices' next processes find that data is lost.
    marks: Vec<LossMark>,
}

impl State {
    fn lose(&mut self) {
        self.is_lost = true;
        self.marks.iter().for_each(LossMark::set);
    }
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
pub struct Durability {
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
        self.state().lose();
    }

    /// Marks a loss there from now on, and learns of one that an earlier process marked.
    pub(in crate::device::blk) fn keep_in(&self, mark: LossMark) {
        let mut state = self.state();
        state.marks.retain(LossMark::is_open);
        let is_lost = state.is_lost || mark.is_set();
        state.marks.push(mark);
        if is_lost {
            state.lose();
        }
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
        if outcome.is_err() {
            state.lose();
        }
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
    use crate::record::{DriverSetup, Record};

    #[test]
    fn next_process_learns_of_a_loss_and_marks_of_closed_records_go() {
        let record = || {
            let file = tempfile::tempfile().unwrap();
            (Record::create(file.try_clone().unwrap(), &[8]).unwrap(), file)
        };
        let ((first, file), (other, _)) = (record(), record());
        let durability = Durability::default();
        (0..3).for_each(|_| durability.keep_in(record().0.loss_mark()));
        durability.keep_in(first.loss_mark());
        durability.keep_in(other.loss_mark());
        assert_eq!(durability.state().marks.len(), 2);
        assert!(!durability.is_lost() && !first.loss_mark().is_set());
        assert_eq!(durability.begin_sync(), SyncStart::Begun);
        durability.end_sync(&Err(io::Error::other("no")));
        assert!(first.loss_mark().is_set() && other.loss_mark().is_set());
        // The next process.
        first.share().save(&DriverSetup::default()).unwrap();
        drop(first);
        let (reopened, next) = (Record::open(file).unwrap(), Durability::default());
        next.keep_in(reopened.loss_mark());
        assert_eq!(next.begin_sync(), SyncStart::Lost);
    }

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
