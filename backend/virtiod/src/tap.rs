//! What devices use of the host that is more than files: its network.
//!
//! [`network`] puts a guest's interface where it belongs. [`interface`] makes interfaces and moves packets,
//! [`netlink`] looks at them and sets them up, and [`name`] is what they are called.

#[allow(unsafe_code, reason = "ioctls of /dev/net/tun")]
mod interface;
pub mod name;
mod netlink;
pub mod network;
