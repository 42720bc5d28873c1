//! The process of one guest: it serves the guest's devices, and the supervisor (the daemon)
//! starts it, replaces it when it dies, and has what it needs of the host.
//!
//! Each device has a thread ([`device_thread`]) and a socket to the supervisor ([`link`]), through
//! which it reaches its own keys in XenStore ([`store`]). [`message`] has what both sides send, and
//! [`main_loop`] is the process itself. Without a supervisor, as in tests, the same threads run in
//! the daemon's own process.

pub mod confinement;
pub mod device_thread;
pub mod images;
pub mod link;
pub mod main_loop;
pub mod message;
pub mod message_socket;
pub mod network;
pub mod records;
pub mod sizes;
pub mod sockets;
pub mod store;
pub mod terminals;
