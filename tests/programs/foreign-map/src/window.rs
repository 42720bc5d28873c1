//! Mapped pages of another domain.

use std::ffi::c_void;
use std::ptr::NonNull;

use nix::errno::Errno;
use nix::sys::mman::{ProtFlags, munmap};

/// Size of a page in bytes.
pub const PAGE: u64 = 4096;

/// The access that a window allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Reading.
    Read,
    /// Reading and writing.
    ReadWrite,
}

impl Access {
    pub(crate) fn protection(self) -> ProtFlags {
        match self {
            Access::Read => ProtFlags::PROT_READ,
            Access::ReadWrite => ProtFlags::PROT_READ | ProtFlags::PROT_WRITE,
        }
    }
}

/// Consecutive pages of this process. Those are mapped that the hypervisor did not refuse.
#[derive(Debug)]
pub struct Window {
    pub(crate) address: NonNull<c_void>,
    pub(crate) access: Access,
    /// For each page 0 if it is mapped, else a negative error number.
    pub(crate) errors: Vec<i32>,
}

impl Window {
    /// The error for page `page`; `None` if it is mapped, or not in the window.
    pub fn refusal(&self, page: usize) -> Option<Errno> {
        let error = *self.errors.get(page)?;
        (error != 0).then(|| Errno::from_raw(-error))
    }

    /// Whether all of the `length` bytes at `offset` are mapped.
    pub fn has(&self, offset: u64, length: u64) -> bool {
        let pages = (offset / PAGE) as usize..(offset + length).div_ceil(PAGE) as usize;
        self.errors.get(pages).is_some_and(|errors| errors.iter().all(|&error| error == 0))
    }

    /// Writes `bytes` at `offset`; does nothing unless all of these pages are mapped writable.
    pub fn write(&self, offset: u64, bytes: &[u8]) {
        if self.access == Access::ReadWrite && self.has(offset, bytes.len() as u64) {
            for (at, byte) in (offset as usize..).zip(bytes) {
                // SAFETY: range and lifetime: `has` checked that all these bytes are mapped, and
                // `access` that they are writable, in the mapping that this value owns until its
                // drop. Alignment: bytes need none. Aliasing: others may use the memory at the same
                // time, so this writes single bytes, volatile, and makes no reference.
                unsafe { self.address.cast::<u8>().add(at).write_volatile(*byte) }
            }
        }
    }

    /// Reads into `bytes` from `offset`; does nothing unless all of these pages are mapped.
    pub fn read(&self, offset: u64, bytes: &mut [u8]) {
        if self.has(offset, bytes.len() as u64) {
            for (at, byte) in (offset as usize..).zip(bytes) {
                // SAFETY: as in `write`; every mapped page is readable.
                *byte = unsafe { self.address.cast::<u8>().add(at).read_volatile() };
            }
        }
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        // SAFETY: this is the range that mmap returned, and nothing refers to it any more. munmap
        // of a whole mapping does not fail.
        let _ = unsafe { munmap(self.address, self.errors.len() * PAGE as usize) };
    }
}
