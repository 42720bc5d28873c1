//! What several rounds of one measurement come to.

use serde::{Deserialize, Serialize};

/// A median, and the quartiles around it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Summary {
    /// A quarter of the rounds were not above it.
    pub(crate) low: f64,
    /// Half of the rounds were not above it.
    pub(crate) median: f64,
    /// Three quarters of the rounds were not above it.
    pub(crate) high: f64,
    /// How many rounds there were.
    pub(crate) rounds: usize,
}

impl Summary {
    /// Of `values`, in any order; nothing if there is none, or one that is no number.
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

/// The value below which `part` of `sorted` lies, between two of them in proportion.
fn quantile(sorted: &[f64], part: f64) -> Option<f64> {
    let place = part * sorted.len().checked_sub(1)? as f64;
    let below = sorted.get(place.floor() as usize)?;
    let above = sorted.get(place.ceil() as usize)?;
    Some(below + (above - below) * place.fract())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_and_quartiles_of_odd_and_even_counts() {
        let odd = Summary::of(&[5.0, 1.0, 3.0, 2.0, 4.0]).unwrap();
        assert_eq!(odd, Summary { low: 2.0, median: 3.0, high: 4.0, rounds: 5 });
        let even = Summary::of(&[4.0, 1.0, 2.0, 3.0]).unwrap();
        assert_eq!(even, Summary { low: 1.75, median: 2.5, high: 3.25, rounds: 4 });
    }

    #[test]
    fn one_round_is_its_own_median_and_none_has_none() {
        let one = Summary::of(&[7.0]).unwrap();
        assert_eq!((one.low, one.median, one.high), (7.0, 7.0, 7.0));
        assert_eq!(Summary::of(&[]), None);
        assert_eq!(Summary::of(&[1.0, f64::NAN]), None);
    }
}
