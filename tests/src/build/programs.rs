//! The programs for Dom0: `xen-virtiod`, as a user would build it, and the peers that scenarios put
//! in its place.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use crate::command;
use crate::dirs::Dirs;
use crate::progress::Progress;

/// Packages, and the program that each is built to.
const PROGRAMS: &[(&str, &str)] = &[("backend", "xen-virtiod"), ("snoop", "snoop")];

/// Builds the programs; gives their paths.
pub(crate) fn build(dirs: &Dirs, logs: &Path, progress: &Progress) -> Result<Vec<PathBuf>> {
    PROGRAMS
        .iter()
        .map(|(package, program)| build_one(dirs, package, program, logs, progress))
        .collect()
}

fn build_one(
    dirs: &Dirs,
    package: &str,
    program: &str,
    logs: &Path,
    progress: &Progress,
) -> Result<PathBuf> {
    let step = progress.step(&format!("build {program}"));
    let target = dirs.project.join("target");
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or("cargo".into()));
    cargo
        .args(["build", "--release", "--package", package])
        .arg("--target-dir")
        .arg(&target)
        .current_dir(&dirs.project);
    let log = logs.join(format!("build-{program}.log"));
    command::run(&mut cargo, &format!("building {program}"), &log)?;
    step.done();
    Ok(target.join("release").join(program))
}
