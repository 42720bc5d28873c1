//! Simulated grant tables; maps and copies granted pages.

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::ptr::NonNull;
use std::sync::Arc;

use nix::sys::mman::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};
use protocol::grant::{GrantRef, PAGE_SIZE};

use super::delays::pause;
use super::{Hypervisor, Limits};
use xen::mapped::MappedRange;
use xen::{Access, CopyDirection, CopyError, CopySegment, DomId, GrantTable, MapError};

/// One entry of a grant table.
pub(super) struct Grant {
    pub(super) memory: Arc<File>,
    pub(super) page: usize,
    pub(super) access: Access,
    pub(super) mapped: usize,
    /// The guest ended the grant while it was mapped.
    pub(super) ended: bool,
}

impl Grant {
    /// Whether the grant permits `access`.
    fn allows(&self, access: Access) -> bool {
        !self.ended && access <= self.access
    }
}

/// The grant tables of all domains.
#[derive(Default)]
pub(super) struct GrantTables {
    pub(super) entries: BTreeMap<(DomId, GrantRef), Grant>,
    pub(super) map_calls: usize,
    /// Number of mappings that Dom0 has.
    mappings: usize,
    /// Addresses of recent mappings, kept reserved so that a stale pointer faults.
    quarantine: Quarantine,
}

/// Address ranges without access, so that a pointer kept past its mapping faults. A new range
/// evicts the oldest.
#[derive(Default)]
struct Quarantine(VecDeque<Range<usize>>);

impl Quarantine {
    const MOST: usize = 512;

    /// Takes the range of a mapping that nobody refers to any more.
    fn take(&mut self, range: Range<usize>) {
        let length = NonZeroUsize::new(range.len()).unwrap();
        let address = NonZeroUsize::new(range.start).unwrap();
        let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_FIXED;
        // SAFETY: replaces exactly the range of a mapping, and the caller guarantees that nobody
        // refers to it.
        unsafe { mmap_anonymous(address.into(), length, ProtFlags::PROT_NONE, flags).unwrap() };
        self.0.push_back(range);
        if self.0.len() > Self::MOST {
            self.0.pop_front().into_iter().for_each(release);
        }
    }
}

impl Drop for Quarantine {
    fn drop(&mut self) {
        self.0.drain(..).for_each(release);
    }
}

/// Unmaps a range that [`Quarantine`] reserved.
fn release(range: Range<usize>) {
    let address = NonNull::new(range.start as *mut libc::c_void).unwrap();
    // SAFETY: exactly a range that the quarantine reserved and has just removed; nothing was ever
    // lent out of it.
    unsafe { munmap(address, range.len()) }.unwrap();
}

impl GrantTables {
    pub(super) fn mapped(&self, guest: DomId) -> usize {
        self.entries.iter().filter(|((owner, _), _)| *owner == guest).map(|(_, g)| g.mapped).sum()
    }

    /// Checks that the limits permit a mapping of `pages` pages; returns the kernel's error
    /// otherwise. gntdev returns EINVAL for most of Xen's errors, and its handle finds the reason:
    /// see the crate `xen`.
    fn check_room(&self, pages: usize, limits: &Limits) -> Result<(), MapError> {
        let tracked: usize = self.entries.values().map(|grant| grant.mapped).sum();
        let errno = if pages == 0 || pages > limits.pages_a_map {
            libc::EINVAL
        } else if tracked + pages > limits.tracked_pages || self.mappings >= limits.mappings {
            libc::ENOMEM
        } else {
            return Ok(());
        };
        let source = io::Error::from_raw_os_error(errno);
        Err(MapError::NoRoom { count: pages, source })
    }

    pub(super) fn describe(&self) -> Vec<String> {
        let one = |((owner, reference), grant): (&(DomId, GrantRef), &Grant)| {
            format!("{owner}'s {reference}, mapped {} time(s)", grant.mapped)
        };
        self.entries.iter().map(one).collect()
    }
}

/// The handle to one guest's grants.
pub struct SimGrants {
    hypervisor: Hypervisor,
    guest: DomId,
}

impl SimGrants {
    pub(super) fn new(hypervisor: Hypervisor, guest: DomId) -> Self {
        Self { hypervisor, guest }
    }
}

impl GrantTable for SimGrants {
    type Pages = SimPages;

    fn map(&self, references: &[GrantRef], access: Access) -> Result<SimPages, MapError> {
        pause();
        let mut world = self.hypervisor.world();
        let refused = |first| MapError::Refused {
            first,
            count: references.len(),
            access,
            source: io::ErrorKind::InvalidInput.into(),
        };
        let key = |reference: &GrantRef| (self.guest, *reference);
        // Every element has its own status (XSA-361): if one is refused, the whole map fails.
        for reference in references {
            let grant = world.grants.entries.get(&key(reference));
            grant.filter(|grant| grant.allows(access)).ok_or_else(|| refused(*reference))?;
        }
        let limits = world.limits;
        world.grants.check_room(references.len(), &limits)?;
        world.grants.map_calls += 1;
        world.grants.mappings += 1;
        let bytes = NonZeroUsize::new(references.len() * PAGE_SIZE as usize).unwrap();
        // SAFETY: the call requests no address, so it replaces no other mapping.
        let base = unsafe {
            mmap_anonymous(None, bytes, ProtFlags::PROT_NONE, MapFlags::MAP_PRIVATE).unwrap()
        };
        for (position, reference) in references.iter().enumerate() {
            let grant = world.grants.entries.get_mut(&key(reference)).unwrap();
            grant.mapped += 1;
            // SAFETY: position is within the pages reserved above, which nothing refers to yet.
            unsafe { place(base.cast(), position, &grant.memory, grant.page, access) };
        }
        drop(world);
        // SAFETY: `bytes` bytes are mapped at base with `access`, until SimPages is dropped.
        let range = unsafe { MappedRange::new(base.cast(), bytes.get(), access) };
        let (hypervisor, guest) = (self.hypervisor.clone(), self.guest);
        Ok(SimPages { range, hypervisor, guest, references: references.to_vec() })
    }

    fn copy(
        &self,
        direction: CopyDirection,
        segments: &[CopySegment<'_>],
    ) -> Result<(), CopyError> {
        pause();
        let world = self.hypervisor.world();
        for segment in segments {
            if usize::from(segment.offset) + segment.here.len() > PAGE_SIZE as usize {
                return Err(CopyError::Beyond);
            }
            let grant = world.grants.entries.get(&(self.guest, segment.reference));
            let needed = match direction {
                CopyDirection::FromGuest => Access::ReadOnly,
                CopyDirection::ToGuest => Access::ReadWrite,
            };
            let refused = CopyError::Refused { reference: segment.reference, status: BAD_GRANT };
            let grant = grant.filter(|grant| grant.allows(needed)).ok_or(refused)?;
            let mut bytes = vec![0; segment.here.len()];
            let offset = (grant.page * PAGE_SIZE as usize) as u64 + u64::from(segment.offset);
            match direction {
                CopyDirection::FromGuest => {
                    grant.memory.read_exact_at(&mut bytes, offset).unwrap();
                    segment.here.copy_from(&bytes);
                }
                CopyDirection::ToGuest => {
                    segment.here.copy_to(&mut bytes);
                    grant.memory.write_all_at(&bytes, offset).unwrap();
                }
            }
        }
        Ok(())
    }
}

/// `GNTST_bad_gntref`.
const BAD_GRANT: i16 = -3;

/// Maps page `page` of `memory` at the `position`th page from `base`.
///
/// # Safety
/// That page must be part of a mapping that nothing refers to.
pub(super) unsafe fn place(
    base: NonNull<u8>,
    position: usize,
    memory: &File,
    page: usize,
    access: Access,
) {
    let bytes = NonZeroUsize::new(PAGE_SIZE as usize).unwrap();
    let protection = match access {
        Access::ReadOnly => ProtFlags::PROT_READ,
        Access::ReadWrite => ProtFlags::PROT_READ | ProtFlags::PROT_WRITE,
    };
    let address = NonZeroUsize::new(base.as_ptr() as usize + position * bytes.get());
    let flags = MapFlags::MAP_SHARED | MapFlags::MAP_FIXED;
    let offset = (page * bytes.get()) as libc::off_t;
    // SAFETY: replaces one page, and the caller guarantees that nothing refers to it.
    unsafe { mmap(address, bytes, protection, flags, memory, offset).unwrap() };
}

/// Granted pages mapped in the simulation. Dropping this unmaps them.
pub struct SimPages {
    range: MappedRange,
    hypervisor: Hypervisor,
    guest: DomId,
    references: Vec<GrantRef>,
}

impl AsRef<MappedRange> for SimPages {
    fn as_ref(&self) -> &MappedRange {
        &self.range
    }
}

impl Drop for SimPages {
    fn drop(&mut self) {
        let start = self.range.address().as_ptr() as usize;
        let mut world = self.hypervisor.world();
        // Every borrow of the range borrows self.
        world.grants.quarantine.take(start..start + self.range.length());
        world.grants.mappings -= 1;
        for reference in &self.references {
            let key = (self.guest, *reference);
            let Some(grant) = world.grants.entries.get_mut(&key) else { continue };
            grant.mapped -= 1;
            if grant.ended && grant.mapped == 0 {
                world.grants.entries.remove(&key);
            }
        }
    }
}
