//! virtio-msg over Xen: the definitions that both sides share.
//!
//! The driver side (the Linux module `virtio_msg_xen`) and the device side (the daemon
//! `xen-virtiod`) both use this crate. It holds nothing that only one of them needs:
//!
//! * [`message`]: the virtio-msg revision 1 messages and their encoding;
//! * [`page`]: the shared page that carries them, two single-producer single-consumer queues;
//! * [`grant`]: grant references, and the DMA addresses that encode them;
//! * [`pool`]: the shared pool, and DMA addresses in it;
//! * [`binding`]: XenStore keys, states and limits of the Xen bus binding;
//! * [`status`]: the device status byte, and the feature bits that the transport itself uses.
//!
//! `SPEC.md` beside `Cargo.toml` specifies the binding. `[n.m]` in a comment and `spec_n_m_…` in a
//! test name refer to clause n.m of it.
//!
//! The crate is `no_std` and has no dependency and no unsafe code. It does not panic on any input.
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
