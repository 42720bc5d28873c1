//! The daemon: finds devices in XenStore, has a process for each guest serve them, and reports
//! their state.
//!
//! [`server`] starts and ends devices; [`registry`] lists them, and [`control`] reports them to
//! clients; [`daemon_lock`] prevents a second daemon.

pub mod control;
pub mod daemon_lock;
pub mod descriptor_store;
mod device_service;
pub mod guest_processes;
mod image_service;
mod interface_script;
mod interface_service;
mod kept;
pub mod launch;
mod own_keys;
mod process_log;
pub mod registry;
pub mod reload;
pub mod runner;
mod same_address;
mod scripts;
pub mod server;
pub mod signals;
mod size_watches;
mod socket_service;
mod terminal_service;
mod user_range;
