//! virtio-msg over Xen, as both sides speak it.
//!
//! This crate holds what the driver side (the Linux module `virtio_msg_xen`) and the device side
//! (the daemon `xen-virtiod`) must agree on, and nothing that only one of them knows:
//!
//! * [`message`]: the virtio-msg revision 1 messages and their encoding;
//! * [`page`]: the shared page that carries them, two single-producer single-consumer queues;
//! * [`grant`]: grant references and the DMA addresses made of them;
//! * [`pool`]: the shared pool, and DMA addresses in it;
//! * [`binding`]: XenStore keys, states and limits of the Xen bus binding;
//! * [`status`]: the device status byte and the feature bits the transport itself cares about.
//!
//! `SPEC.md` beside `Cargo.toml` is the written form of the binding. `[n.m]` in a comment or a test
//! name (`spec_n_m_…`) is a clause of it.
//!
//! The crate is `no_std`, has no dependency and no unsafe code. Nothing in it panics on any input.
//!
//! ```
//! use protocol::message::{Message, Request};
//!
//! let mut bytes = [0; 264];
//! let size = Message::request(7, Request::GetDeviceStatus).encode(&mut bytes)?;
//! assert_eq!(&bytes[..size], &[0, 0x07, 0, 0, 7, 0, 8, 0]);
//! assert_eq!(Message::decode(&bytes[..size])?, Message::request(7, Request::GetDeviceStatus));
//! # Ok::<(), protocol::message::MessageError>(())
//! ```
#![no_std]
#![forbid(unsafe_code)]

use core::sync::atomic;

pub mod binding;
pub mod grant;
pub mod message;
pub mod page;
pub mod pool;
pub mod status;
mod wire;
