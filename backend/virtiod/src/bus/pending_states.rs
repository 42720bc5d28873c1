//! The backend's state in XenStore, and the states still to be written.

use protocol::binding::XenbusState;

/// The states still to be written, in order, and the last written one.
#[derive(Debug)]
pub(super) struct PendingStates {
    written: XenbusState,
    /// Closing is still to be written, before `latest`. Of other states that could not be written,
    /// only the last one matters.
    closing: bool,
    latest: Option<XenbusState>,
}

impl Default for PendingStates {
    fn default() -> Self {
        Self { written: XenbusState::Initialising, closing: false, latest: None }
    }
}

impl PendingStates {
    /// Nothing to write after an earlier process wrote `written`.
    pub(super) fn after(written: XenbusState) -> Self {
        Self { written, ..Self::default() }
    }

    /// The last written state: the one in XenStore, unless the toolstack changed it.
    pub(super) fn written(&self) -> XenbusState {
        self.written
    }

    /// Adds a state to be written, in place of those that are not written yet.
    pub(super) fn add(&mut self, state: XenbusState) {
        match state {
            XenbusState::Closing => (self.closing, self.latest) = (true, None),
            XenbusState::Closed => self.latest = Some(state),
            _ => (self.closing, self.latest) = (false, Some(state)),
        }
    }

    /// The state to write next, if any.
    pub(super) fn next(&self) -> Option<XenbusState> {
        if self.closing { Some(XenbusState::Closing) } else { self.latest }
    }

    /// Notes that `state` was written.
    pub(super) fn done(&mut self, state: XenbusState) {
        self.written = state;
        match state {
            XenbusState::Closing => self.closing = false,
            _ => self.latest = None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use XenbusState::{Closed, Closing, Connected, InitWait};

    fn written(pending_states: &mut PendingStates) -> Vec<XenbusState> {
        let mut all = Vec::new();
        while let Some(state) = pending_states.next() {
            pending_states.done(state);
            all.push(state);
        }
        all
    }

    #[test]
    fn later_states_replace_unwritten_ones() {
        let mut pending_states = PendingStates::default();
        pending_states.add(InitWait);
        assert_eq!(written(&mut pending_states), [InitWait]);
        for state in [Connected, Closing, Closed] {
            pending_states.add(state);
        }
        assert_eq!(pending_states.written(), InitWait);
        assert_eq!(written(&mut pending_states), [Closing, Closed]);
        for state in [Closing, Closed, InitWait] {
            pending_states.add(state);
        }
        assert_eq!(written(&mut pending_states), [InitWait]);
        assert_eq!(pending_states.written(), InitWait);
    }
}
