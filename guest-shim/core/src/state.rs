//! The frontend's state machine (SPEC section 2): a table over its own state and the backend's.

use protocol::binding::XenbusState::{self, *};

/// What the frontend does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrontendAction {
    /// Wait for the backend, or there is nothing left to do.
    Nothing,
    /// Check the backend's keys, write one's own, go to Initialised [2.3, 2.4].
    Offer,
    /// Go to Connected and register the virtio device [2.5].
    Connect,
    /// Stop the driver, end all grants, go to Closed [2.7].
    Close,
    /// Go to Closed: someone else has written Closing and stops the driver, and the backend is
    /// done; or the device was refused.
    Finish,
}

/// Looks the two states up.
///
/// A frontend that has offered nothing yet waits for the backend in any state: after a restart the
/// backend may still be closing the earlier connection [2.9]. Without a state it has refused the
/// device [2.6], and a guest that boots must not wait for that.
pub const fn next(own: XenbusState, backend: XenbusState) -> FrontendAction {
    match (own, backend) {
        (Initialising, InitWait) => FrontendAction::Offer,
        (Initialising, Unknown) => FrontendAction::Finish,
        (Initialised, Connected) => FrontendAction::Connect,
        (Initialised, Closing | Closed | Unknown) => FrontendAction::Close,
        (Connected, Connected) => FrontendAction::Nothing,
        // Not only Closing, Closed and gone: a backend that starts over has left the connection
        // too.
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
    fn spec_2_4_an_offer_is_made_once_and_only_to_a_backend_that_waits() {
        for own in ALL {
            let expected: &[_] = if own == Initialising { &[InitWait] } else { &[] };
            assert!(backends(own, FrontendAction::Offer).eq(expected.iter().copied()));
        }
    }

    #[test]
    fn spec_2_5_the_frontend_connects_after_the_backend() {
        for own in ALL {
            let expected: &[_] = if own == Initialised { &[Connected] } else { &[] };
            assert!(backends(own, FrontendAction::Connect).eq(expected.iter().copied()));
        }
    }

    #[test]
    fn spec_2_7_a_backend_that_leaves_ends_the_connection() {
        for backend in [Closing, Closed, Unknown] {
            assert_eq!(next(Connected, backend), FrontendAction::Close);
            assert_eq!(next(Initialised, backend), FrontendAction::Close);
        }
        assert_eq!(next(Connected, InitWait), FrontendAction::Close);
        assert_eq!(next(Connected, Connected), FrontendAction::Nothing);
    }

    #[test]
    fn spec_2_7_a_frontend_that_closes_waits_for_the_backend_to_let_go() {
        assert_eq!(next(Closing, Connected), FrontendAction::Nothing);
        assert_eq!(next(Closing, Closing), FrontendAction::Nothing);
        assert_eq!(next(Closing, Closed), FrontendAction::Finish);
        assert_eq!(next(Closing, Unknown), FrontendAction::Finish);
    }

    #[test]
    fn spec_2_9_a_restarted_frontend_waits_while_the_backend_closes() {
        for backend in [Connected, Closing, Closed, Initialising] {
            assert_eq!(next(Initialising, backend), FrontendAction::Nothing);
        }
    }

    #[test]
    fn spec_2_6_a_device_that_was_refused_is_not_waited_for() {
        assert_eq!(next(Initialising, Unknown), FrontendAction::Finish);
    }

    #[test]
    fn a_closed_frontend_does_nothing() {
        assert!(backends(Closed, FrontendAction::Nothing).eq(ALL));
    }
}
