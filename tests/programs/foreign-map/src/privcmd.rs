//! `/dev/xen/privcmd`: the device through which a process makes hypercalls.
//!
//! ABI: Linux `include/uapi/xen/privcmd.h`.

use std::fs::{File, OpenOptions};
use std::num::NonZeroUsize;
use std::os::fd::AsRawFd;

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::sys::mman::{MapFlags, mmap};

use crate::window::{Access, PAGE, Window};

const DEVICE: &str = "/dev/xen/privcmd";

/// `struct privcmd_mmapbatch_v2`.
#[repr(C)]
struct MapBatch {
    count: u32,
    domid: u16,
    /// Address at which the kernel maps the frames into this process.
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
    /// The kernel's error, for example if the module is not loaded or the caller is not root.
    pub fn open() -> Result<Privcmd> {
        let file = OpenOptions::new().read(true).write(true).open(DEVICE);
        Ok(Privcmd(file.with_context(|| format!("cannot open {DEVICE}"))?))
    }

    /// Copies one page of the domain `domid`. `frame` is the machine's frame number for a PV guest,
    /// the guest's own for others.
    ///
    /// # Errors
    /// The kernel's error, or the hypervisor's if it refuses the frame.
    pub fn read_page(&self, domid: u16, frame: u64) -> Result<Vec<u8>> {
        let window = self.map(domid, &[frame], Access::Read)?;
        if let Some(refusal) = window.refusal(0) {
            bail!("the hypervisor refuses frame {frame:#x} of domain {domid}: {refusal}");
        }
        let mut page = vec![0; PAGE as usize];
        window.read(0, &mut page);
        Ok(page)
    }

    /// Maps those of the domain's frames, numbered as for [`Privcmd::read_page`], that the
    /// hypervisor does not refuse; [`Window::refusal`] reports the others.
    ///
    /// # Errors
    /// An error if `frames` is empty or too long, or the kernel's error if it maps nothing at all.
    pub fn map(&self, domid: u16, frames: &[u64], access: Access) -> Result<Window> {
        let bytes = NonZeroUsize::new(frames.len() * PAGE as usize)
            .context("cannot map a window without pages")?;
        let count = u32::try_from(frames.len()).context("cannot map 2^32 or more pages")?;
        // SAFETY: the kernel chooses the address, so that this replaces no other mapping.
        let reserved =
            unsafe { mmap(None, bytes, access.protection(), MapFlags::MAP_SHARED, &self.0, 0) };
        let address = reserved.with_context(|| format!("cannot reserve pages of {DEVICE}"))?;
        let mut window = Window { address, access, errors: vec![0; frames.len()] };
        let mut batch = MapBatch {
            count,
            domid,
            address: address.as_ptr() as u64,
            frames: frames.as_ptr(),
            errors: window.errors.as_mut_ptr(),
        };
        // SAFETY: the kernel reads one MapBatch and `count` frame numbers and writes `count`
        // errors. All of them outlive the call, and nothing else uses them during it. The kernel
        // changes no mapping but that of the `count` pages at `address`, and checks that they are
        // pages reserved with this descriptor.
        match unsafe { map_batch(self.0.as_raw_fd(), &raw mut batch) } {
            // ENOENT: a frame is paged out; its entry in `errors` reports that, too.
            Ok(_) | Err(Errno::ENOENT) => Ok(window),
            Err(errno) => Err(errno).with_context(|| format!("{DEVICE} maps nothing")),
        }
    }
}
