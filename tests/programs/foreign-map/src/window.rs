//! Mapped pages of another domain.

use std::ffi::c_void;
use std::ptr::NonNull;

use nix::errno::Errno;
use nix::sys::mman::{ProtFlags, munmap};

/// Bytes of a page.
pub const PAGE: u64 = 4096;

/// What may be done with a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// It may be read.
    Read,
    /// It may be read and written.
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

/// Pages one after another, of which those that the hypervisor did not refuse are mapped.
#[derive(Debug)]
pub struct Window {
    pub(crate) address: NonNull<c_void>,
    pub(crate) access: Access,
    /// One for each page; 0 if it is mapped, else a negative error number.
    pub(crate) errors: Vec<i32>,
}

impl Window {
    /// Why page `page` is not mapped, if so.
    pub fn refusal(&self, page: usize) -> Option<Errno> {
        let error = *self.errors.get(page)?;
        (error != 0).then(|| Errno::from_raw(-error))
    }

    /// Whether all of the `length` bytes at `offset` are mapped.
    pub fn has(&self, offset: u64, length: u64) -> bool {
        let pages = (offset / PAGE) as usize..(offset + length).div_ceil(PAGE) as usize;
        self.errors.get(pages).is_some_and(|errors| errors.iter().all(|&error| error == 0))
    }

    /// Writes to pages that are mapped to be written; nothing otherwise.
    pub fn write(&self, offset: u64, bytes: &[u8]) {
        if self.access == Access::ReadWrite && self.has(offset, bytes.len() as u64) {
            for (at, byte) in (offset as usize..).zip(bytes) {
                // SAFETY: range: `has` says that all these bytes are mapped, and `access` that they
                // may be written, in the mapping that is this value's until it is dropped.
                // Aliasing: others may use the memory at the same time, so bytes are written one by
                // one, volatile, and no reference is made.
                unsafe { self.address.cast::<u8>().add(at).write_volatile(*byte) }
            }
        }
    }

    /// Reads pages that are mapped; nothing otherwise.
    pub fn read(&self, offset: u64, bytes: &mut [u8]) {
        if self.has(offset, bytes.len() as u64) {
            for (at, byte) in (offset as usize..).zip(bytes) {
                // SAFETY: as for writing.
                *byte = unsafe { self.address.cast::<u8>().add(at).read_volatile() };
            }
        }
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        // SAFETY: the range that mmap gave; nothing refers to it any more. That cannot fail.
        let _ = unsafe { munmap(self.address, self.errors.len() * PAGE as usize) };
    }
}
