//! C interface of the modules `dma`, `bounce` and `ring`.

use core::ffi::c_int;

use protocol::grant::{Access, GrantRef};

use super::EINVAL;
use crate::bounce::{Piece, Policy};
use crate::dma::{self, DmaDirection, MAX_MAPPING_BYTES, Plan};
use crate::pool::MAX_POOLED_BYTES;
use crate::ring::{RingAddresses, RingGrants};

/// `struct shim_plan`: the grants that a buffer needs.
#[repr(C)]
pub(crate) struct ShimPlan {
    pages: u32,
    read_only: u32,
}

/// `struct shim_grants`: the references in an address.
#[repr(C)]
pub(crate) struct ShimGrants {
    first: u32,
    pages: u32,
}

/// `struct shim_ring`: the addresses of a queue's ring, and the resulting grants.
#[repr(C)]
pub(crate) struct ShimRing {
    descriptor: u64,
    driver: u64,
    device: u64,
    entries: u32,
    first: u32,
    pages: u32,
    read_only: u32,
}

/// `struct shim_piece`: the bytes of a buffer in one of its pages.
#[repr(C)]
pub(crate) struct ShimPiece {
    offset: u32,
    length: u32,
    fills_page: u32,
}

/// The longest buffer that drivers may map, in bytes: the longest that fits the pool if `pooled` is
/// not 0, else the longest that can be granted at any page offset.
#[unsafe(no_mangle)]
pub(crate) extern "C" fn shim_dma_max_bytes(pooled: u32) -> u64 {
    if pooled != 0 { MAX_POOLED_BYTES } else { MAX_MAPPING_BYTES }
}

/// Plans the grants of a buffer; `direction` is an `enum dma_data_direction`. Returns -EINVAL if
/// the buffer cannot be granted.
///
/// # Safety
/// `plan` points to a writable `struct shim_plan`.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn shim_dma_plan(
    physical: u64,
    length: u64,
    direction: u32,
    plan: *mut ShimPlan,
) -> c_int {
    let Some(made) =
        direction_of(direction).and_then(|direction| Plan::new(physical, length, direction).ok())
    else {
        return EINVAL;
    };
    // SAFETY: the caller guarantees a writable `struct shim_plan`.
    unsafe {
        plan.write(ShimPlan {
            pages: made.pages,
            read_only: (made.access == Access::ReadOnly).into(),
        });
    }
    0
}

/// The DMA address of the buffer at `physical` if its pages are granted from `first` on. Returns 0,
/// which is no grant address, if these references run past the last one.
#[unsafe(no_mangle)]
pub(crate) extern "C" fn shim_dma_address(physical: u64, length: u64, first: u32) -> u64 {
    // The address does not depend on the direction.
    Plan::new(physical, length, DmaDirection::Bidirectional)
        .ok()
        .and_then(|plan| plan.address(GrantRef(first)))
        .map_or(0, |address| address.encode())
}

/// Returns the references in an address, or -EINVAL if `shim_dma_address` cannot have returned it.
///
/// # Safety
/// `grants` points to a writable `struct shim_grants`.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn shim_dma_references(
    address: u64,
    length: u64,
    grants: *mut ShimGrants,
) -> c_int {
    let Ok(range) = dma::references(address, length) else {
        return EINVAL;
    };
    // SAFETY: the caller guarantees a writable `struct shim_grants`.
    unsafe {
        grants.write(ShimGrants { first: range.start.reference.0, pages: range.pages });
    }
    0
}

/// Plans the grants of a ring's pages from the addresses of its areas; returns -EINVAL if the ring
/// cannot be granted.
///
/// # Safety
/// `ring` points to a valid `struct shim_ring` that nothing else uses during the call.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn shim_ring_plan(ring: *mut ShimRing) -> c_int {
    // SAFETY: valid, and used by nothing else during the call, by the function's contract.
    let ring = unsafe { &mut *ring };
    let ShimRing { descriptor, driver, device, entries, .. } = *ring;
    match RingGrants::new(RingAddresses { descriptor, driver, device }, entries) {
        Ok(grants) => {
            (ring.first, ring.pages) = (grants.first.0, grants.pages);
            ring.read_only = grants.read_only;
            0
        }
        Err(_) => EINVAL,
    }
}

/// Returns the piece of the `length` bytes at `address`, a physical or a DMA address, in their page
/// `index`; or -EINVAL if they touch fewer pages.
///
/// # Safety
/// `piece` points to a writable `struct shim_piece`.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn shim_dma_piece(
    address: u64,
    length: u64,
    index: u32,
    piece: *mut ShimPiece,
) -> c_int {
    let Some(found) = Piece::of(address, length, index) else {
        return EINVAL;
    };
    // SAFETY: the caller guarantees a writable `struct shim_piece`.
    unsafe {
        piece.write(ShimPiece {
            offset: found.offset,
            length: found.length,
            fills_page: found.fills_page().into(),
        });
    }
    0
}

/// Whether the device reads a buffer; `direction` is an `enum dma_data_direction`.
#[unsafe(no_mangle)]
pub(crate) extern "C" fn shim_dma_device_reads(direction: u32) -> u32 {
    direction_of(direction).is_some_and(DmaDirection::device_reads).into()
}

/// Whether the device writes a buffer; `direction` is an `enum dma_data_direction`.
#[unsafe(no_mangle)]
pub(crate) extern "C" fn shim_dma_device_writes(direction: u32) -> u32 {
    direction_of(direction).is_some_and(DmaDirection::device_writes).into()
}

/// Whether to bounce buffers that share pages with other data; `policy` is an `enum
/// shim_bounce_policy`.
#[unsafe(no_mangle)]
pub(crate) extern "C" fn shim_bounces(policy: u32, trusted: u32, backend: u16) -> u32 {
    let policy = match policy {
        0 => Policy::Auto,
        2 => Policy::Never,
        _ => Policy::Always,
    };
    policy.bounces(trusted != 0, backend).into()
}

/// Converts the kernel's `enum dma_data_direction`; DMA_NONE is `None`.
const fn direction_of(number: u32) -> Option<DmaDirection> {
    match number {
        0 => Some(DmaDirection::Bidirectional),
        1 => Some(DmaDirection::ToDevice),
        2 => Some(DmaDirection::FromDevice),
        _ => None,
    }
}
