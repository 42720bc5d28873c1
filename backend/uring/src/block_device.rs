//! Requests to a block device other than reads and writes.
//!
//! ABI: Linux `include/uapi/linux/fs.h`: each takes two u64, an offset and a length in bytes, which
//! must be multiples of the device's logical block size.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

const BLKDISCARD: u64 = nix::request_code_none!(0x12, 119);
const BLKZEROOUT: u64 = nix::request_code_none!(0x12, 127);

/// All requests of this module.
pub const IOCTLS: [u64; 2] = [BLKDISCARD, BLKZEROOUT];

mod ioctl {
    nix::ioctl_write_ptr_bad!(discard, super::BLKDISCARD, [u64; 2]);
    nix::ioctl_write_ptr_bad!(zero_out, super::BLKZEROOUT, [u64; 2]);
}

/// BLKDISCARD: releases the storage of a range. Later reads of the range return undefined data.
///
/// # Errors
/// The kernel's error. A device without discard returns EOPNOTSUPP for every range.
pub fn discard(device: BorrowedFd<'_>, offset: u64, length: u64) -> io::Result<()> {
    // SAFETY: the ioctl reads two u64, which live past the call.
    unsafe { ioctl::discard(device.as_raw_fd(), &[offset, length]) }?;
    Ok(())
}

/// BLKZEROOUT: makes a range read as zeros and keeps its storage. If the device has no such
/// command, the kernel writes zeros.
///
/// # Errors
/// The kernel's error.
pub fn zero_out(device: BorrowedFd<'_>, offset: u64, length: u64) -> io::Result<()> {
    // SAFETY: the ioctl reads two u64, which live past the call.
    unsafe { ioctl::zero_out(device.as_raw_fd(), &[offset, length]) }?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn regular_file_is_refused() {
        let file = tempfile::tempfile().unwrap();
        for request in [discard, zero_out] {
            let error = request(file.as_fd(), 0, 512).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::ENOTTY));
        }
    }
}
