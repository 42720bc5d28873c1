//! Counts the checks that passed, failed or were skipped, and formats the summary.

use std::fmt;

/// The counts of a run.
#[derive(Debug, Default)]
pub(crate) struct Summary {
    passed: usize,
    failed: usize,
    skipped: usize,
}

impl Summary {
    /// Counts `count` passed checks, and prints them as one line with `name`.
    pub(crate) fn pass(&mut self, name: &str, count: usize) {
        println!("pass  {name}");
        self.passed += count;
    }

    /// Counts a failed check, and prints its name and the reason.
    pub(crate) fn fail(&mut self, name: &str, why: &str) {
        println!("FAIL  {name}");
        for line in why.lines() {
            println!("      {line}");
        }
        self.failed += 1;
    }

    /// Counts a skipped check, and prints its name and the reason.
    pub(crate) fn skip(&mut self, name_and_reason: &str) {
        println!("skip  {name_and_reason}");
        self.skipped += 1;
    }

    /// Returns whether no check failed.
    pub(crate) fn good(&self) -> bool {
        self.failed == 0
    }

    /// Returns whether no check was counted.
    pub(crate) fn empty(&self) -> bool {
        self.passed + self.failed + self.skipped == 0
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed", self.passed, self.failed)?;
        if self.skipped > 0 {
            write!(f, ", {} skipped", self.skipped)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn summary_names_skips_only_if_there_are_any() {
        let mut summary = Summary::default();
        assert!(summary.empty());
        summary.pass("many", 12);
        assert_eq!(summary.to_string(), "12 passed, 0 failed");
        summary.fail("one", "because");
        summary.skip("another: no reason");
        assert_eq!(summary.to_string(), "12 passed, 1 failed, 1 skipped");
        assert!(!summary.good() && !summary.empty());
    }
}
