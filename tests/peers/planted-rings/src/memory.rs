//! The memory of a PV domain by the machine's addresses, through `/dev/xen/privcmd`, which is Dom0's
//! to use.
//!
//! ABI: Linux `include/uapi/xen/privcmd.h`.

use std::ffi::c_void;
use std::fs::{File, OpenOptions};
use std::num::NonZeroUsize;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

const DEVICE: &str = "/dev/xen/privcmd";

/// Bytes of a page.
const PAGE: u64 = 4096;

/// `struct privcmd_mmapbatch_v2`.
#[repr(C)]
struct MapBatch {
    count: u32,
    domid: u16,
    /// Where in this process the frames appear.
    address: u64,
    /// `count` frame numbers.
    frames: *const u64,
    /// `count` results, 0 or a negative error number, which the kernel writes.
    errors: *mut i32,
}

nix::ioctl_readwrite_bad!(
    map_batch,
    nix::request_code_none!(b'P', 4) | (size_of::<MapBatch>() as u64) << 16,
    MapBatch
);

/// The open device.
pub(crate) struct Memory(File);

impl Memory {
    pub(crate) fn open() -> Result<Memory> {
        let file = OpenOptions::new().read(true).write(true).open(DEVICE);
        Ok(Memory(file.with_context(|| format!("cannot open {DEVICE}"))?))
    }

    /// Maps what the domain owns of the `length` bytes of the machine's memory at `start`, both whole
    /// pages.
    pub(crate) fn map(&self, domid: u16, start: u64, length: u64) -> Result<Window> {
        let bytes = NonZeroUsize::new(usize::try_from(length)?).context("a window is empty")?;
        let (access, shared) = (ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, MapFlags::MAP_SHARED);
        // SAFETY: no address is asked for, so no other mapping is touched.
        let reserved = unsafe { mmap(None, bytes, access, shared, &self.0, 0) };
        let address = reserved.with_context(|| format!("cannot reserve pages of {DEVICE}"))?;
        let frames: Vec<u64> = (start / PAGE..(start + length) / PAGE).collect();
        let mut window = Window { start, address, errors: vec![0; frames.len()] };
        let mut batch = MapBatch {
            count: u32::try_from(frames.len())?,
            domid,
            address: address.as_ptr() as u64,
            frames: frames.as_ptr(),
            errors: window.errors.as_mut_ptr(),
        };
        // SAFETY: the kernel reads one MapBatch and `count` frame numbers and writes `count` errors, all
        // of which live past the call and are nobody else's; it changes the mapping of nothing but the
        // `count` pages at `address`, which were reserved with this descriptor.
        match unsafe { map_batch(self.0.as_raw_fd(), &raw mut batch) } {
            // ENOENT: a frame is paged out; its own error says so too.
            Ok(_) | Err(Errno::ENOENT) => Ok(window),
            Err(errno) => Err(errno).with_context(|| format!("{DEVICE} maps nothing")),
        }
    }
}

/// A part of the machine's memory, of which the pages that the domain owns are mapped.
pub(crate) struct Window {
    start: u64,
    address: NonNull<c_void>,
    /// One for each page; 0 if it is mapped.
    errors: Vec<i32>,
}

impl Window {
    /// The machine's address that it begins at.
    pub(crate) fn start(&self) -> u64 {
        self.start
    }

    /// Whether all of the `length` bytes at `offset` are the domain's.
    pub(crate) fn has(&self, offset: u64, length: u64) -> bool {
        let pages = (offset / PAGE) as usize..(offset + length).div_ceil(PAGE) as usize;
        self.errors.get(pages).is_some_and(|errors| errors.iter().all(|&error| error == 0))
    }

    /// Writes to memory that it has; nothing otherwise.
    pub(crate) fn write(&self, offset: u64, bytes: &[u8]) {
        if self.has(offset, bytes.len() as u64) {
            for (at, byte) in (offset as usize..).zip(bytes) {
                // SAFETY: range: `has` says that all these bytes are mapped, writable, in the mapping that
                // is this value's until it is dropped. Aliasing: others may use the memory at the same
                // time, so bytes are written one by one, volatile, and no reference is made.
                unsafe { self.address.cast::<u8>().add(at).write_volatile(*byte) }
            }
        }
    }

    /// Reads memory that it has; nothing otherwise.
    pub(crate) fn read(&self, offset: u64, bytes: &mut [u8]) {
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
