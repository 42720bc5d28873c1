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
pub enum Stage {
    /// Nothing is offered yet, or not any more; xenbus 1 or 6.
    Idle,
    /// The keys are written; xenbus 2.
    Offered,
    /// Messages flow; xenbus 4.
    Connected,
    /// The connection is over, and the frontend has not started again; xenbus 6.
    Closed,
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing until something changes.
    Wait,
    /// Write the negotiation keys and state 2.
    Offer,
    /// Map, bind, write state 4.
    Connect,
    /// Reset the device, give everything back, write 5 and 6.
    Close,
    /// As [`Step::Close`], for a frontend that never connected, and the reason it left is looked up.
    Abandon,
    /// As [`Step::Close`], and the session is over.
    End,
}

/// The table.
pub fn next(stage: Stage, frontend: XenbusState, toolstack: Toolstack) -> Step {
    use XenbusState::{Closed, Closing, Connected, Initialised, Initialising, Unknown};
    match (toolstack, stage, frontend) {
        (Toolstack::Gone | Toolstack::Leaving, _, _) => Step::End,
        (Toolstack::Online, Stage::Idle, _) => Step::Offer,
        (Toolstack::Online, Stage::Offered, Initialised) => Step::Connect,
        // It could not show its page: something ran out there.
        (Toolstack::Online, Stage::Offered, Closing) => Step::Abandon,
        // The frontend may still stand in 6 from before; it starts by writing 1.
        (Toolstack::Online, Stage::Offered, _) => Step::Wait,
        (Toolstack::Online, Stage::Connected, Closing | Closed | Initialising | Unknown) => {
            Step::Close
        }
        (Toolstack::Online, Stage::Connected, Initialised | Connected | XenbusState::InitWait) => {
            Step::Wait
        }
        (Toolstack::Online, Stage::Closed, Initialising) => Step::Offer,
        (Toolstack::Online, Stage::Closed, _) => Step::Wait,
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
    const STAGES: [Stage; 4] = [Stage::Idle, Stage::Offered, Stage::Connected, Stage::Closed];

    #[test]
    fn spec_2_8_the_toolstack_ends_it_whatever_the_frontend_says() {
        for stage in STAGES {
            for frontend in FRONTENDS {
                assert_eq!(next(stage, frontend, Toolstack::Leaving), Step::End);
                assert_eq!(next(stage, frontend, Toolstack::Gone), Step::End);
            }
        }
    }

    #[test]
    fn spec_2_5_only_a_frontend_in_state_3_is_connected_to() {
        for frontend in FRONTENDS {
            let connects = next(Stage::Offered, frontend, Toolstack::Online) == Step::Connect;
            assert_eq!(connects, frontend == XenbusState::Initialised, "{frontend:?}");
        }
    }

    #[test]
    fn spec_2_7_a_frontend_that_leaves_is_closed() {
        use XenbusState::{Closed, Closing, Connected, Unknown};
        for frontend in [Closing, Closed, Unknown] {
            assert_eq!(next(Stage::Connected, frontend, Toolstack::Online), Step::Close);
        }
        assert_eq!(next(Stage::Connected, Connected, Toolstack::Online), Step::Wait);
    }

    #[test]
    fn spec_2_7_a_frontend_that_leaves_before_it_connected_is_let_go() {
        let step = next(Stage::Offered, XenbusState::Closing, Toolstack::Online);
        assert_eq!(step, Step::Abandon);
    }

    #[test]
    fn spec_2_9_a_closed_frontend_starts_again_by_state_1() {
        for frontend in FRONTENDS {
            let offers = next(Stage::Closed, frontend, Toolstack::Online) == Step::Offer;
            assert_eq!(offers, frontend == XenbusState::Initialising, "{frontend:?}");
        }
    }
}
