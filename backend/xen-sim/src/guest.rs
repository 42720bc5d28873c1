//! A simulated guest: memory, grants and ports.

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
/// A guest's first grant reference; real tables reserve those below.
const FIRST_REFERENCE: u32 = 8;

/// A page of a guest, by its index in the guest's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuestPage(pub usize);

/// A domain with memory of its own.
pub struct Guest {
    hypervisor: Hypervisor,
    /// The domain id.
    pub id: DomId,
    memory: Arc<File>,
    base: NonNull<u8>,
    pages: usize,
    next_page: usize,
    next_reference: u32,
    /// The kind of addresses that the guest's drivers put into rings.
    pub addresses: Addresses,
}

/// The kind of addresses that a driver passes to a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Addresses {
    /// Grant addresses.
    Grants,
    /// Guest-physical addresses plus this offset.
    Window(u64),
}

impl Guest {
    pub(super) fn new(hypervisor: Hypervisor, id: DomId, pages: usize) -> Self {
        let memory = File::from(memfd_create("guest", MFdFlags::MFD_CLOEXEC).unwrap());
        memory.set_len((pages * PAGE) as u64).unwrap();
        let bytes = NonZeroUsize::new(pages * PAGE).unwrap();
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: the call requests no address, so it replaces no other mapping.
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

    /// Returns a zeroed page that was never used; fails the test if none is left.
    pub fn allocate(&mut self) -> GuestPage {
        assert!(self.next_page < self.pages, "the guest is out of memory");
        self.next_page += 1;
        GuestPage(self.next_page - 1)
    }

    /// Skips `count` references, which another driver of the domain uses.
    pub fn skip_references(&mut self, count: u32) {
        self.next_reference += count;
    }

    /// Returns `length` bytes of a page from `offset` on.
    pub fn slice(&self, page: GuestPage, offset: usize, length: usize) -> VolatileSlice<'_> {
        assert!(page.0 < self.pages && offset + length <= PAGE);
        // SAFETY: range: the check above keeps the bytes inside the page, and so inside the
        // mapping. Lifetime: the slice borrows self, whose drop unmaps. Aliasing: all accesses to
        // the memory are volatile or atomic.
        unsafe { VolatileSlice::new(self.base.as_ptr().add(page.0 * PAGE + offset), length) }
    }

    /// Returns a page as the message page.
    pub fn words(&self, page: GuestPage) -> &PageWords {
        assert!(page.0 < self.pages);
        // SAFETY: as in `slice`; the page is aligned, and as large as PageWords.
        unsafe { self.base.add(page.0 * PAGE).cast::<PageWords>().as_ref() }
    }

    /// Grants pages to Dom0 under consecutive references; returns the first.
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

    /// Returns the device address of consecutive pages that were granted from `first` on.
    pub fn address(&self, page: GuestPage, first: GrantRef) -> u64 {
        match self.addresses {
            Addresses::Grants => GrantAddress::page(first).encode(),
            Addresses::Window(offset) => offset + page.0 as u64 * PAGE_SIZE,
        }
    }

    /// Ends grants. If one is still mapped, the backend broke a rule [3.5].
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

    /// Ends grants whether they are mapped or not, as a careless guest kernel can. Existing
    /// mappings stay, and new ones fail.
    pub fn end_grants(&self, first: GrantRef, count: usize) {
        let last = first.0.saturating_add(u32::try_from(count).unwrap_or(u32::MAX));
        let entries = &mut self.hypervisor.world().grants.entries;
        let ended = entries.range_mut((self.id, first)..(self.id, GrantRef(last)));
        ended.for_each(|(_, grant)| grant.ended = true);
        entries.retain(|_, grant| !grant.ended || grant.mapped > 0);
    }

    /// Allocates an event channel for Dom0.
    pub fn port(&self) -> GuestPort {
        GuestPort::new(self.hypervisor.clone(), self.id)
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // SAFETY: exactly the range that `new` mapped; every borrow of it borrows self.
        unsafe { munmap(self.base.cast(), self.pages * PAGE) }.unwrap();
    }
}
