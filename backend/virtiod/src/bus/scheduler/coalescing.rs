//! How many used buffers one notification tells the driver of.
//!
//! An interrupt costs a guest several times what a small request takes, and interrupts the work of
//! adding more requests to the ring. So a driver that keeps many requests in flight is notified of
//! several at once, and one that waits for each is notified of each. Which kind it is shows only by
//! trying: the notification is held back for a moment, and either another request comes meanwhile,
//! or the attempt failed and is not repeated soon.

use std::time::Duration;

/// Most used buffers that one notification is held back for: the driver has other requests in
/// flight.
const MOST: u32 = 16;
/// Shortest time to hold a notification back.
const SHORTEST: Duration = Duration::from_micros(10);
/// Most notifications between two attempts.
const RAREST: u32 = 256;

/// The pace of a driver, as it was learnt.
#[derive(Clone, Copy, Debug)]
pub(super) struct Coalescing {
    /// Used buffers that one notification is for.
    target: u32,
    /// Notifications before the next attempt at a larger target.
    until_attempt: u32,
    /// Notifications to wait after the next attempt that fails.
    penalty: u32,
    /// Used buffers that were pending when the last attempt failed; the next one aims one higher.
    failed_at: u32,
    /// Time between two requests of the driver, a moving average.
    gap: Duration,
}

impl Default for Coalescing {
    fn default() -> Self {
        Self { target: 1, until_attempt: 0, penalty: 1, failed_at: 0, gap: SHORTEST }
    }
}

impl Coalescing {
    /// Whether the driver is to be notified of `pending` used buffers now, though more may follow
    /// soon.
    pub(super) fn is_due(self, pending: u32) -> bool {
        pending >= self.aim()
    }

    /// How long to hold a notification back for more: a few times the usual gap.
    pub(super) fn hold_time(self) -> Duration {
        (self.gap * 4).max(SHORTEST)
    }

    /// Another request came, `after` the ring was found empty.
    pub(super) fn found(&mut self, after: Duration) {
        self.gap = (self.gap * 7 + after) / 8;
    }

    /// The driver is notified of as many used buffers as was aimed at.
    pub(super) fn succeeded(&mut self) {
        self.target = self.aim();
        match self.until_attempt {
            0 => (self.penalty, self.failed_at) = (1, 0),
            _ => self.until_attempt -= 1,
        }
    }

    /// The driver is notified of `pending` used buffers, and no request came meanwhile: it had no
    /// other in flight. Half of them at once leaves it others to go on with.
    pub(super) fn failed(&mut self, pending: u32) {
        (self.target, self.failed_at) = ((pending / 2).max(1), pending);
        self.until_attempt = self.penalty;
        self.penalty = (self.penalty * 2).min(RAREST);
    }

    fn aim(self) -> u32 {
        match self.until_attempt {
            0 => (self.failed_at + 1).max(self.target + self.target.div_ceil(2)).min(MOST),
            _ => self.target,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A driver that has `depth` requests and waits when all are done: how often it was notified,
    /// and how often an attempt failed, while it made `requests` of them.
    fn drive(coalescing: &mut Coalescing, depth: u32, requests: u32) -> (u32, u32) {
        let (mut notified, mut failed, mut pending) = (0, 0, 0);
        for _ in 0..requests {
            pending += 1;
            if coalescing.is_due(pending) {
                coalescing.succeeded();
                (notified, pending) = (notified + 1, 0);
            } else if pending == depth {
                coalescing.failed(pending);
                (notified, failed, pending) = (notified + 1, failed + 1, 0);
            }
        }
        (notified, failed)
    }

    #[test]
    fn a_driver_with_many_requests_is_notified_of_many_at_once() {
        let mut coalescing = Coalescing::default();
        drive(&mut coalescing, 32, 64);
        let (notified, failed) = drive(&mut coalescing, 32, 1600);
        assert_eq!((notified, failed), (100, 0));
    }

    #[test]
    fn a_driver_with_one_request_is_seldom_kept_waiting() {
        let mut coalescing = Coalescing::default();
        drive(&mut coalescing, 32, 64);
        let (notified, failed) = drive(&mut coalescing, 1, 1000);
        assert_eq!(notified, 1000);
        assert!(failed < 16, "{failed}");
    }

    #[test]
    fn a_driver_with_a_few_is_notified_of_some_while_it_has_others() {
        let mut coalescing = Coalescing::default();
        drive(&mut coalescing, 8, 100);
        let (notified, failed) = drive(&mut coalescing, 8, 1000);
        assert!(failed < 16 && (150..=300).contains(&notified), "{notified} {failed}");
    }

    #[test]
    fn the_hold_time_follows_the_driver() {
        let mut coalescing = Coalescing::default();
        (0..100).for_each(|_| coalescing.found(Duration::from_micros(50)));
        assert!((150..=200).contains(&coalescing.hold_time().as_micros()));
        (0..100).for_each(|_| coalescing.found(Duration::ZERO));
        assert_eq!(coalescing.hold_time(), SHORTEST);
    }
}
