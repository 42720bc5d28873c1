//! Prints findings.

use std::io::{self, Write};

use serde::Serialize;

use super::finding::{Finding, Severity};
use crate::excerpt::{excerpt, one_line};

/// A finding and the check that it is of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Reported {
    /// The check's name.
    pub check: &'static str,
    /// The finding.
    #[serde(flatten)]
    pub finding: Finding,
}

/// All findings, in the order of the checks.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// The findings.
    pub findings: Vec<Reported>,
}

impl Report {
    /// Adds a finding, whose texts may be a guest's: each takes one line and is not long.
    pub(super) fn add(&mut self, check: &'static str, finding: Finding) {
        let short = |text: &String| one_line(&excerpt(text));
        let mend = finding.mend.iter().map(short).collect();
        let finding = Finding { text: short(&finding.text), mend, ..finding };
        self.findings.push(Reported { check, finding });
    }

    /// The number of findings of a severity.
    pub fn count(&self, severity: Severity) -> usize {
        self.findings.iter().filter(|it| it.finding.severity == severity).count()
    }
}

/// Prints a report, as JSON or for a person.
///
/// # Errors
/// The output's.
pub fn print<W: Write>(out: &mut W, report: &Report, json: bool) -> io::Result<()> {
    if json {
        serde_json::to_writer(&mut *out, report)?;
        return writeln!(out);
    }
    for Reported { check, finding } in &report.findings {
        writeln!(out, "{:<7}  {check}: {}", finding.severity.word(), finding.text)?;
        finding.mend.iter().try_for_each(|command| writeln!(out, "         mend: {command}"))?;
    }
    let [errors, warnings] =
        [Severity::Error, Severity::Warning].map(|severity| report.count(severity));
    writeln!(out, "{errors} error(s), {warnings} warning(s)")
}
