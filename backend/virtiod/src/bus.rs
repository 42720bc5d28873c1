//! virtio-msg over Xen, the device side (`guest-shim/protocol/SPEC.md`).
//!
//! Data flows one way through this folder: [`session`] follows the states in XenStore and waits for
//! events; [`connection`] handles them while a frontend is connected; [`channel`] decodes messages
//! from the message page; [`transport`] answers them, and carries out the steps of the
//! [`scheduler`] for the queues ([`virtqueue`]) of one device.

mod channel;
mod connection;
pub mod keys;
mod pending_states;
pub mod reconnection;
pub mod scheduler;
pub mod session;
mod state;
pub mod transport;
mod virtqueue;

pub use keys::{DevicePath, Keys, Watches};
pub use state::Toolstack;
