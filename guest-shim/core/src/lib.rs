//! Driver side of virtio-msg over Xen: what the Linux module `virtio_msg_xen` decides and parses.
//!
//! * [`dma`]: which pages of a buffer to grant, how, and the DMA address that comes of it;
//! * [`bounce`]: what of a buffer is copied to a page of its own instead, and for which backends;
//! * [`pool`]: which buffers go by way of pages that are shared once, and which of these are taken;
//! * [`ring`]: which pages of a queue's ring the device may write;
//! * [`transport`]: requests to the device, matching of its responses, its events;
//! * [`interrupt`]: how long the channel of messages is served at a time, and what came for
//!   nothing;
//! * [`config`]: whether a configuration that changes can be read at all;
//! * [`state`]: what the frontend does in which xenbus states;
//! * [`removal`]: whether a device can be taken from its driver.
//!
//! The core sees neither a kernel nor a hypervisor: it works on a shared page that is passed in and
//! says what is to be done. The module's C glue does it, through `ffi`, the only
//! module with unsafe code. Nothing here panics on any input, which the module's build checks in
//! the linked object.
//!
//! `[n.m]` in a comment or a test name (`spec_n_m_…`) is a clause of `protocol/SPEC.md`.
//!
//! A request, the device's answer, and what the driver makes of it:
//!
//! ```
//! use core::sync::atomic::AtomicU32;
//! use guest_shim::transport::{Received, Transport};
//! use protocol::binding::negotiate;
//! use protocol::message::{Message, Request, Response};
//! use protocol::page::{Consumer, PageWords, Producer, QueueDirection, SLOT_SIZE};
//!
//! let page: PageWords = core::array::from_fn(|_| AtomicU32::new(0));
//! let mut transport = Transport::new(negotiate(1, 264, 0).unwrap());
//! transport.send(&page, Request::GetDeviceStatus).unwrap();
//!
//! // The device's side: take the request out of the page, put the answer in.
//! let mut bytes = [0; SLOT_SIZE];
//! Consumer::new(QueueDirection::DriverToDevice).pop(&page, 264, &mut bytes).unwrap();
//! let token = Message::decode(&bytes[..8]).unwrap().token;
//! let size = Message::response(token, Response::GetDeviceStatus(3)).encode(&mut bytes).unwrap();
//! Producer::new(QueueDirection::DeviceToDriver).push(&page, &bytes[..size]).unwrap();
//!
//! assert_eq!(transport.receive(&page), Received::Answer);
//! assert_eq!(transport.take_answer(), Some(Ok(Response::GetDeviceStatus(3))));
//! ```
#![no_std]
#![deny(unsafe_code)]

pub mod bounce;
pub mod config;
pub mod dma;
#[allow(unsafe_code)]
mod ffi;
pub mod interrupt;
pub mod pool;
pub mod removal;
pub mod ring;
pub mod state;
pub mod transport;
