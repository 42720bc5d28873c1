//! `/dev/xen/gntalloc`: allocates pages and grants them to another domain.
//!
//! The kernel chooses the pages and their references. The process maps a page by its offset in the
//! device.

use std::fs::File;
use std::io;
use std::mem::offset_of;
use std::num::NonZeroUsize;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;

use nix::sys::mman::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};
use protocol::grant::{GrantRef, PAGE_SIZE};

use xen_sys::gntalloc::{AllocGref, DEVICE, DeallocGref, FLAG_WRITABLE, alloc_gref, dealloc_gref};

use crate::device_file;
use crate::mapped::MappedRange;
use crate::{Access, DomId};

/// Number of 32-bit words before the references in [`AllocGref`].
const HEADER_WORDS: usize = offset_of!(AllocGref, gref_ids) / 4;
/// Size of [`AllocGref`] in 32-bit words.
const LEAST_WORDS: usize = size_of::<AllocGref>() / 4;

/// A handle that grants pages to one other domain.
#[derive(Debug)]
pub struct Gntalloc {
    peer: DomId,
}

impl Gntalloc {
    /// Returns a handle for grants to `peer`.
    pub fn new(peer: DomId) -> Self {
        Self { peer }
    }

    /// Grants `count` new zeroed pages with `access`. This process maps them writable in any case,
    /// one after another in the order of their references.
    ///
    /// # Errors
    /// The device is missing, or the kernel is out of pages or references; the message names the
    /// module that may be missing.
    pub fn share(&self, count: u16, access: Access) -> io::Result<SharedPages> {
        let file = device_file::open(DEVICE, "xen-gntalloc", 0)?;
        let allocated = allocate(&file, self.peer, count, access)?;
        let mut pages: Vec<(GrantRef, u64)> = allocated
            .references
            .iter()
            .zip((allocated.index..).step_by(PAGE_SIZE as usize))
            .map(|(reference, offset)| (GrantRef(*reference), offset))
            .collect();
        pages.sort_by_key(|(reference, _)| reference.0);
        let references = pages.iter().map(|(reference, _)| *reference).collect();
        let range = map(&file, pages.iter().map(|(_, offset)| *offset))?;
        Ok(SharedPages { range, references, index: allocated.index, file })
    }
}

/// The pages and references that the kernel chose.
struct Allocated {
    index: u64,
    references: Vec<u32>,
}

fn allocate(file: &File, peer: DomId, count: u16, access: Access) -> io::Result<Allocated> {
    let flags = if access == Access::ReadWrite { FLAG_WRITABLE } else { 0 };
    let ([d0, d1], [f0, f1]) = (peer.0.to_ne_bytes(), flags.to_ne_bytes());
    let mut request = vec![u32::from_ne_bytes([d0, d1, f0, f1]), count.into(), 0, 0];
    request.resize(LEAST_WORDS.max(HEADER_WORDS + usize::from(count)), 0);
    // SAFETY: range: the ioctl reads and writes the structure's 24 bytes and writes `count`
    // references after its first 16; the Vec has at least as many. Alignment: the kernel copies
    // bytes. Aliasing and lifetime: this function owns the Vec, which lives past the call.
    unsafe { alloc_gref(file.as_raw_fd(), request.as_mut_ptr().cast()) }?;
    let [_, _, low, high, references @ ..] = request.as_slice() else {
        return Err(io::ErrorKind::InvalidData.into());
    };
    let references = references.iter().take(count.into()).copied().collect();
    Ok(Allocated { index: u64::from(*low) | u64::from(*high) << 32, references })
}

/// Maps the pages at `offsets` of the device to consecutive addresses.
fn map(file: &File, offsets: impl ExactSizeIterator<Item = u64>) -> io::Result<MappedRange> {
    let page = NonZeroUsize::new(PAGE_SIZE as usize).ok_or(io::ErrorKind::InvalidInput)?;
    let bytes = NonZeroUsize::new(offsets.len() * page.get()).ok_or(io::ErrorKind::InvalidInput)?;
    // SAFETY: the call requests no address, so it replaces no other mapping.
    let base = unsafe { mmap_anonymous(None, bytes, ProtFlags::PROT_NONE, MapFlags::MAP_PRIVATE) }?;
    for (position, offset) in offsets.enumerate() {
        let address = NonZeroUsize::new(base.as_ptr() as usize + position * page.get());
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        let flags = MapFlags::MAP_SHARED | MapFlags::MAP_FIXED;
        // SAFETY: replaces one page of the range reserved above, which nothing refers to yet.
        let mapped = unsafe { mmap(address, page, protection, flags, file, offset as libc::off_t) };
        if let Err(errno) = mapped {
            // SAFETY: exactly the range reserved above, which nothing refers to.
            unsafe { unmap(base.cast(), bytes.get()) };
            return Err(errno.into());
        }
    }
    // SAFETY: `bytes` bytes are mapped at base for reading and writing, until SharedPages is
    // dropped, which owns the range; nothing else refers to them.
    Ok(unsafe { MappedRange::new(base.cast(), bytes.get(), Access::ReadWrite) })
}

/// # Safety
/// The bytes must be a whole range that [`map`] reserved, and nothing may refer to them.
unsafe fn unmap(address: NonNull<u8>, length: usize) {
    // SAFETY: the caller passes a whole range of `map`'s that nothing refers to.
    if let Err(error) = unsafe { munmap(address.cast(), length) } {
        tracing::error!(%error, "cannot unmap {length} granted bytes of this process");
    }
}

/// Pages granted to another domain. Dropping this ends the grants. The kernel keeps a page that the
/// other domain still has mapped.
#[derive(Debug)]
pub struct SharedPages {
    range: MappedRange,
    references: Vec<GrantRef>,
    index: u64,
    file: File,
}

impl SharedPages {
    /// The references in rising order, one for each page in the order of the mapping.
    pub fn references(&self) -> &[GrantRef] {
        &self.references
    }
}

impl AsRef<MappedRange> for SharedPages {
    fn as_ref(&self) -> &MappedRange {
        &self.range
    }
}

impl Drop for SharedPages {
    fn drop(&mut self) {
        // SAFETY: exactly the range that `map` returned; every borrow of it borrows self.
        unsafe { unmap(self.range.address(), self.range.length()) };
        let count = self.references.len() as u32;
        let request = DeallocGref { index: self.index, count };
        // SAFETY: the ioctl reads one DeallocGref, which lives past the call.
        if let Err(error) = unsafe { dealloc_gref(self.file.as_raw_fd(), &request) } {
            tracing::error!(%error, "cannot free {count} granted page(s); gntalloc keeps them");
        }
    }
}
