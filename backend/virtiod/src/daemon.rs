//! The daemon: finds devices in XenStore, gives each a thread, and says how they are.
//!
//! [`server`] looks after devices from start to end; [`registry`] counts them, and [`control`]
//! tells whoever asks; [`sole`] keeps a second daemon away.

pub mod control;
pub mod registry;
mod same_address;
pub mod server;
pub mod sole;
