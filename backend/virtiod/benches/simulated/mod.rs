//! A disk over the simulated hypervisor, and the driver of a guest, in one thread.

pub(crate) mod disk;
pub(crate) mod guest;
pub(crate) mod mark;
