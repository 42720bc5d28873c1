//! Runs a linter of the fetched root over files of the project.

use std::fs;
use std::process::Output;

use anyhow::{Context, Result, bail};

use super::Project;
use crate::debian::inside::{Access, Inside};
use crate::fetch;
use crate::host;

/// Runs `script`, of which the arguments are `files`, in the project's directory `directory`. Gives
/// the lines that the linter printed if it ended with a status that is not 0: those are what it
/// found.
pub(super) fn findings(
    project: &Project,
    name: &str,
    directory: &str,
    script: &str,
    files: &[&str],
) -> Result<Vec<String>> {
    let Project { dirs, logs, progress } = project;
    host::ensure_tools(progress, &logs.join("install.log"))?;
    let root = fetch::lint_root(&dirs.cache, logs, progress)?;
    let mut linter = Inside::new(&root)
        .mount(Access::Read, &dirs.project, "project")
        .shell(&format!("cd '/project/{directory}'\n{script}"));
    let output = linter.arg(name).args(files).output().context("cannot start unshare")?;
    fs::write(logs.join(format!("lint-{name}.log")), &output.stdout)?;
    found(&output)
}

fn found(output: &Output) -> Result<Vec<String>> {
    if output.status.success() {
        return Ok(Vec::new());
    }
    let lines: Vec<_> =
        String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect();
    if lines.is_empty() {
        bail!("{}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(lines)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    fn shell(script: &str) -> Output {
        Command::new("sh").args(["-c", script]).output().unwrap()
    }

    #[test]
    fn the_lines_of_a_linter_that_fails_are_findings() {
        assert_eq!(found(&shell("echo a; echo b; exit 65")).unwrap(), ["a", "b"]);
        assert!(found(&shell("echo '12 lines checked'")).unwrap().is_empty());
    }

    #[test]
    fn a_linter_that_fails_without_a_finding_could_not_run() {
        let error = found(&shell("echo 'no such file' >&2; exit 2")).unwrap_err().to_string();
        assert!(error.contains("no such file"), "{error}");
    }
}
