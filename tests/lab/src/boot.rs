//! Boots Xen and Dom0 in QEMU, and reads the events that Dom0 reports.

mod accel;
mod event;
mod hardware;
mod machine;
mod port;

use crate::debian::Arch;

pub(crate) use event::Event;
pub(crate) use hardware::{Init, MachineKind};
pub(crate) use machine::{Machine, Setup, Terminal};

/// Returns one line that says whether QEMU uses KVM or emulation for machines of `arch`, and why.
pub(crate) fn accel_line(arch: Arch) -> &'static str {
    match arch {
        Arch::X86_64 => accel::Accel::detect().1,
        Arch::Aarch64 => "QEMU emulates a processor of Arm's (TCG)",
    }
}
