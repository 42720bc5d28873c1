//! What a toolstack does with virtio devices while a guest runs, which `xl` refuses: it attaches
//! and detaches them, and lists them.
//!
//! It writes what libxl writes for the same device when it creates a guest: the directories of both
//! ends and libxl's own in XenStore, and libxl's record of the domain, from which a reboot, a save
//! and a migration make the guest's devices again. It runs in the domain that runs xl; the daemon
//! may run in another one. Nothing here is used by the daemon.

pub mod attach;
pub mod detach;
pub mod device;
pub mod domain_record;
pub mod guest;
pub mod list;
mod nodes;
pub mod reattach;
pub mod retarget;
pub mod vdev;
mod wait;
