//! Summarizes the output of `cargo test`.

/// The results of a workspace's tests.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Sum {
    /// The names of the tests that passed.
    pub(crate) passed: Vec<String>,
    /// The names of the tests that failed.
    pub(crate) failed: Vec<String>,
    /// The tests that cargo skipped, each as `NAME: REASON`.
    pub(crate) skipped: Vec<String>,
}

impl Sum {
    /// Reads the lines `test NAME ... RESULT` of `output`.
    pub(crate) fn of(output: &str) -> Sum {
        let mut sum = Sum::default();
        for line in output.lines() {
            let Some((name, result)) =
                line.strip_prefix("test ").and_then(|rest| rest.rsplit_once(" ... "))
            else {
                continue;
            };
            match result {
                "ok" => sum.passed.push(name.to_owned()),
                "FAILED" => sum.failed.push(name.to_owned()),
                _ if result.starts_with("ignored") => sum.skipped.push(skip(name, result)),
                _ => (),
            }
        }
        // The output may hold several runs, and one run may execute tests that another ignores.
        let ran: Vec<_> =
            sum.passed.iter().chain(&sum.failed).map(|name| format!("{name}: ")).collect();
        sum.skipped.retain(|skipped| !ran.iter().any(|name| skipped.starts_with(name)));
        sum
    }
}

fn skip(name: &str, result: &str) -> String {
    match result.split_once(", ") {
        Some((_, reason)) => format!("{name}: {reason}"),
        None => format!("{name}: no reason given"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_of_all_packages_are_counted() {
        let sum = Sum::of(
            "running 3 tests\n\
             test a::one ... ok\n\
             test a::two ... FAILED\n\
             test a::three ... ignored, needs a quiet machine\n\
             test result: FAILED. 1 passed; 1 failed; 1 ignored; 0 measured\n\
             test src/lib.rs - example (line 3) ... ok\n\
             test b::should ... panic - should panic ... ok\n\
             test c ... ignored\n\
             test d ... ignored, runs alone\n\
             test d ... ok\n",
        );
        assert_eq!(sum.passed.len(), 4);
        assert_eq!(sum.passed[0], "a::one");
        assert_eq!(sum.failed, ["a::two"]);
        assert_eq!(sum.skipped, ["a::three: needs a quiet machine", "c: no reason given"]);
    }

    #[test]
    fn output_without_tests_gives_an_empty_sum() {
        assert_eq!(Sum::of("error: could not compile\n"), Sum::default());
    }
}
