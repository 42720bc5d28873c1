//! Checks of the project's text: by Debian's linters, and by the lab's own code where no linter
//! knows the rule or can be had within a minute.

mod checkpatch;
mod codespell;
mod columns;
mod files;
mod licences;
mod script;
mod shellcheck;
mod subjects;
mod tool;
mod words;

use std::path::Path;

use anyhow::Result;

use crate::dirs::Dirs;
use crate::progress::Progress;

/// What a check reads, and where it reports.
pub(crate) struct Project<'a> {
    /// Where the project and the cache are.
    pub(crate) dirs: &'a Dirs,
    /// Where the logs go.
    pub(crate) logs: &'a Path,
    /// Where the user sees what takes long.
    pub(crate) progress: &'a Progress,
}

/// The outcome of a check.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Nothing to mend in what this names, as "12 scripts".
    Clean(String),
    /// Not checked, for this reason.
    Skipped(String),
    /// Lines that say what to mend, and where.
    Findings(Vec<String>),
}

impl Verdict {
    /// [`Verdict::Clean`] of `checked` if there are no `findings`.
    fn of(findings: Vec<String>, checked: String) -> Verdict {
        if findings.is_empty() { Verdict::Clean(checked) } else { Verdict::Findings(findings) }
    }
}

/// A check of the project's text.
pub(crate) struct Check {
    /// The name by which `cargo lab test` selects and counts it.
    pub(crate) name: &'static str,
    /// Runs it. An error means that it could not be run.
    pub(crate) run: fn(&Project) -> Result<Verdict>,
}

/// All of them.
pub(crate) const CHECKS: [Check; 7] = [
    Check { name: "lint/shellcheck", run: shellcheck::check },
    Check { name: "lint/codespell", run: codespell::check },
    Check { name: "lint/checkpatch", run: checkpatch::check },
    Check { name: "lint/licences", run: licences::check },
    Check { name: "lint/subjects", run: subjects::check },
    Check { name: "lint/columns", run: columns::check },
    Check { name: "lint/words", run: words::check },
];
