//! The latency of requests, as the guest's program sees it.

use serde::{Deserialize, Serialize};

use super::summary::Summary;

/// Percentiles of the time from the submission of a request to its completion, in microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Latency {
    /// Half of the requests take no longer.
    pub(crate) p50: f64,
    /// 99 % of them take no longer.
    pub(crate) p99: f64,
    /// 99.9 % of them take no longer.
    pub(crate) p999: f64,
}

impl Latency {
    /// Returns the median of each percentile over the rounds, or `None` if there are no rounds.
    pub(crate) fn median(rounds: &[Latency]) -> Option<Latency> {
        let median = |percentile: fn(&Latency) -> f64| {
            let values: Vec<_> = rounds.iter().map(percentile).collect();
            Some(Summary::of(&values)?.median)
        };
        Some(Latency {
            p50: median(|round| round.p50)?,
            p99: median(|round| round.p99)?,
            p999: median(|round| round.p999)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_percentile_has_its_own_median() {
        let round = |p50, p99, p999| Latency { p50, p99, p999 };
        let rounds = [round(1.0, 9.0, 30.0), round(2.0, 5.0, 90.0), round(3.0, 6.0, 40.0)];
        assert_eq!(Latency::median(&rounds), Some(round(2.0, 6.0, 40.0)));
        assert_eq!(Latency::median(&[]), None);
    }
}
