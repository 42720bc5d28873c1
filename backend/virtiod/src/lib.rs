//! Virtio devices for Xen guests, reached only through what they granted.
//!
//! The daemon runs in Dom0 or in an unprivileged driver domain. Data flows one way through it:
//! [`server`] finds devices in XenStore, [`toolstack`] opens them, [`bus`] speaks virtio-msg with the
//! guest, [`device`] serves requests, [`platform`] reaches the
//! guest's pages, by what it granted ([`grant`]), and only [`xen`] knows how. What a
//! device uses of the domain that it is served from, beside files, is [`host`]'s.
#![deny(unsafe_code)]

pub mod acceptor;
pub mod backoff;
pub mod budget;
pub mod bus;
pub mod config;
pub mod control;
pub mod device;
pub mod domain;
pub mod excerpt;
pub mod features;
pub mod grant;
pub mod guest;
pub mod guest_log;
pub mod host;
pub mod listener;
pub mod platform;
pub mod registry;
pub mod server;
pub mod sole;
pub mod stats;
pub mod timeout;
pub mod toolstack;

#[cfg(test)]
mod tests;
