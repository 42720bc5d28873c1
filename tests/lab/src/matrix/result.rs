//! One result of the matrix, as scripts write it and as tables show it.

use anyhow::{Context, Result};

use crate::table;

/// The headings of the table's columns, in order.
const HEADINGS: [&str; 8] =
    ["row", "host type", "backend", "runs in", "guest", "DMA by", "outcome", "evidence"];

/// The result of one experiment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MatrixResult {
    /// The experiment: row, host type, backend, where the backend runs, guest and kind of DMA.
    pub(crate) about: [String; 6],
    /// The outcome, in words that the README's table has too.
    pub(crate) outcome: String,
    /// The observations, which may differ from run to run. Empty in the README.
    pub(crate) evidence: String,
}

impl MatrixResult {
    /// Parses the results that a scenario wrote with `result` of `tests/lab/dom0/lib.sh`, one a
    /// line.
    ///
    /// # Errors
    /// A line has not seven or eight columns.
    pub(crate) fn read_all(text: &str) -> Result<Vec<MatrixResult>> {
        let parse = |line: &str| {
            MatrixResult::of(line.split('\t')).with_context(|| {
                format!("`{line}` is no result: see `result` in tests/lab/dom0/lib.sh")
            })
        };
        text.lines().map(parse).collect()
    }

    /// Makes a result of its columns in order; the evidence can be missing. Returns `None` if there
    /// are fewer than seven columns or more than eight.
    pub(crate) fn of<'a>(columns: impl Iterator<Item = &'a str>) -> Option<MatrixResult> {
        let mut columns = columns.map(|column| column.trim().to_owned());
        let mut next = || columns.next();
        let about = [next()?, next()?, next()?, next()?, next()?, next()?];
        let (outcome, evidence) = (next()?, next().unwrap_or_default());
        columns.next().is_none().then_some(MatrixResult { about, outcome, evidence })
    }

    /// Returns the number of its row. Results are sorted by it, so that row 10 follows row 9.
    pub(crate) fn row(&self) -> u32 {
        let [row, ..] = &self.about;
        row.parse().unwrap_or(u32::MAX)
    }

    fn columns(&self) -> impl Iterator<Item = &str> {
        let [outcome, evidence] = [&self.outcome, &self.evidence];
        self.about.iter().chain([outcome, evidence]).map(String::as_str)
    }
}

/// Formats the results as a Markdown table, with or without their evidence.
pub(crate) fn markdown(results: &[MatrixResult], evidence: bool) -> String {
    let columns = HEADINGS.len() - usize::from(!evidence);
    let line = |columns_of: &mut dyn Iterator<Item = &str>| {
        let results: Vec<_> =
            columns_of.take(columns).map(|text| text.replace('|', r"\|")).collect();
        format!("| {} |\n", results.join(" | "))
    };
    let mut text = line(&mut HEADINGS.into_iter());
    text += &format!("|{}\n", "---|".repeat(columns));
    results.iter().for_each(|result| text += &line(&mut result.columns()));
    text
}

/// Formats the results as a table for a terminal, followed by the evidence of each.
pub(crate) fn plain(results: &[MatrixResult]) -> String {
    let shown = HEADINGS.len() - 1;
    let headings = HEADINGS.into_iter().take(shown).map(str::to_owned).collect();
    let row = |result: &MatrixResult| result.columns().take(shown).map(str::to_owned).collect();
    let rows: Vec<Vec<String>> = [headings].into_iter().chain(results.iter().map(row)).collect();
    let evidence = results.iter().map(|result| {
        format!("{}\n    {}: {}\n", result.about.join(", "), result.outcome, result.evidence)
    });
    format!("{}\nEvidence:\n\n{}", table::format(&rows), evidence.collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_parsed_by_columns() {
        let results =
            MatrixResult::read_all("1\tb\tx\tDom0\tPV\tgrants\tworks\t5 files\n").unwrap();
        assert_eq!(results[0].about, ["1", "b", "x", "Dom0", "PV", "grants"]);
        assert_eq!(
            (results[0].outcome.as_str(), results[0].evidence.as_str()),
            ("works", "5 files")
        );
        for wrong in ["1\tb\tx\tDom0\tPV\tgrants\n", "1\t2\t3\t4\t5\t6\t7\t8\t9\n"] {
            let error = MatrixResult::read_all(wrong).unwrap_err().to_string();
            assert!(error.contains("is no result"), "{error}");
        }
    }

    #[test]
    fn markdown_table_can_leave_out_the_evidence() {
        let results = MatrixResult::read_all("1\tb\tx\tDom0\tPV\tgrants\tworks\ta|b\n").unwrap();
        assert!(
            markdown(&results, true)
                .ends_with("| 1 | b | x | Dom0 | PV | grants | works | a\\|b |\n")
        );
        assert!(markdown(&results, false).ends_with("| grants | works |\n"));
        assert_eq!(markdown(&results, false).lines().nth(1), Some("|---|---|---|---|---|---|---|"));
    }
}
