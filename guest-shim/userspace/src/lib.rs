//! The driver side of virtio-msg over Xen for a program of its own: no kernel module, no privilege.
//!
//! A process that may open `/dev/xen/gntalloc`, `/dev/xen/evtchn` and `/dev/xen/xenbus` drives a
//! device by the drivers of the crate `virtio-drivers`. All that the device can reach are the pages
//! that this process granted:
//!
//! * [`Frontend`] follows the states of SPEC section 2 and carries messages;
//! * [`XenTransport`] is the device as virtio-drivers sees it;
//! * [`GrantHal`] is where its queues and buffers lie: a pool of granted pages, into which buffers
//!   are copied and out of which answers are.
//!
//! ```no_run
//! use userspace::{Frontend, GrantHal, XenTransport};
//! use virtio_drivers::device::blk::VirtIOBlk;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let frontend = Frontend::open("device/virtio_disk/51712")?;
//! GrantHal::init(frontend.backend(), 64)?;
//! let mut disk = VirtIOBlk::<GrantHal, _>::new(XenTransport::new(frontend)?)?;
//! let mut sector = [0; 512];
//! disk.read_blocks(0, &mut sector)?;
//! # Ok(())
//! # }
//! ```
#![deny(unsafe_code)]

mod frontend;
#[allow(unsafe_code, reason = "virtio-drivers hands over pointers")]
mod grants;
mod messages;
mod pool;
mod transport;
mod wait;

pub use frontend::{Frontend, FrontendError};
pub use grants::GrantHal;
pub use messages::MessageError;
pub use transport::XenTransport;
