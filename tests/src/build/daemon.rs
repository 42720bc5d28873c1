//! `xen-virtiod`, as a user would build it.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use crate::command;
use crate::dirs::Dirs;
use crate::progress::Progress;

/// Builds the daemon; gives the program's path.
pub(crate) fn build(dirs: &Dirs, logs: &Path, progress: &Progress) -> Result<PathBuf> {
    let step = progress.step("build xen-virtiod");
    let target = dirs.project.join("target");
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or("cargo".into()));
    cargo
        .args(["build", "--release", "--package", "backend"])
        .arg("--target-dir")
        .arg(&target)
        .current_dir(&dirs.project);
    let log = logs.join("build-xen-virtiod.log");
    command::run(&mut cargo, "building xen-virtiod", &log)?;
    step.done();
    Ok(target.join("release/xen-virtiod"))
}
