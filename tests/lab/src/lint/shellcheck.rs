//! `shellcheck` over every shell script, and one check of its own.

use std::fs;

use anyhow::{Context, Result};

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
    for script in &scripts {
        let path = project.dirs.project.join(&script.path);
        let text =
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        found.extend(void_negations(&text).map(|line| {
            let path = &script.path;
            format!(
                "{path}:{line}: a command with ! ends no script: append || exit 1, or a message"
            )
        }));
    }
    Ok(Verdict::of(found, format!("{} scripts", scripts.len())))
}

/// The lines, from 1, of commands with `!` whose status nobody looks at: `set -e` ignores them.
fn void_negations(text: &str) -> impl Iterator<Item = usize> + '_ {
    let is_void = |line: &str| {
        let goes_on = ["||", "&&", "\\"].iter().any(|sign| line.contains(sign));
        line.trim_start().starts_with("! ") && !goes_on
    };
    text.lines().enumerate().filter(move |(_, line)| is_void(line)).map(|(index, _)| index + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn negation_needs_someone_who_looks_at_it() {
        let text =
            "! grep -q x y\n  ! a | b\n! a || exit 1\n! a |\\\n b || exit 1\nif ! a; then b; fi\n";
        assert_eq!(void_negations(text).collect::<Vec<_>>(), [1, 2]);
    }
}
