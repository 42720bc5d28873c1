//! Checks of the Debian packages: they build, lintian finds nothing, and a clean system can
//! install, upgrade and purge them.

use std::fs;

use anyhow::{Result, ensure};

use super::compilers::{Bench, Tried};
use crate::build::PackagesBuild;
use crate::debian::Suite;
use crate::host;
use crate::readme::InstallCommands;

/// A release for which packages are checked.
pub(super) struct Release {
    /// The name of the check.
    pub(super) name: &'static str,
    suite: Suite,
    /// Whether only `cargo lab soak` checks it.
    pub(super) soak: bool,
}

/// All releases.
pub(super) const RELEASES: [Release; 2] = [
    Release { name: "packages/trixie", suite: Suite::Trixie, soak: false },
    Release { name: "packages/bookworm", suite: Suite::Bookworm, soak: true },
];

impl Release {
    /// Builds and tries the packages. With `twice`, a second build must give the same bytes.
    pub(super) fn check(&self, bench: &Bench, twice: bool) -> Result<Tried> {
        let Bench { dirs, logs, progress } = *bench;
        host::ensure_tools(progress, &logs.join("install.log"))?;
        let build = PackagesBuild::prepare(self.suite, dirs, logs, progress)?;
        let packages = build.build(progress)?;
        build.lint()?;
        let commands = InstallCommands::read(&dirs.project)?.script(self.suite.name());
        fs::write(build.packages().join("commands"), commands)?;
        let try_them = format!("tests/packages/try {} /packages/commands", self.suite);
        if host::is_root() {
            build.try_in_system("try", &try_them, progress)?;
        }
        if twice {
            let first = packages.iter().map(fs::read).collect::<Result<Vec<_>, _>>()?;
            build.forget()?;
            for (package, bytes) in build.build(progress)?.iter().zip(first) {
                ensure!(fs::read(package)? == bytes, "two builds of {} differ", package.display());
            }
        }
        if !host::is_root() {
            return Ok(Tried::Not("only root can install packages in a clean system".to_owned()));
        }
        let again = if twice { ", twice the same bytes" } else { "" };
        Ok(Tried::By(format!("{} packages by {}{again}", packages.len(), build.compiler()?)))
    }
}
