//! What devices use of the host that is more than files: its network.
//!
//! [`network`] puts a guest's interface where it belongs. [`tap`] makes interfaces and moves packets,
//! [`links`] looks at them and sets them up, and [`name`] is what they are called.

mod links;
pub mod name;
pub mod network;
#[allow(unsafe_code, reason = "the door to TAP interfaces")]
mod tap;
