//! What the backend does next: the states of SPEC section 2 as a table.

use protocol::binding::XenbusState;

/// What the toolstack wants of the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Toolstack {
    /// That it be there.
    Online,
    /// That it go: `online` is 0, or the state was set to 5 [2.8].
    Leaving,
    /// Nothing any more: the backend's directory is gone.
    Gone,
}

/// Where this backend stands in the life of a connection. A subset of the xenbus states: those that
/// it writes itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Nothing is offered yet, or not any more; xenbus 1 or 6.
    Idle,
    /// The keys are written; xenbus 2.
    Offered,
    /// Messages flow; xenbus 4.
    Connected,
    /// The connection is over, and the frontend has not started again; xenbus 6.
    Closed,
    /// The device has ended, or was never opened.
    Ended,
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Nothing until something changes.
    Wait,
    /// Write the negotiation keys and state 2.
    Offer,
    /// Map, bind, write state 4.
    Connect,
    /// Reset the device, give everything back, write 5 and 6.
    Close,
    /// As [`Action::Close`], for a frontend that never connected, and the reason it left is looked
    /// up.
    Abandon,
    /// As [`Action::Close`], and the session is over.
    End,
    /// Nothing: the session is over, and the device is another session's to serve.
    Leave,
}

/// The table.
pub fn next(state: State, frontend: XenbusState, toolstack: Toolstack) -> Action {
    use XenbusState::{Closed, Closing, Connected, Initialised, Initialising, Unknown};
    match (toolstack, state, frontend) {
        (Toolstack::Gone | Toolstack::Leaving, _, _) => Action::End,
        (Toolstack::Online, State::Idle, _) => Action::Offer,
        (Toolstack::Online, State::Offered, Initialised) => Action::Connect,
        // It could not show its page: something ran out there.
        (Toolstack::Online, State::Offered, Closing) => Action::Abandon,
        // The frontend may still stand in 6 from before; it starts by writing 1.
        (Toolstack::Online, State::Offered, _) => Action::Wait,
        (Toolstack::Online, State::Connected, Closing | Closed | Initialising | Unknown) => {
            Action::Close
        }
        (Toolstack::Online, State::Connected, Initialised | Connected | XenbusState::InitWait) => {
            Action::Wait
        }
        (Toolstack::Online, State::Closed, Initialising) => Action::Offer,
        (Toolstack::Online, State::Closed, _) => Action::Wait,
        (Toolstack::Online, State::Ended, _) => Action::Leave,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FRONTENDS: [XenbusState; 7] = [
        XenbusState::Unknown,
        XenbusState::Initialising,
        XenbusState::InitWait,
        XenbusState::Initialised,
        XenbusState::Connected,
        XenbusState::Closing,
        XenbusState::Closed,
    ];
    const STATES: [State; 5] =
        [State::Idle, State::Offered, State::Connected, State::Closed, State::Ended];

    #[test]
    fn spec_2_8_the_toolstack_ends_it_whatever_the_frontend_says() {
        for state in STATES {
            for frontend in FRONTENDS {
                assert_eq!(next(state, frontend, Toolstack::Leaving), Action::End);
                assert_eq!(next(state, frontend, Toolstack::Gone), Action::End);
            }
        }
    }

    #[test]
    fn spec_2_5_only_a_frontend_in_state_3_is_connected_to() {
        for frontend in FRONTENDS {
            let connects = next(State::Offered, frontend, Toolstack::Online) == Action::Connect;
            assert_eq!(connects, frontend == XenbusState::Initialised, "{frontend:?}");
        }
    }

    #[test]
    fn spec_2_7_a_frontend_that_leaves_is_closed() {
        use XenbusState::{Closed, Closing, Connected, Unknown};
        for frontend in [Closing, Closed, Unknown] {
            assert_eq!(next(State::Connected, frontend, Toolstack::Online), Action::Close);
        }
        assert_eq!(next(State::Connected, Connected, Toolstack::Online), Action::Wait);
    }

    #[test]
    fn spec_2_7_a_frontend_that_leaves_before_it_connected_is_let_go() {
        let step = next(State::Offered, XenbusState::Closing, Toolstack::Online);
        assert_eq!(step, Action::Abandon);
    }

    #[test]
    fn spec_2_9_a_closed_frontend_starts_again_by_state_1() {
        for frontend in FRONTENDS {
            let offers = next(State::Closed, frontend, Toolstack::Online) == Action::Offer;
            assert_eq!(offers, frontend == XenbusState::Initialising, "{frontend:?}");
        }
    }
}
