//! Virtio devices for Xen guests, over memory that the guests granted.
//!
//! The daemon runs in Dom0 or in an unprivileged driver domain. Data flows one way through it:
//! [`daemon`] finds devices in XenStore, [`setup`] opens them, [`bus`] speaks virtio-msg with the
//! guest, [`device`] serves requests, and [`dma`] reaches the guest's pages through grants. [`tap`]
//! connects network devices to the host's network.
#![deny(unsafe_code)]

pub mod acceptor;
pub mod backoff;
pub mod bus;
pub mod config;
pub mod daemon;
pub mod device;
pub mod dma;
pub mod domain;
pub mod excerpt;
pub mod features;
pub mod guest;
pub mod guest_log;
pub mod listener;
pub mod setup;
pub mod stats;
pub mod tap;
pub mod timeout;

pub use xen::Causes;

#[cfg(test)]
mod tests;
