//! Driver side of virtio-msg over Xen: the decisions and parsers of the Linux module
//! `virtio_msg_xen`.
//!
//! * [`dma`]: which pages of a buffer to grant, with which access, and the resulting DMA address;
//! * [`bounce`]: which parts of a buffer to copy to a page of their own, and for which backends;
//! * [`pool`]: allocation of buffers in pages that the driver shares with the device once;
//! * [`ring`]: which pages of a queue's ring the device may write;
//! * [`transport`]: requests to the device, matching of its responses, its events;
//! * [`interrupt`]: how many messages to handle at a time, and which interrupts were spurious;
//! * [`config`]: whether the configuration changes too often to be read;
//! * [`state`]: the action of the frontend for each pair of xenbus states;
//! * [`removal`]: whether a device can be removed from its driver;
//! * [`restore`]: whether a driver can go on with the device that it finds after a restore;
//! * [`unfinished`]: which requests a device in another domain must do again;
//! * [`waiting`]: how long to wait for a response.
//!
//! The core depends on neither a kernel nor a hypervisor: it works on a shared page that the caller
//! passes in, and returns decisions. The module's C glue carries them out; it calls `ffi`, the only
//! module with unsafe code. Nothing here panics on any input; the module's build checks that in the
//! linked object.
//!
//! `[n.m]` in a comment and `spec_n_m_…` in a test name refer to clause n.m of `protocol/SPEC.md`.
//!
//! A request and the device's answer:
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
pub mod restore;
pub mod ring;
pub mod state;
pub mod transport;
pub mod unfinished;
pub mod waiting;
