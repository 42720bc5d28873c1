//! The host's network.
//!
//! [`network`] attaches a guest's interface to a bridge, in its [`vlan`]s. [`interface`] creates
//! TAP interfaces and moves packets, [`netlink`] reads and changes interfaces, [`name`] checks
//! their names, and [`script`] those of the administrator's scripts that attach them.

mod interface;
#[allow(unsafe_code, reason = "ioctls that no library has")]
mod ioctl;
pub mod name;
mod netlink;
pub mod network;
pub mod script;
pub mod vlan;

pub use self::ioctl::IOCTLS;
