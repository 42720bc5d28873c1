//! Summarizes the rounds of one measurement.

use serde::{Deserialize, Serialize};

/// The median and the quartiles.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Summary {
    /// The first quartile.
    pub(crate) low: f64,
    /// The median.
    pub(crate) median: f64,
    /// The third quartile.
    pub(crate) high: f64,
    /// The number of rounds.
    pub(crate) rounds: usize,
}

impl Summary {
    /// Summarizes `values`, in any order. Returns `None` if there are none, or one is not finite.
    pub(crate) fn of(values: &[f64]) -> Option<Summary> {
        if values.iter().any(|value| !value.is_finite()) {
            return None;
        }
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let at = |part| quantile(&sorted, part);
        Some(Summary { low: at(0.25)?, median: at(0.5)?, high: at(0.75)?, rounds: sorted.len() })
    }
}

/// Returns the quantile `part` of `sorted`, with linear interpolation between two values.
fn quantile(sorted: &[f64], part: f64) -> Option<f64> {
    let position = part * sorted.len().checked_sub(1)? as f64;
    let below = sorted.get(position.floor() as usize)?;
    let above = sorted.get(position.ceil() as usize)?;
    Some(below + (above - below) * position.fract())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quartiles_of_odd_and_even_counts_are_right() {
        let odd = Summary::of(&[5.0, 1.0, 3.0, 2.0, 4.0]).unwrap();
        assert_eq!(odd, Summary { low: 2.0, median: 3.0, high: 4.0, rounds: 5 });
        let even = Summary::of(&[4.0, 1.0, 2.0, 3.0]).unwrap();
        assert_eq!(even, Summary { low: 1.75, median: 2.5, high: 3.25, rounds: 4 });
    }

    #[test]
    fn one_round_is_its_own_median_and_no_rounds_have_none() {
        let one = Summary::of(&[7.0]).unwrap();
        assert_eq!((one.low, one.median, one.high), (7.0, 7.0, 7.0));
        assert_eq!(Summary::of(&[]), None);
        assert_eq!(Summary::of(&[1.0, f64::NAN]), None);
    }
}
