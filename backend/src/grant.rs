//! How granted pages are reached.
//!
//! [`GrantMemory`] is the device's whole view of the guest: an address is a grant or it is nothing.
//! This folder knows grants and mappings; it knows no virtqueue and no device.

mod fault;
mod memory;
#[cfg(test)]
mod tests;

pub use fault::GrantFault;
pub use memory::{GrantMemory, PinId, Reach};
