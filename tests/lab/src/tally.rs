//! Counts what passed, failed and was skipped, and says so at the end.

use std::fmt;

/// The counts.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    passed: usize,
    failed: usize,
    skipped: usize,
}

impl Tally {
    /// Counts `count` that passed, under one name.
    pub(crate) fn pass(&mut self, name: &str, count: usize) {
        println!("pass  {name}");
        self.passed += count;
    }

    /// Counts one that failed, and says why.
    pub(crate) fn fail(&mut self, name: &str, why: &str) {
        println!("FAIL  {name}");
        for line in why.lines() {
            println!("      {line}");
        }
        self.failed += 1;
    }

    /// Counts one that was skipped, with the reason.
    pub(crate) fn skip(&mut self, name_and_reason: &str) {
        println!("skip  {name_and_reason}");
        self.skipped += 1;
    }

    /// Whether nothing failed.
    pub(crate) fn good(&self) -> bool {
        self.failed == 0
    }

    /// Whether nothing was counted at all.
    pub(crate) fn empty(&self) -> bool {
        self.passed + self.failed + self.skipped == 0
    }
}

impl fmt::Display for Tally {
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
    fn the_closing_line_names_skips_only_if_there_are_any() {
        let mut tally = Tally::default();
        assert!(tally.empty());
        tally.pass("many", 12);
        assert_eq!(tally.to_string(), "12 passed, 0 failed");
        tally.fail("one", "because");
        tally.skip("another: no reason");
        assert_eq!(tally.to_string(), "12 passed, 1 failed, 1 skipped");
        assert!(!tally.good() && !tally.empty());
    }
}
