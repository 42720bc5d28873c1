//! The daemon: finds devices in XenStore, runs a thread for each, and reports their state.
//!
//! [`server`] starts and ends devices; [`registry`] lists them, and [`control`] reports them to
//! clients; [`daemon_lock`] prevents a second daemon.

pub mod control;
pub mod daemon_lock;
pub mod registry;
mod same_address;
pub mod server;
pub mod signals;
pub mod size_watches;
