//! The project's shell scripts.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use anyhow::{Context, Result};

use super::files;

/// The longest first line that is read.
const FIRST_LINE: u64 = 128;

/// The language of a script.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shell {
    /// Debian's /bin/sh. BusyBox's knows all that dash does.
    Dash,
    /// Bash.
    Bash,
}

/// A shell script.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Script {
    /// Its path in the project.
    pub(super) path: String,
    /// Its language.
    pub(super) shell: Shell,
}

/// All scripts of the project: by their first line or, where something else runs them, by `.sh`.
pub(super) fn all(project: &Path) -> Result<Vec<Script>> {
    let mut scripts = Vec::new();
    for path in files::all(project)? {
        let first = first_line(&project.join(&path))?;
        if let Some(shell) = shell_of(&path, &first) {
            scripts.push(Script { path, shell });
        }
    }
    Ok(scripts)
}

fn first_line(path: &Path) -> Result<String> {
    let unreadable = || format!("cannot read {}", path.display());
    let file = File::open(path).with_context(unreadable)?;
    let mut line = Vec::new();
    let mut start = BufReader::new(file.take(FIRST_LINE));
    start.read_until(b'\n', &mut line).with_context(unreadable)?;
    Ok(String::from_utf8_lossy(&line).into_owned())
}

fn shell_of(path: &str, first_line: &str) -> Option<Shell> {
    let Some(interpreter) = first_line.strip_prefix("#!") else {
        return path.ends_with(".sh").then_some(Shell::Dash);
    };
    let mut programs = interpreter.split_whitespace().map(|word| word.rsplit('/').next());
    let program = programs.next()??;
    match if program == "env" { programs.next()?? } else { program } {
        "sh" | "dash" => Some(Shell::Dash),
        "bash" => Some(Shell::Bash),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_is_known_by_its_first_line_or_its_name() {
        for (path, first_line, shell) in [
            ("run", "#!/usr/bin/env bash\n", Some(Shell::Bash)),
            ("init", "#!/bin/sh\n", Some(Shell::Dash)),
            ("init", "#! /bin/sh -e\n", Some(Shell::Dash)),
            ("dom0.sh", ". /lab/dom0/lib.sh\n", Some(Shell::Dash)),
            ("dom0.sh", "#!/bin/bash\n", Some(Shell::Bash)),
            ("tool.py", "#!/usr/bin/env python3\n", None),
            ("main.rs", "#![no_std]\n", None),
            ("empty", "#!\n", None),
            ("empty", "", None),
        ] {
            assert_eq!(shell_of(path, first_line), shell, "{path}: {first_line}");
        }
    }
}
