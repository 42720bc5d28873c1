//! Safe wrappers of the ioctls of `/dev/net/tun` (Linux `include/uapi/linux/if_tun.h`). This
//! crate's only unsafe code.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use nix::libc::{self, c_int, c_short};

/// `struct ifreq`; these ioctls use its name and flags.
#[repr(C)]
pub(super) struct IfReq {
    name: [u8; libc::IFNAMSIZ],
    flags: c_short,
    padding: [u8; 22],
}

// The kernel copies the whole structure.
const _: () = assert!(size_of::<IfReq>() == size_of::<libc::ifreq>());

impl IfReq {
    /// Returns a request with `name`, truncated if it is too long, and `flags`.
    pub(super) fn new(name: &str, flags: c_int) -> Self {
        let mut request =
            Self { name: [0; libc::IFNAMSIZ], flags: flags as c_short, padding: [0; 22] };
        // The last byte stays zero.
        let bytes = request.name.iter_mut().take(libc::IFNAMSIZ - 1);
        bytes.zip(name.bytes()).for_each(|(to, from)| *to = from);
        request
    }
}

const INT: usize = size_of::<c_int>();
const TUNSETPERSIST: u64 = nix::request_code_write!(b'T', 203, INT);
const TUNSETOFFLOAD: u64 = nix::request_code_write!(b'T', 208, INT);
const TUNSETQUEUE: u64 = nix::request_code_write!(b'T', 217, INT);

/// The requests for an interface that is set up.
pub const IOCTLS: [u64; 3] = [TUNSETPERSIST, TUNSETOFFLOAD, TUNSETQUEUE];

mod raw {
    use super::{INT, IfReq, TUNSETOFFLOAD, TUNSETPERSIST, TUNSETQUEUE, c_int};

    nix::ioctl_readwrite_bad!(set_interface, nix::request_code_write!(b'T', 202, INT), IfReq);
    nix::ioctl_write_int_bad!(set_persistent, TUNSETPERSIST);
    nix::ioctl_write_int_bad!(set_offload, TUNSETOFFLOAD);
    nix::ioctl_write_ptr_bad!(set_header_size, nix::request_code_write!(b'T', 216, INT), c_int);
    nix::ioctl_write_ptr_bad!(set_queue, TUNSETQUEUE, IfReq);
    nix::ioctl_write_ptr_bad!(set_little_endian, nix::request_code_write!(b'T', 220, INT), c_int);
}

/// `TUNSETIFF`: makes the file a queue of an interface.
pub(super) fn set_interface(fd: BorrowedFd<'_>, mut request: IfReq) -> io::Result<()> {
    // SAFETY: the ioctl reads and writes one struct ifreq, which has the request's size. This
    // function owns the request, which lives past the call.
    unsafe { raw::set_interface(fd.as_raw_fd(), &mut request) }?;
    Ok(())
}

/// `TUNSETPERSIST`: has the interface outlive its last file, or not.
pub(super) fn set_persistent(fd: BorrowedFd<'_>, is_persistent: bool) -> io::Result<()> {
    // SAFETY: the argument is a number; the ioctl accesses no memory of this process.
    unsafe { raw::set_persistent(fd.as_raw_fd(), is_persistent.into()) }?;
    Ok(())
}

/// `TUNSETOFFLOAD`: sets the offloads, `TUN_F_…`, that the reader of packets handles.
pub(super) fn set_offload(fd: BorrowedFd<'_>, flags: c_int) -> io::Result<()> {
    // SAFETY: the argument is a number; the ioctl accesses no memory of this process.
    unsafe { raw::set_offload(fd.as_raw_fd(), flags) }?;
    Ok(())
}

/// `TUNSETVNETHDRSZ`: sets the size in bytes of the header before each packet.
pub(super) fn set_header_size(fd: BorrowedFd<'_>, size: c_int) -> io::Result<()> {
    // SAFETY: the ioctl reads one int, which lives past the call.
    unsafe { raw::set_header_size(fd.as_raw_fd(), &size) }?;
    Ok(())
}

/// `TUNSETQUEUE`: attaches or detaches a queue, by the request's flags.
pub(super) fn set_queue(fd: BorrowedFd<'_>, request: &IfReq) -> io::Result<()> {
    // SAFETY: the ioctl reads one struct ifreq, which has the request's size and lives past the
    // call.
    unsafe { raw::set_queue(fd.as_raw_fd(), request) }?;
    Ok(())
}

/// `TUNSETVNETLE`: makes the header little-endian on every host, as virtio 1 devices have it.
pub(super) fn set_little_endian(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: the ioctl reads one int, which lives past the call.
    unsafe { raw::set_little_endian(fd.as_raw_fd(), &1) }?;
    Ok(())
}
