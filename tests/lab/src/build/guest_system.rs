//! Makes the disk of a guest that has Debian's whole system, with the package of the module.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::PackagesBuild;
use crate::command;
use crate::debian::Suite;
use crate::debian::inside::{Access, Inside};
use crate::dirs::Dirs;
use crate::fetch;
use crate::progress::Progress;
use crate::store;

/// The directory with the scripts for the system.
const SCRIPTS: &str = "lab/guest-system";

/// What the system can do with storage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StorageTools {
    /// It has its file system's tools.
    Few,
    /// It can make other file systems, volumes and initrds, and install another kernel.
    Many,
}

/// Returns the image of the disk, made if the packages or the scripts changed since the last time.
pub(crate) fn guest_system(
    tools: StorageTools,
    packages: &PackagesBuild,
    dirs: &Dirs,
    logs: &Path,
    progress: &Progress,
) -> Result<PathBuf> {
    let system = match tools {
        StorageTools::Few => fetch::system_root(Suite::LAB, &dirs.cache, logs, progress)?,
        StorageTools::Many => fetch::storage_root(Suite::LAB, &dirs.cache, logs, progress)?,
    };
    let out = dirs.lab.join("guest-system");
    fs::create_dir_all(&out).with_context(|| format!("cannot create {}", out.display()))?;
    let (image, stamp) = (out.join("system.img"), out.join("built-from"));
    let built_from = fs::read_to_string(packages.packages().join("built-from"))?;
    let mut parts = vec![system.path().display().to_string(), built_from];
    for name in ["set-up", "lab-guest", "lab-guest.service", "lab-move"] {
        parts.push(fs::read_to_string(dirs.tests().join(SCRIPTS).join(name))?);
    }
    let key = store::key(parts.iter().map(String::as_str));
    if image.exists() && fs::read_to_string(&stamp).is_ok_and(|made| made == key) {
        return Ok(image);
    }
    let step = progress.step("make a guest's disk with Debian's system");
    let mut shell = Inside::copy_of(&system)
        .mount(Access::Read, &dirs.project, "project")
        .mount(Access::Read, &packages.packages(), "packages")
        .mount(Access::Write, &out, "out")
        .shell("/project/tests/lab/guest-system/set-up");
    command::run(&mut shell, "making a guest's disk", &logs.join("guest-system.log"))?;
    fs::write(&stamp, key)?;
    step.done();
    Ok(image)
}
