//! A guest: its memory, its grants, its ports.

use std::fs::File;
use std::num::NonZeroUsize;
use std::ptr::NonNull;
use std::sync::Arc;

use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use protocol::grant::{GrantAddress, GrantRef, PAGE_SIZE};
use protocol::page::PageWords;
use vm_memory::VolatileSlice;

use super::Hypervisor;
use super::SimFrames;
use super::events::GuestPort;
use super::grants::Grant;
use xen::{Access, DomId};

const PAGE: usize = PAGE_SIZE as usize;
/// A guest's first grant reference; those below are reserved in real tables.
const FIRST_REFERENCE: u32 = 8;

/// One of a guest's pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuestPage(pub usize);

/// A domain with memory.
pub struct Guest {
    hypervisor: Hypervisor,
    /// Its number.
    pub id: DomId,
    memory: Arc<File>,
    base: NonNull<u8>,
    pages: usize,
    next_page: usize,
    next_reference: u32,
    /// What its drivers put into rings.
    pub addresses: Addresses,
}

/// What the addresses are that a device is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Addresses {
    /// Grants.
    Grants,
    /// The guest's own plus this.
    Window(u64),
}

impl Guest {
    pub(super) fn new(hypervisor: Hypervisor, id: DomId, pages: usize) -> Self {
        let memory = File::from(memfd_create("guest", MFdFlags::MFD_CLOEXEC).unwrap());
        memory.set_len((pages * PAGE) as u64).unwrap();
        let bytes = NonZeroUsize::new(pages * PAGE).unwrap();
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: no address is asked for, so no other mapping is touched.
        let base = unsafe { mmap(None, bytes, protection, MapFlags::MAP_SHARED, &memory, 0) };
        let memory = Arc::new(memory);
        let frames = SimFrames { memory: Arc::clone(&memory), count: pages };
        hypervisor.world().memories.insert(id, frames);
        Self {
            hypervisor,
            id,
            memory,
            addresses: Addresses::Grants,
            base: base.unwrap().cast(),
            pages,
            next_page: 0,
            next_reference: FIRST_REFERENCE,
        }
    }

    /// A page that was never used; zero.
    pub fn allocate(&mut self) -> GuestPage {
        assert!(self.next_page < self.pages, "the guest is out of memory");
        self.next_page += 1;
        GuestPage(self.next_page - 1)
    }

    /// Leaves references out, for another of the domain's drivers.
    pub fn skip_references(&mut self, count: u32) {
        self.next_reference += count;
    }

    /// Bytes of a page.
    pub fn slice(&self, page: GuestPage, offset: usize, length: usize) -> VolatileSlice<'_> {
        assert!(page.0 < self.pages && offset + length <= PAGE);
        // SAFETY: range: inside the page, checked above, and so inside the mapping. Lifetime:
        // borrows self, whose drop unmaps. Aliasing: accesses to the memory are volatile or atomic
        // everywhere.
        unsafe { VolatileSlice::new(self.base.as_ptr().add(page.0 * PAGE + offset), length) }
    }

    /// A page as the message page.
    pub fn words(&self, page: GuestPage) -> &PageWords {
        assert!(page.0 < self.pages);
        // SAFETY: as in `slice`; the page is aligned, and as large as PageWords.
        unsafe { self.base.add(page.0 * PAGE).cast::<PageWords>().as_ref() }
    }

    /// Grants pages to Dom0 under consecutive references; gives the first.
    pub fn grant(&mut self, pages: &[GuestPage], access: Access) -> GrantRef {
        let first = GrantRef(self.next_reference);
        for page in pages {
            let reference = GrantRef(self.next_reference);
            self.next_reference += 1;
            let memory = Arc::clone(&self.memory);
            let grant = Grant { memory, page: page.0, access, mapped: 0, ended: false };
            self.hypervisor.world().grants.entries.insert((self.id, reference), grant);
        }
        first
    }

    /// The address for a device of pages that follow one another and were granted from `first` on.
    pub fn address(&self, page: GuestPage, first: GrantRef) -> u64 {
        match self.addresses {
            Addresses::Grants => GrantAddress::page(first).encode(),
            Addresses::Window(offset) => offset + page.0 as u64 * PAGE_SIZE,
        }
    }

    /// Ends grants. Ending one that is still mapped breaks a rule of the backend's [3.5].
    pub fn revoke(&self, first: GrantRef, count: usize) {
        let mut world = self.hypervisor.world();
        for number in first.0..first.0 + count as u32 {
            let reference = GrantRef(number);
            match world.grants.entries.remove(&(self.id, reference)) {
                Some(grant) if grant.mapped > 0 => {
                    world.violations.push(format!("{reference} was still mapped when it ended"));
                }
                Some(_) => {}
                None => world.violations.push(format!("{reference} ended twice")),
            }
        }
    }

    /// Ends grants whether they are mapped or not, as a guest's kernel can that does not care what
    /// becomes of its pages. What is mapped stays so, and nothing can be mapped any more.
    pub fn end_grants(&self, first: GrantRef, count: usize) {
        let last = first.0.saturating_add(u32::try_from(count).unwrap_or(u32::MAX));
        let entries = &mut self.hypervisor.world().grants.entries;
        let ended = entries.range_mut((self.id, first)..(self.id, GrantRef(last)));
        ended.for_each(|(_, grant)| grant.ended = true);
        entries.retain(|_, grant| !grant.ended || grant.mapped > 0);
    }

    /// A new event channel for Dom0.
    pub fn port(&self) -> GuestPort {
        GuestPort::new(self.hypervisor.clone(), self.id)
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // SAFETY: exactly the range that `new` mapped; what borrows it borrows self.
        unsafe { munmap(self.base.cast(), self.pages * PAGE) }.unwrap();
    }
}
