//! When the driver is told of used buffers.
//!
//! An interrupt costs a guest several times what a small request takes, and interrupts the work of putting
//! more requests into the ring. A driver that keeps many requests going is therefore told of several at once,
//! one that waits for each is told of it at once. Which one it is shows only by trying: a completion is
//! held back for a moment, and either another request comes meanwhile, or it was held in vain. What was held
//! in vain is not tried again soon.

use std::time::Duration;

/// Most requests that the driver is told of at once: it has others to go on with.
const MOST: u32 = 16;
/// Shortest time to hold a completion back.
const SHORTEST: Duration = Duration::from_micros(10);
/// Most announcements between two attempts.
const RAREST: u32 = 256;

/// What was learnt of a driver.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Requests that the driver is told of at once.
    target: u32,
    /// Announcements before more than these are tried.
    quiet: u32,
    /// The `quiet` after the next attempt in vain.
    penalty: u32,
    /// All that the driver had when one was in vain; an attempt at more starts there.
    depth: u32,
    /// Time between two requests of the driver's, a moving average.
    gap: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self { target: 1, quiet: 0, penalty: 1, depth: 0, gap: SHORTEST }
    }
}

impl Pace {
    /// Whether the driver is to be told of `held` requests now, though there may be more soon.
    pub fn is_due(self, held: u32) -> bool {
        held >= self.aim()
    }

    /// How long to wait for more before it is told: a few times what it usually takes.
    pub fn patience(self) -> Duration {
        (self.gap * 4).max(SHORTEST)
    }

    /// Another request came, that long after the ring was found empty.
    pub fn came(&mut self, after: Duration) {
        self.gap = (self.gap * 7 + after) / 8;
    }

    /// The driver is told of as many requests as was aimed at.
    pub fn full(&mut self) {
        self.target = self.aim();
        match self.quiet {
            0 => (self.penalty, self.depth) = (1, 0),
            _ => self.quiet -= 1,
        }
    }

    /// The driver is told of `held` requests, and no other came meanwhile: these were all it had. Half of
    /// them at once leaves it others to go on with.
    pub fn alone(&mut self, held: u32) {
        (self.target, self.depth) = ((held / 2).max(1), held);
        self.quiet = self.penalty;
        self.penalty = (self.penalty * 2).min(RAREST);
    }

    fn aim(self) -> u32 {
        match self.quiet {
            0 => (self.depth + 1).max(self.target + self.target.div_ceil(2)).min(MOST),
            _ => self.target,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A driver that has `depth` requests and waits when all are done: how often it was told, and how often it
    /// waited in vain, while it made `requests` of them.
    fn drive(pace: &mut Pace, depth: u32, requests: u32) -> (u32, u32) {
        let (mut told, mut vain, mut held) = (0, 0, 0);
        for _ in 0..requests {
            held += 1;
            if pace.is_due(held) {
                pace.full();
                (told, held) = (told + 1, 0);
            } else if held == depth {
                pace.alone(held);
                (told, vain, held) = (told + 1, vain + 1, 0);
            }
        }
        (told, vain)
    }

    #[test]
    fn a_driver_with_many_requests_is_told_of_many_at_once() {
        let mut pace = Pace::default();
        drive(&mut pace, 32, 64);
        let (told, vain) = drive(&mut pace, 32, 1600);
        assert_eq!((told, vain), (100, 0));
    }

    #[test]
    fn a_driver_with_one_request_is_seldom_kept_waiting() {
        let mut pace = Pace::default();
        drive(&mut pace, 32, 64);
        let (told, vain) = drive(&mut pace, 1, 1000);
        assert_eq!(told, 1000);
        assert!(vain < 16, "{vain}");
    }

    #[test]
    fn a_driver_with_a_few_is_told_of_some_while_it_has_others() {
        let mut pace = Pace::default();
        drive(&mut pace, 8, 100);
        let (told, vain) = drive(&mut pace, 8, 1000);
        assert!(vain < 16 && (150..=300).contains(&told), "{told} {vain}");
    }

    #[test]
    fn the_time_to_wait_follows_the_driver() {
        let mut pace = Pace::default();
        (0..100).for_each(|_| pace.came(Duration::from_micros(50)));
        assert!((150..=200).contains(&pace.patience().as_micros()));
        (0..100).for_each(|_| pace.came(Duration::ZERO));
        assert_eq!(pace.patience(), SHORTEST);
    }
}
