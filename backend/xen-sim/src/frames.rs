//! Maps a guest's memory by frame number, as a platform without grants does.

use std::fs::File;
use std::num::NonZeroUsize;
use std::sync::Arc;

use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous, munmap};
use protocol::grant::PAGE_SIZE;

use super::grants::place;
use xen::Access;
use xen::mapped::MappedRange;

/// The whole memory of one guest.
#[derive(Clone)]
pub struct SimFrames {
    pub(super) memory: Arc<File>,
    pub(super) count: usize,
}

impl SimFrames {
    /// Number of frames.
    pub fn count(&self) -> u64 {
        self.count as u64
    }

    /// Maps frames to consecutive addresses.
    pub fn map(&self, frames: &[u64], access: Access) -> FramePages {
        let bytes = NonZeroUsize::new(frames.len() * PAGE_SIZE as usize).unwrap();
        // SAFETY: the call requests no address, so it replaces no other mapping.
        let base = unsafe {
            mmap_anonymous(None, bytes, ProtFlags::PROT_NONE, MapFlags::MAP_PRIVATE).unwrap()
        };
        for (position, frame) in frames.iter().enumerate() {
            assert!(*frame < self.count(), "the platform checks what it decodes");
            // SAFETY: position is within the pages reserved above, which nothing refers to yet.
            unsafe { place(base.cast(), position, &self.memory, *frame as usize, access) };
        }
        // SAFETY: `bytes` bytes are mapped at base with `access`, until FramePages is dropped.
        FramePages(unsafe { MappedRange::new(base.cast(), bytes.get(), access) })
    }
}

/// Mapped frames. Dropping this unmaps them.
pub struct FramePages(MappedRange);

impl AsRef<MappedRange> for FramePages {
    fn as_ref(&self) -> &MappedRange {
        &self.0
    }
}

impl Drop for FramePages {
    fn drop(&mut self) {
        // SAFETY: exactly the range that `map` made; every borrow of it borrows self.
        unsafe { munmap(self.0.address().cast(), self.0.length()) }.unwrap();
    }
}
