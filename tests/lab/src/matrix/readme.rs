//! The table of expected results in tests/matrix/README.md, and the comparison with it.

use std::fmt;

use anyhow::{Context, Result};

use super::MatrixResult;

/// The lines before and after the table in the README.
const BEGIN: &str = "<!-- cargo lab matrix: begin -->";
const END: &str = "<!-- cargo lab matrix: end -->";

/// Parses the README's table.
///
/// # Errors
/// A line that marks the table is missing, or a row has not the seven columns.
pub(crate) fn table(readme: &str) -> Result<Vec<MatrixResult>> {
    let (_, rest) = readme.split_once(BEGIN).with_context(|| format!("no line `{BEGIN}`"))?;
    let (table, _) = rest.split_once(END).with_context(|| format!("no line `{END}`"))?;
    // The first two lines are the headings and the rule.
    let lines = table.lines().filter(|line| line.starts_with('|')).skip(2);
    let parse = |line: &str| {
        let columns = line.trim().trim_matches('|').split(" | ");
        MatrixResult::of(columns).with_context(|| format!("`{line}` does not have seven columns"))
    };
    lines.map(parse).collect()
}

/// A difference between a run and the README's table.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Difference {
    /// The outcomes differ.
    Outcome {
        /// The result of the run.
        seen: MatrixResult,
        /// The README's outcome.
        expected: String,
    },
    /// The README lacks a result of the run.
    Unexpected(MatrixResult),
    /// The run lacks a result of the README.
    Missing(MatrixResult),
}

impl Difference {
    /// Returns whether the run lacks a result, as a run of only some scenarios does.
    pub(crate) fn is_missing(&self) -> bool {
        matches!(self, Self::Missing(_))
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let about = |result: &MatrixResult| result.about.join(", ");
        match self {
            Self::Outcome { seen, expected } => write!(
                f,
                "{}: the outcome is `{}`, but the README says `{expected}`; evidence: {}",
                about(seen),
                seen.outcome,
                seen.evidence
            ),
            Self::Unexpected(seen) => write!(
                f,
                "{}: the outcome is `{}`, but the README has no such row; evidence: {}",
                about(seen),
                seen.outcome,
                seen.evidence
            ),
            Self::Missing(result) => {
                write!(
                    f,
                    "{}: the README says `{}`, but no scenario reported a result",
                    about(result),
                    result.outcome
                )
            }
        }
    }
}

/// Compares the results of a run with the README's.
pub(crate) fn differences(seen: &[MatrixResult], expected: &[MatrixResult]) -> Vec<Difference> {
    let find = |results: &[MatrixResult], wanted: &MatrixResult| {
        results.iter().find(|result| result.about == wanted.about).cloned()
    };
    let of_seen = seen.iter().filter_map(|result| match find(expected, result) {
        Some(readme) if readme.outcome == result.outcome => None,
        Some(readme) => {
            Some(Difference::Outcome { seen: result.clone(), expected: readme.outcome })
        }
        None => Some(Difference::Unexpected(result.clone())),
    });
    let missing = expected.iter().filter(|result| find(seen, result).is_none());
    of_seen.chain(missing.cloned().map(Difference::Missing)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::matrix::markdown;

    fn result(row: &str, outcome: &str) -> MatrixResult {
        MatrixResult::of([row, "b", "x", "Dom0", "PV", "grants", outcome, "seen"].into_iter())
            .unwrap()
    }

    #[test]
    fn readme_table_is_the_markdown_table_without_evidence() {
        let results = [result("1", "works"), result("2", "refused: EPERM")];
        let readme =
            format!("# x\n{BEGIN}\n{}\n{END}\n| other | table |\n", markdown(&results, false));
        let read = table(&readme).unwrap();
        assert!(differences(&results, &read).is_empty());
        assert_eq!(read.len(), 2);
        assert!(table("# x\n").is_err());
        assert!(table(&readme.replace(" | refused: EPERM", "")).is_err());
    }

    #[test]
    fn every_kind_of_difference_is_found() {
        let seen = [result("1", "works"), result("2", "works"), result("3", "works")];
        let expected = [result("1", "works"), result("2", "refused"), result("4", "works")];
        assert_eq!(
            differences(&seen, &expected),
            [
                Difference::Outcome { seen: result("2", "works"), expected: "refused".to_owned() },
                Difference::Unexpected(result("3", "works")),
                Difference::Missing(result("4", "works")),
            ]
        );
    }

    #[test]
    fn projects_table_is_well_formed() {
        let tests = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
        let readme = std::fs::read_to_string(tests.join("../matrix/README.md")).unwrap();
        assert!(!table(&readme).unwrap().is_empty());
    }
}
