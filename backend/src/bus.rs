//! virtio-msg over Xen, the device side (`guest-shim/protocol/SPEC.md`).
//!
//! Data goes one way through this folder: [`session`] brings a connection up and waits for events;
//! [`channel`] turns the message page into messages; [`transport`] answers them and serves the
//! queues ([`virtqueue`]) of one device.

mod channel;
pub mod keys;
mod memory;
pub mod session;
mod state;
mod transport;
mod virtqueue;

pub use keys::{DevicePath, Keys};
