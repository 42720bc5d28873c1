//! `cargo lab packages`: builds the Debian packages.

use anyhow::Result;

use crate::build::PackagesBuild;
use crate::debian::Suite;
use crate::dirs::Dirs;
use crate::host;
use crate::lab;
use crate::progress::Progress;

/// Builds the packages for `suite`, and prints their paths.
pub(crate) fn packages(suite: Suite) -> Result<i32> {
    let progress = Progress::new();
    let dirs = Dirs::find()?;
    let _lock = lab::lock(&dirs, &progress)?;
    let logs = dirs.fresh_logs("packages")?;
    host::ensure_tools(&progress, &logs.join("install.log"))?;
    let build = PackagesBuild::prepare(suite, &dirs, &logs, &progress)?;
    for package in build.build(&progress)? {
        let shown = package.strip_prefix(&dirs.project).unwrap_or(&package);
        println!("{}", shown.display());
    }
    Ok(0)
}
