//! The driver side of virtio-msg over Xen for a userspace program, without a kernel module and
//! without privilege.
//!
//! A process that may open `/dev/xen/gntalloc`, `/dev/xen/evtchn` and `/dev/xen/xenbus` drives a
//! device with the drivers of the crate `virtio-drivers`. The device can reach only the pages that
//! this process granted:
//!
//! * [`Frontend`] connects the device (SPEC section 2) and carries messages;
//! * [`XenTransport`] implements the transport of virtio-drivers for the device;
//! * [`GrantHal`] provides memory for queues and buffers: a pool of granted pages, into which it
//!   copies the driver's data and out of which it copies the device's data.
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
#[allow(unsafe_code, reason = "virtio-drivers passes pointers")]
mod grants;
mod messages;
mod pool;
mod transport;
mod wait;

pub use frontend::{Frontend, FrontendError};
pub use grants::GrantHal;
pub use messages::MessageError;
pub use transport::XenTransport;
