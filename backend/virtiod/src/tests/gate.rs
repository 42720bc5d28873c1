//! A gate at which storage that hangs waits.

use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(30);

#[derive(Debug, Default)]
struct State {
    is_closed: bool,
    waiting: usize,
}

/// Lets calls pass while it is open.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    state: Mutex<State>,
    changed: Condvar,
}

impl Gate {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Passes, once it is open.
    pub(crate) fn pass(&self) {
        let mut state = self.state();
        state.waiting += 1;
        self.changed.notify_all();
        let mut state = self.changed.wait_while(state, |state| state.is_closed).unwrap();
        state.waiting -= 1;
    }

    pub(crate) fn close(&self) {
        self.state().is_closed = true;
    }

    pub(crate) fn open(&self) {
        self.state().is_closed = false;
        self.changed.notify_all();
    }

    /// Waits until this many calls wait; fails the test after 30 s.
    pub(crate) fn wait_for(&self, count: usize) {
        let waits = |state: &mut State| state.waiting < count;
        let (state, _) = self.changed.wait_timeout_while(self.state(), LIMIT, waits).unwrap();
        assert!(state.waiting >= count, "waited 30 s for {count} call(s), {} came", state.waiting);
    }
}
