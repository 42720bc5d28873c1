//! Boots Xen and Dom0 in QEMU, and reads the events that Dom0 reports.

mod accel;
mod event;
mod hardware;
mod machine;
mod port;

pub(crate) use event::Event;
pub(crate) use hardware::{Init, MachineKind};
pub(crate) use machine::{Machine, Setup, Terminal};

/// Returns one line that says whether QEMU uses KVM or emulation, and why.
pub(crate) fn accel_line() -> &'static str {
    accel::Accel::detect().1
}
