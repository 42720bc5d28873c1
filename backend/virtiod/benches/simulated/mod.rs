//! A device over the simulated hypervisor, and the driver of a guest, in one thread.

pub(crate) mod device;
pub(crate) mod guest;
pub(crate) mod mark;
