//! The backend's state machine: the states of SPEC section 2 as a table.

use protocol::binding::XenbusState;

/// The toolstack's request for the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Toolstack {
    /// The backend shall serve the device.
    Online,
    /// The backend shall end the device: `online` is 0, or the toolstack set the state to 5 [2.8].
    Remove,
    /// The backend's directory is gone.
    Gone,
}

/// The backend's state in the life of a connection. A subset of the xenbus states: those that it
/// writes itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// The device is not offered; xenbus 1 or 6.
    Idle,
    /// The negotiation keys are written; xenbus 2.
    Offered,
    /// The backend answers messages; xenbus 4.
    Connected,
    /// The connection has ended, and the frontend has not started again; xenbus 6.
    Closed,
    /// The device has ended, or was never opened.
    Ended,
}

/// The backend's next action.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Wait until a state changes.
    Wait,
    /// Write the negotiation keys and state 2.
    Offer,
    /// Map the message page, bind its event channel, write state 4.
    Connect,
    /// Reset the device, unmap the guest's pages, write states 5 and 6.
    Close,
    /// As [`Action::Close`], for a frontend that never connected; log its reason.
    Abandon,
    /// As [`Action::Close`], and end the session.
    End,
    /// End the session without a write: another session serves the device.
    Leave,
}

/// Returns the next action: the table.
pub fn next(state: State, frontend: XenbusState, toolstack: Toolstack) -> Action {
    use XenbusState::{Closed, Closing, Connected, Initialised, Initialising, Unknown};
    match (toolstack, state, frontend) {
        (Toolstack::Gone | Toolstack::Remove, _, _) => Action::End,
        (Toolstack::Online, State::Idle, _) => Action::Offer,
        (Toolstack::Online, State::Offered, Initialised) => Action::Connect,
        // The frontend could not offer its message page: its domain lacks some resource.
        (Toolstack::Online, State::Offered, Closing) => Action::Abandon,
        // The frontend may still be in state 6 from before; it starts by writing 1.
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
    fn spec_2_8_toolstack_ends_the_device_in_any_frontend_state() {
        for state in STATES {
            for frontend in FRONTENDS {
                assert_eq!(next(state, frontend, Toolstack::Remove), Action::End);
                assert_eq!(next(state, frontend, Toolstack::Gone), Action::End);
            }
        }
    }

    #[test]
    fn spec_2_5_backend_connects_in_frontend_state_3_only() {
        for frontend in FRONTENDS {
            let connects = next(State::Offered, frontend, Toolstack::Online) == Action::Connect;
            assert_eq!(connects, frontend == XenbusState::Initialised, "{frontend:?}");
        }
    }

    #[test]
    fn spec_2_7_leaving_frontend_closes_the_connection() {
        use XenbusState::{Closed, Closing, Connected, Unknown};
        for frontend in [Closing, Closed, Unknown] {
            assert_eq!(next(State::Connected, frontend, Toolstack::Online), Action::Close);
        }
        assert_eq!(next(State::Connected, Connected, Toolstack::Online), Action::Wait);
    }

    #[test]
    fn spec_2_7_frontend_leaving_before_it_connects_is_abandoned() {
        let step = next(State::Offered, XenbusState::Closing, Toolstack::Online);
        assert_eq!(step, Action::Abandon);
    }

    #[test]
    fn spec_2_9_closed_frontend_starts_again_with_state_1() {
        for frontend in FRONTENDS {
            let offers = next(State::Closed, frontend, Toolstack::Online) == Action::Offer;
            assert_eq!(offers, frontend == XenbusState::Initialising, "{frontend:?}");
        }
    }
}
