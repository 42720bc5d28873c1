//! Builds `xen-virtiod`, as a user does, and the helper programs of scenarios.

use std::path::PathBuf;

use anyhow::Result;

use super::compiler::{Compiler, Linking};
use crate::progress::Progress;

/// Programs that run in Dom0, or in a driver domain whose initrd has their libraries.
pub(crate) struct Dom0Programs {
    /// The daemon.
    pub(crate) xen_virtiod: PathBuf,
    /// A backend that searches all memory that it maps.
    pub(crate) snoop: PathBuf,
    /// A backend that accesses memory without grants.
    pub(crate) vm_memory_xen: PathBuf,
    /// Writes virtqueues into a domain's memory, and reports which of them a card has used.
    pub(crate) planted_rings: PathBuf,
    /// Reads granted pages by each method of access.
    pub(crate) reach_pages: PathBuf,
    /// A backend that tries to keep a guest's driver busy.
    pub(crate) hostile_backend: PathBuf,
    /// `xen-virtiod` whose processes of guests try to leave their confinement.
    pub(crate) exploit: PathBuf,
    /// A device that completes resets late, and reports a failed start by its status alone.
    pub(crate) slow_device: PathBuf,
}

/// Programs for guests, statically linked, because guests lack the libraries.
pub(crate) struct GuestPrograms {
    /// Actions of scenarios inside a guest that no shell tool supports.
    pub(crate) probe: PathBuf,
    /// Maps a page without a grant.
    pub(crate) foreign_map: PathBuf,
    /// Drives a disk without a kernel module.
    pub(crate) user_driver: PathBuf,
    /// Makes a disk access memory that the driver does not own.
    pub(crate) hostile_driver: PathBuf,
}

/// Builds the programs for Dom0.
pub(crate) fn dom0(compiler: &Compiler<'_>, progress: &Progress) -> Result<Dom0Programs> {
    let step = progress.step("build xen-virtiod and Dom0's other programs");
    // One call of cargo builds common dependencies once.
    let packages = [
        "xen-virtiod",
        "snoop",
        "vm-memory-xen",
        "planted-rings",
        "reach-pages",
        "hostile-backend",
        "slow-device",
        "exploit",
    ];
    let built = compiler.build("dom0-programs", &packages, Linking::Dynamic)?;
    step.done();
    Ok(Dom0Programs {
        xen_virtiod: built.join("xen-virtiod"),
        snoop: built.join("snoop"),
        vm_memory_xen: built.join("vm-memory-xen"),
        planted_rings: built.join("planted-rings"),
        reach_pages: built.join("reach-pages"),
        hostile_backend: built.join("hostile-backend"),
        slow_device: built.join("slow-device"),
        exploit: built.join("exploit"),
    })
}

/// Builds the programs for guests, stripped, because every guest's initrd contains them.
pub(crate) fn guest(compiler: &Compiler<'_>, progress: &Progress) -> Result<GuestPrograms> {
    let step = progress.step("build the guests' programs");
    let packages = ["guest-probe", "foreign-map", "user-driver", "hostile-driver"];
    let built = compiler.build("guest-programs", &packages, Linking::Static)?;
    step.done();
    Ok(GuestPrograms {
        probe: built.join("probe"),
        foreign_map: built.join("foreign-map"),
        user_driver: built.join("user-driver"),
        hostile_driver: built.join("hostile-driver"),
    })
}
