//! virtio-msg over Xen, the device side (`guest-shim/protocol/SPEC.md`).
//!
//! Data goes one way through this folder: [`session`] follows the states in XenStore and waits for
//! events; [`connection`] deals with them while there is one; [`channel`] turns the message page into
//! messages; [`transport`] answers them and serves the queues ([`virtqueue`]) of one device.

mod announcement;
mod brake;
mod channel;
mod connection;
mod deadline;
pub mod keys;
mod looks;
mod pace;
mod patience;
pub mod reconnection;
pub mod session;
mod state;
mod transport;
mod virtqueue;

pub use keys::{DevicePath, Keys, Watches};
pub use state::Toolstack;
