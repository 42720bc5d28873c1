//! What devices use of the host that is more than files: its network.
//!
//! [`network`] puts a guest's interface where it belongs. [`interface`] makes interfaces and moves
//! packets, [`netlink`] looks at them and sets them up, and [`name`] is what they are called.

mod interface;
#[allow(unsafe_code, reason = "system calls that no library has")]
mod ioctl;
pub mod name;
mod netlink;
pub mod network;
