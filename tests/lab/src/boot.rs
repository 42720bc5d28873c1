//! Boots Xen and Dom0 in QEMU, and follows what Dom0 says.

mod accel;
mod event;
mod hardware;
mod machine;
mod port;

pub(crate) use event::Event;
pub(crate) use hardware::{Init, MachineKind};
pub(crate) use machine::{Machine, Setup, Terminal};

/// One line that says how QEMU runs the machine, and why.
pub(crate) fn accel_line() -> &'static str {
    accel::Accel::detect().1
}
