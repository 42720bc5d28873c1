//! Grants and bouncing, as the glue asks for them.

use core::ffi::c_int;

use protocol::grant::{Access, GrantRef};

use super::EINVAL;
use crate::bounce::{Piece, Policy};
use crate::dma::{self, DmaDirection, MAX_MAPPING_BYTES, Plan};
use crate::pool::MAX_POOLED_BYTES;
use crate::ring::{RingAddresses, RingGrants};

/// `struct shim_plan`: how to grant a buffer.
#[repr(C)]
pub(crate) struct ShimPlan {
    pages: u32,
    read_only: u32,
}

/// `struct shim_grants`: what an address is made of.
#[repr(C)]
pub(crate) struct ShimGrants {
    first: u32,
    pages: u32,
}

/// `struct shim_ring`: a queue's ring, and how it is to be granted.
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

/// The longest buffer to ask for: what the pool takes where there is one, or else what can be
/// granted wherever in its page it starts.
#[unsafe(no_mangle)]
pub(crate) extern "C" fn shim_dma_max_bytes(pooled: u32) -> u64 {
    if pooled != 0 { MAX_POOLED_BYTES } else { MAX_MAPPING_BYTES }
}

/// How to grant a buffer; `direction` is an `enum dma_data_direction`. -EINVAL if it cannot be.
///
/// # Safety
/// `plan` is a valid `struct shim_plan`.
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
    // SAFETY: the caller owes a valid place.
    unsafe {
        plan.write(ShimPlan {
            pages: made.pages,
            read_only: (made.access == Access::ReadOnly).into(),
        });
    }
    0
}

/// The DMA address of the buffer at `physical` once granted from `first` on; 0, which is no grant
/// address, if there are not that many references.
#[unsafe(no_mangle)]
pub(crate) extern "C" fn shim_dma_address(physical: u64, length: u64, first: u32) -> u64 {
    // The address does not depend on the direction.
    Plan::new(physical, length, DmaDirection::Bidirectional)
        .ok()
        .and_then(|plan| plan.address(GrantRef(first)))
        .map_or(0, |address| address.encode())
}

/// The references behind an address; -EINVAL if it cannot have been made here.
///
/// # Safety
/// `grants` is a valid `struct shim_grants`.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn shim_dma_release(
    address: u64,
    length: u64,
    grants: *mut ShimGrants,
) -> c_int {
    let Ok(range) = dma::release(address, length) else {
        return EINVAL;
    };
    // SAFETY: the caller owes a valid place.
    unsafe {
        grants.write(ShimGrants { first: range.start.reference.0, pages: range.pages });
    }
    0
}

/// How to grant a ring's pages, by the addresses of its areas; -EINVAL if it is not to be granted.
///
/// # Safety
/// `ring` is a valid `struct shim_ring`.
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

/// What of `length` bytes at `address`, a physical or a DMA address, lies in their page `index`;
/// -EINVAL if they touch fewer pages.
///
/// # Safety
/// `piece` is a valid `struct shim_piece`.
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
    // SAFETY: the caller owes a valid place.
    unsafe {
        piece.write(ShimPiece {
            offset: found.offset,
            length: found.length,
            fills_page: found.fills_page().into(),
        });
    }
    0
}

/// Whether the device reads what is written to a mapped buffer; an `enum dma_data_direction`.
#[unsafe(no_mangle)]
pub(crate) extern "C" fn shim_dma_device_reads(direction: u32) -> u32 {
    direction_of(direction).is_some_and(DmaDirection::device_reads).into()
}

/// Whether the device writes the buffer; an `enum dma_data_direction`.
#[unsafe(no_mangle)]
pub(crate) extern "C" fn shim_dma_device_writes(direction: u32) -> u32 {
    direction_of(direction).is_some_and(DmaDirection::device_writes).into()
}

/// Whether buffers that share pages with other data are bounced; `policy` is an `enum shim_bounce`.
#[unsafe(no_mangle)]
pub(crate) extern "C" fn shim_bounces(policy: u32, trusted: u32, backend: u16) -> u32 {
    let policy = match policy {
        0 => Policy::Auto,
        2 => Policy::Never,
        _ => Policy::Always,
    };
    policy.bounces(trusted != 0, backend).into()
}

/// `enum dma_data_direction` of the kernel; its DMA_NONE is no direction.
const fn direction_of(number: u32) -> Option<DmaDirection> {
    match number {
        0 => Some(DmaDirection::Bidirectional),
        1 => Some(DmaDirection::ToDevice),
        2 => Some(DmaDirection::FromDevice),
        _ => None,
    }
}
