//! The frontend's state machine (SPEC section 2): a table over its own state and the backend's.

use protocol::binding::XenbusState::{self, *};

/// The next action of the frontend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrontendAction {
    /// Do nothing: wait for the backend, or stay closed.
    Nothing,
    /// Check the backend's keys, write the frontend's keys, go to Initialised [2.3, 2.4].
    Offer,
    /// Go to Connected and register the virtio device [2.5].
    Connect,
    /// Stop the driver, end all grants, go to Closed [2.7].
    Close,
    /// Go to Closed. Either the code that wrote Closing stops the driver, and the backend has
    /// closed; or the backend refused the device.
    Finish,
}

/// Returns the action for the two states.
///
/// A frontend in Initialising waits for a backend in any other state: after a restart the backend
/// may still close the earlier connection [2.9]. A backend without a state has refused the device
/// [2.6]; the frontend does not wait then, because a guest that boots would wait, too.
pub const fn next(own: XenbusState, backend: XenbusState) -> FrontendAction {
    match (own, backend) {
        (Initialising, InitWait) => FrontendAction::Offer,
        (Initialising, Unknown) => FrontendAction::Finish,
        (Initialised, Connected) => FrontendAction::Connect,
        (Initialised, Closing | Closed | Unknown) => FrontendAction::Close,
        (Connected, Connected) => FrontendAction::Nothing,
        // Any other state, and not only Closing, Closed and none: a backend that starts again has
        // left the connection, too.
        (Connected, _) => FrontendAction::Close,
        (Closing, Closed | Unknown) => FrontendAction::Finish,
        _ => FrontendAction::Nothing,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [XenbusState; 7] =
        [Unknown, Initialising, InitWait, Initialised, Connected, Closing, Closed];

    /// The backend states in which `own` leads to `action`.
    fn backends(own: XenbusState, action: FrontendAction) -> impl Iterator<Item = XenbusState> {
        ALL.into_iter().filter(move |backend| next(own, *backend) == action)
    }

    #[test]
    fn spec_2_4_frontend_offers_only_to_a_waiting_backend() {
        for own in ALL {
            let expected: &[_] = if own == Initialising { &[InitWait] } else { &[] };
            assert!(backends(own, FrontendAction::Offer).eq(expected.iter().copied()));
        }
    }

    #[test]
    fn spec_2_5_frontend_connects_after_the_backend() {
        for own in ALL {
            let expected: &[_] = if own == Initialised { &[Connected] } else { &[] };
            assert!(backends(own, FrontendAction::Connect).eq(expected.iter().copied()));
        }
    }

    #[test]
    fn spec_2_7_frontend_closes_when_the_backend_leaves() {
        for backend in [Closing, Closed, Unknown] {
            assert_eq!(next(Connected, backend), FrontendAction::Close);
            assert_eq!(next(Initialised, backend), FrontendAction::Close);
        }
        assert_eq!(next(Connected, InitWait), FrontendAction::Close);
        assert_eq!(next(Connected, Connected), FrontendAction::Nothing);
    }

    #[test]
    fn spec_2_7_closing_frontend_waits_until_the_backend_is_closed() {
        assert_eq!(next(Closing, Connected), FrontendAction::Nothing);
        assert_eq!(next(Closing, Closing), FrontendAction::Nothing);
        assert_eq!(next(Closing, Closed), FrontendAction::Finish);
        assert_eq!(next(Closing, Unknown), FrontendAction::Finish);
    }

    #[test]
    fn spec_2_9_restarted_frontend_waits_while_the_backend_closes() {
        for backend in [Connected, Closing, Closed, Initialising] {
            assert_eq!(next(Initialising, backend), FrontendAction::Nothing);
        }
    }

    #[test]
    fn spec_2_6_frontend_does_not_wait_for_a_refused_device() {
        assert_eq!(next(Initialising, Unknown), FrontendAction::Finish);
    }

    #[test]
    fn closed_frontend_does_nothing() {
        assert!(backends(Closed, FrontendAction::Nothing).eq(ALL));
    }
}
