//! virtio-msg over Xen, the device side (`guest-shim/protocol/SPEC.md`).
//!
//! Data flows one way through this folder: [`session`] follows the states in XenStore and waits for
//! events; [`connection`] handles them while a frontend is connected; [`channel`] decodes messages
//! from the message page; [`transport`] answers them. [`queue_group`] carries out the steps of the
//! [`scheduler`] for queues ([`virtqueue`]) that one thread processes; [`queue_groups`] has all of
//! a device, and [`group_thread`] the threads besides the device's own. [`keeper`] writes down what
//! another process needs to go on.

mod channel;
mod connection;
mod doorbells;
mod group_thread;
mod keeper;
pub mod keys;
mod pending_states;
mod queue_group;
mod queue_groups;
pub mod reconnection;
pub mod scheduler;
pub mod session;
mod state;
mod stop;
pub mod transport;
mod virtqueue;

pub use keys::{DevicePath, Keys, Watches};
pub use state::Toolstack;
pub use stop::{Ending, StopSignal};
