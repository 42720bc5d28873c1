//! `cargo lab run SCRIPT [FILE…]`: runs a script of the user in Dom0.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::boot::{Event, MachineKind};
use crate::build::{Payload, StorageTools};
use crate::debian::Arch;
use crate::lab::Lab;
use crate::progress::Progress;

/// Runs the script with `files` beside it, and returns its exit status.
///
/// # Errors
/// A file does not exist, the machine fails, or the script runs longer than `limit`.
pub(crate) fn run(
    arch: Arch,
    kind: MachineKind,
    script: PathBuf,
    mut files: Vec<PathBuf>,
    limit: Duration,
) -> Result<i32> {
    let name = script
        .file_name()
        .and_then(|name| name.to_str())
        .with_context(|| format!("the path {} names no script", script.display()))?
        .to_owned();
    files.insert(0, script);
    for file in &files {
        ensure!(file.exists(), "the file {} does not exist", file.display());
    }
    let progress = Progress::new();
    let lab = Lab::prepare(arch, "run", &[], &progress)?;
    let guest_tools = StorageTools::Few;
    let payload = Payload { job: job(&name), files: &files, guest_tools };
    let machine = lab.boot(kind, &payload, false, &progress)?;
    match machine.next(&format!("the end of {name}"), limit)? {
        Event::Exit { status } => {
            machine.wait_off()?;
            Ok(status)
        }
        other => bail!("expected the end of {name}, but Dom0 reported {other:?}"),
    }
}

/// Returns a shell script that runs the file `name` of `/lab/files`, with the interpreter that its
/// first line names, or else with sh.
fn job(name: &str) -> String {
    let name = name.replace('\'', r"'\''");
    format!(
        "#!/bin/sh\n\
         exec 9>&-\n\
         read -r first <'{name}'\n\
         case $first in '#!'*) chmod +x '{name}'; exec './{name}' ;; esac\n\
         exec sh './{name}'\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn script_runs_with_and_without_an_interpreter_line() {
        let dir = tempfile::tempdir().unwrap();
        for script in ["#!/bin/bash\nexit 7\n", "exit 7\n"] {
            std::fs::write(dir.path().join("it's"), script).unwrap();
            let mut shell = Command::new("sh");
            shell.args(["-c", &job("it's")]).current_dir(dir.path());
            assert_eq!(shell.status().unwrap().code(), Some(7));
        }
    }
}
