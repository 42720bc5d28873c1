//! Results for platforms other than Xen, from unit tests on the simulated hypervisor.

use super::MatrixResult;
use crate::cargo_test::Sum;

/// The package of the tests, and the beginning of their names.
pub(crate) const PACKAGE: &str = "xen-virtiod";
pub(crate) const TESTS: &str = "tests::platforms::";

/// The tests. Each has its name, the platform, the driver's kind of DMA, and the outcome that it
/// proves if it passes.
const RESULTS: [(&str, &str, &str, &str); 4] = [
    ("disk_works_with_an_identity_mapping", "1:1", "guest addresses", "works, data right"),
    (
        "disk_works_behind_a_window",
        "a window at an offset",
        "addresses in the window",
        "works, data right",
    ),
    (
        "addresses_outside_the_window_are_refused",
        "a window at an offset",
        "guest addresses",
        "refused, DEVICE_NEEDS_RESET",
    ),
    (
        "driver_without_access_platform_needs_an_identity_mapping",
        "a window at an offset",
        "no ACCESS_PLATFORM",
        "FEATURES_OK not set",
    ),
];

/// Makes results of the output of `cargo test`.
pub(crate) fn simulated(output: &str) -> Vec<MatrixResult> {
    let sum = Sum::of(output);
    let result = |&(test, platform, dma, shown): &(&str, &str, &str, &str)| {
        let is_it = |name: &&String| name.ends_with(test);
        let outcome = match (sum.passed.iter().find(is_it), sum.failed.iter().find(is_it)) {
            (Some(_), None) => shown,
            (_, Some(_)) => "its test fails",
            (None, None) => "its test did not run",
        };
        let evidence = format!("test {TESTS}{test}, on the simulated hypervisor");
        let backend = "xen-virtiod's devices";
        MatrixResult::of(["11", "b", backend, platform, "-", dma, outcome, &evidence].into_iter())
    };
    RESULTS.iter().filter_map(result).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outcome_is_good_only_if_the_test_passed() {
        let outcomes = |output: &str| {
            simulated(output).into_iter().map(|result| result.outcome).collect::<Vec<_>>()
        };
        let output = "test tests::platforms::disk_works_with_an_identity_mapping ... ok\n\
                      test tests::platforms::disk_works_behind_a_window ... FAILED\n";
        assert_eq!(
            outcomes(output),
            ["works, data right", "its test fails", "its test did not run", "its test did not run"]
        );
    }
}
