//! How long the driver waits for a response (SPEC 5.4, 7.24).

use protocol::binding::XenbusState;

/// The time that a response may take, in milliseconds (SPEC 7.24).
pub const RESPONSE_LIMIT: u64 = 10_000;
/// The longest wait between two decisions, in milliseconds: an hour.
pub const LONGEST_WAIT: u64 = 3_600_000;

/// The driver's next step while a request has no response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waiting {
    /// Wait for at most this many milliseconds, which is not 0, then decide again.
    WaitFor(u64),
    /// Give the device up.
    GiveUp,
}

/// Decides on a request that has had no response for `waited` milliseconds.
///
/// While the device is `running`, that is, its driver neither starts, resets nor leaves it, and the
/// backend's state is Connected, another process may take the backend's part over [2.13]. The
/// driver then waits without a limit. Each wait is as long as all before it, up to
/// [`LONGEST_WAIT`], because the caller logs each.
pub const fn next(waited: u64, running: bool, backend: XenbusState) -> Waiting {
    match (waited < RESPONSE_LIMIT, running, backend) {
        (true, ..) => Waiting::WaitFor(RESPONSE_LIMIT - waited),
        (false, true, XenbusState::Connected) if waited > LONGEST_WAIT => {
            Waiting::WaitFor(LONGEST_WAIT)
        }
        (false, true, XenbusState::Connected) => Waiting::WaitFor(waited),
        (false, ..) => Waiting::GiveUp,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use XenbusState::*;

    const ALL: [XenbusState; 7] =
        [Unknown, Initialising, InitWait, Initialised, Connected, Closing, Closed];

    const DAYS: u64 = 100 * 24 * 3_600_000;

    /// The sum of all waits until the driver gives the device up, if that is within `most`.
    fn total(running: bool, backend: XenbusState, most: u64) -> Option<u64> {
        let mut waited = 0;
        while waited <= most {
            match next(waited, running, backend) {
                Waiting::WaitFor(more) => waited += more,
                Waiting::GiveUp => return Some(waited),
            }
        }
        None
    }

    #[test]
    fn spec_7_24_device_that_is_not_running_is_given_up_after_the_limit() {
        for backend in ALL {
            assert_eq!(total(false, backend, DAYS), Some(RESPONSE_LIMIT));
        }
    }

    #[test]
    fn spec_5_4_running_device_is_waited_for_while_the_backend_is_connected() {
        assert_eq!(total(true, Connected, DAYS), None);
        for backend in ALL.into_iter().filter(|backend| *backend != Connected) {
            assert_eq!(total(true, backend, DAYS), Some(RESPONSE_LIMIT));
        }
    }

    #[test]
    fn spec_7_24_device_that_stops_running_has_the_rest_of_the_limit() {
        assert_eq!(next(3_000, false, Connected), Waiting::WaitFor(7_000));
        for waited in [RESPONSE_LIMIT, RESPONSE_LIMIT + 1, u64::MAX] {
            assert_eq!(next(waited, false, Connected), Waiting::GiveUp);
        }
    }

    #[test]
    fn waits_beyond_the_limit_grow_to_an_hour() {
        assert_eq!(next(RESPONSE_LIMIT, true, Connected), Waiting::WaitFor(RESPONSE_LIMIT));
        assert_eq!(next(160_000, true, Connected), Waiting::WaitFor(160_000));
        assert_eq!(next(u64::MAX, true, Connected), Waiting::WaitFor(LONGEST_WAIT));
    }
}
