//! Virtio devices for Xen guests, over memory that the guests granted.
//!
//! The daemon runs in Dom0 or in an unprivileged driver domain. Data flows one way through it:
//! [`daemon`] finds devices in XenStore, [`setup`] opens them, [`bus`] speaks virtio-msg with the
//! guest, [`device`] serves requests, and [`dma`] reaches the guest's pages through grants. [`tap`]
//! connects network devices to the host's network. [`record`] has what another process needs to
//! go on with a device.
//!
//! [`dma::DmaMemory`] is the boundary: it resolves an address of the driver to granted pages, or to
//! an error.
//!
//! ```
//! use std::sync::Arc;
//!
//! use protocol::grant::GrantAddress;
//! use vm_memory::{Bytes, GuestAddress};
//! use xen::{Access, DomId, Xen};
//! use xen_sim::Hypervisor;
//! use xen_virtiod::dma::DmaMemory;
//! use xen_virtiod::dma::budget::{DaemonBudget, GuestBudget};
//! use xen_virtiod::dma::grants::GrantPlatform;
//! use xen_virtiod::stats::DeviceStats;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let hypervisor = Hypervisor::default();
//! let mut guest = hypervisor.guest(1, 16);
//! let page = guest.allocate();
//! let reference = guest.grant(&[page], Access::ReadOnly);
//!
//! let platform = GrantPlatform::new(hypervisor.grants(DomId(1))?);
//! let budget = Arc::new(GuestBudget::new(Arc::new(DaemonBudget::of_this_process())));
//! let memory = DmaMemory::new(platform, Arc::new(DeviceStats::default()), budget);
//!
//! // A granted page is an address with bit 63 set. It can be read, since the guest granted it so.
//! let granted = GuestAddress(GrantAddress::page(reference).encode());
//! let mut bytes = [0; 512];
//! memory.read_slice(&mut bytes, granted)?;
//! assert!(memory.write_slice(&bytes, granted).is_err(), "the grant is read-only");
//!
//! // A raw guest address is refused.
//! assert!(memory.read_slice(&mut bytes, GuestAddress(0x1000)).is_err());
//! # Ok(())
//! # }
//! ```
#![deny(unsafe_code)]

pub mod acceptor;
pub mod backoff;
pub mod bus;
pub mod config;
pub mod daemon;
pub mod device;
pub mod dma;
pub mod doctor;
pub mod domain;
pub mod excerpt;
pub mod features;
pub mod guest;
pub mod guest_log;
pub mod hot_plug;
pub mod listener;
pub mod process;
pub mod record;
pub mod setup;
pub mod stats;
pub mod tap;
pub mod wakeup;

pub use xen::Causes;

#[cfg(test)]
mod tests;
