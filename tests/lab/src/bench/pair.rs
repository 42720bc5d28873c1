//! Statistics of paired measurements: in each round both servers do the work, one shortly after the
//! other, so the ratio within a round excludes most of what changes between rounds.

use serde::{Deserialize, Serialize};

use super::summary::Summary;

/// The probability that an interval contains the true median, if there are enough rounds.
const CONFIDENCE: f64 = 0.95;

/// The ratio of our rate to another server's, over all rounds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Paired {
    /// The median of the ratios of all rounds.
    pub(crate) median: f64,
    /// The ends of an interval for the true median.
    pub(crate) low: f64,
    pub(crate) high: f64,
    /// The probability that the interval contains the true median.
    pub(crate) confidence: f64,
    /// The number of rounds.
    pub(crate) rounds: usize,
}

/// How the interval compares with 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The interval is above 1.
    Faster,
    /// The interval is below 1.
    Slower,
    /// The interval contains 1.
    Same,
    /// There are too few rounds for an interval.
    Unknown,
}

impl Paired {
    /// Pairs the rates by their rounds. Returns `None` if no round has both rates, or if a ratio is
    /// not finite.
    ///
    /// Each rate is a round's number and the rate. The interval makes no assumption about the
    /// distribution: its ends are the k-th smallest and the k-th largest ratio, where the largest k
    /// is chosen that keeps the confidence.
    pub(crate) fn of(ours: &[(usize, f64)], theirs: &[(usize, f64)]) -> Option<Paired> {
        let ratio = |&(round, ours): &(usize, f64)| {
            let (_, theirs) = theirs.iter().find(|(other, _)| *other == round)?;
            Some(ours / theirs)
        };
        let mut ratios: Vec<f64> = ours.iter().filter_map(ratio).collect();
        let median = Summary::of(&ratios)?.median;
        ratios.sort_by(f64::total_cmp);
        let (skipped, confidence) = interval(ratios.len());
        let low = *ratios.get(skipped)?;
        let high = *ratios.iter().rev().nth(skipped)?;
        Some(Paired { median, low, high, confidence, rounds: ratios.len() })
    }

    /// Compares the interval with 1.
    pub(crate) fn verdict(&self) -> Verdict {
        match self {
            Paired { confidence, .. } if *confidence < CONFIDENCE => Verdict::Unknown,
            Paired { low, .. } if *low > 1.0 => Verdict::Faster,
            Paired { high, .. } if *high < 1.0 => Verdict::Slower,
            _ => Verdict::Same,
        }
    }
}

/// Returns the number of ratios to skip at each end of `rounds` sorted ones, and the probability
/// that the true median is between those that follow.
///
/// Each ratio is below the true median with probability 1/2, independently of the others, so the
/// number below it has the binomial distribution.
fn interval(rounds: usize) -> (usize, f64) {
    let mut outside = 2.0 * 0.5_f64.powi(i32::try_from(rounds).unwrap_or(i32::MAX));
    let (mut skipped, mut term) = (0, outside);
    let mut confidence = 1.0 - outside;
    while skipped + 1 < rounds.div_ceil(2) {
        term *= (rounds - skipped) as f64 / (skipped + 1) as f64;
        outside += term;
        if 1.0 - outside < CONFIDENCE {
            break;
        }
        skipped += 1;
        confidence = 1.0 - outside;
    }
    (skipped, confidence.max(0.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbered(rates: &[f64]) -> Vec<(usize, f64)> {
        rates.iter().copied().enumerate().collect()
    }

    #[test]
    fn intervals_have_the_tabulated_order_statistics() {
        // From the table of the sign test: 6 rounds, smallest and largest, 96.9 %; 16 rounds, the
        // fourth of each end, 97.9 %; 20 rounds, the sixth of each end, 95.9 %.
        for (rounds, skipped, confidence) in
            [(1, 0, 0.0), (2, 0, 0.5), (4, 0, 0.875), (6, 0, 0.969), (16, 3, 0.979), (20, 5, 0.959)]
        {
            let found = interval(rounds);
            assert_eq!(found.0, skipped, "{rounds} rounds");
            assert!((found.1 - confidence).abs() < 5e-4, "{rounds} rounds: {found:?}");
        }
    }

    #[test]
    fn ratio_is_taken_within_each_round() {
        // The machine is ten times slower in the second round, for both.
        let ours = [(1, 200.0), (2, 22.0), (3, 210.0)];
        let theirs = [(3, 100.0), (1, 100.0), (2, 10.0), (4, 1.0)];
        let paired = Paired::of(&ours, &theirs).unwrap();
        assert!((paired.median - 2.1).abs() < 1e-9);
        assert_eq!((paired.low, paired.high, paired.rounds), (2.0, 2.2, 3));
    }

    #[test]
    fn verdict_needs_enough_rounds() {
        let theirs = numbered(&[1.0; 6]);
        let verdict = |ours: &[f64]| Paired::of(&numbered(ours), &theirs).unwrap().verdict();
        assert_eq!(verdict(&[1.1, 1.2, 1.3, 1.1, 1.2, 1.3]), Verdict::Faster);
        assert_eq!(verdict(&[0.9, 0.8, 0.9, 0.8, 0.9, 0.8]), Verdict::Slower);
        assert_eq!(verdict(&[0.9, 1.2, 1.3, 1.1, 1.2, 1.3]), Verdict::Same);
        assert_eq!(verdict(&[2.0, 2.0, 2.0, 2.0]), Verdict::Unknown);
    }

    #[test]
    fn rates_without_a_common_round_or_of_zero_have_no_ratio() {
        assert_eq!(Paired::of(&[(1, 1.0)], &[(2, 1.0)]), None);
        assert_eq!(Paired::of(&[(1, 1.0)], &[(1, 0.0)]), None);
    }
}
