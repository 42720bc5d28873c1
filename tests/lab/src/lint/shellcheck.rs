//! `shellcheck` over every shell script.

use anyhow::Result;

use super::script::{self, Shell};
use super::{Project, Verdict, tool};

/// Warnings and errors: what shellcheck files under style is a matter of taste.
const COMMAND: &str = "shellcheck --severity=warning --format=gcc";

/// Checks each script in its own language.
pub(super) fn check(project: &Project) -> Result<Verdict> {
    let scripts = script::all(&project.dirs.project)?;
    let mut found = Vec::new();
    for (shell, name) in [(Shell::Dash, "dash"), (Shell::Bash, "bash")] {
        let of_shell = scripts.iter().filter(|script| script.shell == shell);
        let files: Vec<_> = of_shell.map(|script| script.path.as_str()).collect();
        let command = format!("{COMMAND} --shell={name} -- \"$@\"");
        found.extend(tool::findings(project, "shellcheck", ".", &command, &files)?);
    }
    Ok(Verdict::of(found, format!("{} scripts", scripts.len())))
}
