//! `/dev/xen/privcmd`: the hypercalls of whoever has it open.
//!
//! ABI: Linux `include/uapi/xen/privcmd.h`.

use std::fs::{File, OpenOptions};
use std::num::NonZeroUsize;
use std::os::fd::AsRawFd;

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

const DEVICE: &str = "/dev/xen/privcmd";

/// Bytes of a page.
const PAGE: usize = 4096;

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
#[derive(Debug)]
pub struct Privcmd(File);

impl Privcmd {
    /// Opens the device.
    ///
    /// # Errors
    /// The kernel's: the module is not loaded, or the caller is not root.
    pub fn open() -> Result<Privcmd> {
        let file = OpenOptions::new().read(true).write(true).open(DEVICE);
        Ok(Privcmd(file.with_context(|| format!("cannot open {DEVICE}"))?))
    }

    /// A copy of one page of the domain `domid`. Of a PV guest `frame` is the machine's frame, of others
    /// the guest's.
    ///
    /// # Errors
    /// The kernel's, or the hypervisor's, which refuses the frame.
    pub fn read_page(&self, domid: u16, frame: u64) -> Result<Vec<u8>> {
        let length = NonZeroUsize::new(PAGE).context("a page is empty")?;
        // SAFETY: no address is asked for, so no other mapping is touched.
        let reserved =
            unsafe { mmap(None, length, ProtFlags::PROT_READ, MapFlags::MAP_SHARED, &self.0, 0) };
        let address = reserved.with_context(|| format!("cannot reserve a page of {DEVICE}"))?;
        let page = self.map(address.as_ptr() as u64, domid, frame).map(|()| {
            // SAFETY: range and alignment: `address` is a page of this process, which `map` has just
            // put the frame behind, readable. The other domain may write to it meanwhile, so it is
            // read byte by byte with volatile reads, and no reference to it is made.
            let byte = |at| unsafe { address.cast::<u8>().add(at).read_volatile() };
            (0..PAGE).map(byte).collect()
        });
        // SAFETY: the range that mmap gave; nothing refers to it any more.
        unsafe { munmap(address, PAGE) }.context("cannot unmap the page")?;
        page
    }

    /// Puts one frame of the domain `domid` behind the reserved page at `address`.
    fn map(&self, address: u64, domid: u16, frame: u64) -> Result<()> {
        let mut error = 0;
        let mut batch =
            MapBatch { count: 1, domid, address, frames: &raw const frame, errors: &raw mut error };
        // SAFETY: the kernel reads one MapBatch and one frame number and writes one error, all of which
        // live past the call and are nobody else's; it changes the mapping of nothing but the page at
        // `address`, which it checks to be a page that was reserved with this descriptor.
        let done = unsafe { map_batch(self.0.as_raw_fd(), &raw mut batch) };
        // ENOENT: the frame is paged out; the frame's own error says so too.
        match done {
            Ok(_) | Err(Errno::ENOENT) if error != 0 => {
                let refusal = Errno::from_raw(-error);
                bail!("the hypervisor refuses frame {frame:#x} of domain {domid}: {refusal}")
            }
            Ok(_) => Ok(()),
            Err(errno) => Err(errno).with_context(|| format!("{DEVICE} maps nothing")),
        }
    }
}
