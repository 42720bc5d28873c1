//! The programs: `xen-virtiod`, as a user would build it, and the scenarios' own.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use crate::command;
use crate::dirs::Dirs;
use crate::progress::Progress;

/// Named for what is linked statically, although it is the host's own: flags for it then spare
/// build scripts and macros, which cannot be static.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Programs that run in Dom0 only, or bring their libraries.
pub(crate) struct Dom0Programs {
    /// The daemon.
    pub(crate) xen_virtiod: PathBuf,
    /// A backend that looks through what it maps.
    pub(crate) snoop: PathBuf,
    /// A backend that reaches memory without grants.
    pub(crate) vm_memory_xen: PathBuf,
    /// What shows whose memory a card uses.
    pub(crate) planted_rings: PathBuf,
    /// Reads granted pages, in every way that there is.
    pub(crate) reach_pages: PathBuf,
    /// A backend that wears a guest's driver down.
    pub(crate) hostile_backend: PathBuf,
    /// A device that takes its time.
    pub(crate) slow_device: PathBuf,
}

/// Programs for guests, which have no libraries for them: linked statically.
pub(crate) struct GuestPrograms {
    /// What a scenario does inside a guest and no shell tool can do.
    pub(crate) probe: PathBuf,
    /// What maps a page without a grant.
    pub(crate) foreign_map: PathBuf,
    /// What drives a disk without a kernel module.
    pub(crate) user_driver: PathBuf,
    /// What has a disk reach memory that is not its own.
    pub(crate) hostile_driver: PathBuf,
}

/// Builds the programs for Dom0.
pub(crate) fn dom0(dirs: &Dirs, logs: &Path, progress: &Progress) -> Result<Dom0Programs> {
    let step = progress.step("build xen-virtiod and Dom0's other programs");
    // In one call, so that what all are made of is built once.
    let packages = [
        "xen-virtiod",
        "snoop",
        "vm-memory-xen",
        "planted-rings",
        "reach-pages",
        "hostile-backend",
        "slow-device",
    ];
    let built = cargo_build(dirs, logs, "dom0-programs", &packages, |_| {})?;
    step.done();
    let built = built.join("release");
    Ok(Dom0Programs {
        xen_virtiod: built.join("xen-virtiod"),
        snoop: built.join("snoop"),
        vm_memory_xen: built.join("vm-memory-xen"),
        planted_rings: built.join("planted-rings"),
        reach_pages: built.join("reach-pages"),
        hostile_backend: built.join("hostile-backend"),
        slow_device: built.join("slow-device"),
    })
}

/// Builds the programs for guests. Stripped: they are in the initrd of every guest that boots.
pub(crate) fn guest(dirs: &Dirs, logs: &Path, progress: &Progress) -> Result<GuestPrograms> {
    let step = progress.step("build the guests' programs");
    let packages = ["probe", "foreign-map", "user-driver", "hostile-driver"];
    let built = cargo_build(dirs, logs, "guest-programs", &packages, |cargo| {
        cargo
            .args(["--target", TARGET])
            .env("RUSTFLAGS", "-C target-feature=+crt-static -C strip=symbols");
    })?;
    step.done();
    let built = built.join(TARGET).join("release");
    Ok(GuestPrograms {
        probe: built.join("probe"),
        foreign_map: built.join("foreign-map"),
        user_driver: built.join("user-driver"),
        hostile_driver: built.join("hostile-driver"),
    })
}

/// Builds packages for release, with what `adjust` adds; gives the target directory. `what` names
/// the log.
fn cargo_build(
    dirs: &Dirs,
    logs: &Path,
    what: &str,
    packages: &[&str],
    adjust: impl FnOnce(&mut Command),
) -> Result<PathBuf> {
    let target = dirs.project.join("target");
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or("cargo".into()));
    cargo.args(["build", "--release", "--target-dir"]).arg(&target).current_dir(&dirs.project);
    for package in packages {
        cargo.args(["--package", package]);
    }
    adjust(&mut cargo);
    let log = logs.join(format!("build-{what}.log"));
    command::run(&mut cargo, &format!("building {what}"), &log)?;
    Ok(target)
}
