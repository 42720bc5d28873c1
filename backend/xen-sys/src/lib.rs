//! The raw ABI of Linux' `/dev/xen/{gntdev,gntalloc,evtchn,xenbus}`: structures, ioctls, status
//! codes. The crate `xen` has safe handles over it.
//!
//! Sources: Linux `include/uapi/xen/*.h`, Xen `public/grant_table.h` and `public/io/xs_wire.h`. The
//! layouts are the same on x86_64 and aarch64; tests check them.
//!
//! ```
//! use xen_sys::gntdev::IoctlGrantRef;
//!
//! // Two 32-bit numbers: the domain that granted the page, and the reference.
//! assert_eq!(size_of::<IoctlGrantRef>(), 8);
//! ```

pub mod evtchn;
pub mod gntalloc;
pub mod gntdev;
pub mod xs_wire;

/// An ioctl's number: Xen's devices encode type, number and size, but no direction.
const fn ioctl_number(group: u8, number: u8, size: usize) -> u64 {
    nix::request_code_none!(group, number) | (size as u64) << 16
}
