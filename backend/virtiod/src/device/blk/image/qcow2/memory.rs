//! The memory that the library allocates for an image.
//!
//! The library caches a fixed number of level 2 tables and refcount blocks, each of one cluster,
//! which may have 2 MiB: an image of a few KiB, with nothing but empty tables, would take hundreds
//! of MiB as soon as its guest reads at several locations, and so would each of its backing files.
//! These numbers cannot be set.

use super::header::Qcow2Header;
use crate::device::blk::target::AccessMode;

/// Maximum bytes for all images of a disk together; any single image takes less.
pub(super) const MOST: u64 = 384 << 20;
/// Number of level 2 tables in the library's cache.
const L2_TABLES: u64 = 128;
/// Number of refcount blocks in its cache, for an image that is written.
const REFCOUNT_BLOCKS: u64 = 32;

/// Maximum bytes that the library allocates for an image in a file of `length` bytes.
pub(super) fn of_image(header: &Qcow2Header, length: u64, mode: AccessMode) -> u64 {
    let cluster = header.cluster_size();
    let tables = header.size.div_ceil(cluster / 8 * cluster).min(L2_TABLES);
    let read = tables * cluster + header.l1.entries * 8;
    match mode {
        AccessMode::ReadOnly => read,
        AccessMode::ReadWrite => {
            let blocks = refcount_blocks(header, length).min(REFCOUNT_BLOCKS);
            read + blocks * cluster + header.refcount_table.entries * 8
        }
    }
}

/// Maximum number of refcount blocks that an image can have while no snapshots are added.
fn refcount_blocks(header: &Qcow2Header, length: u64) -> u64 {
    let clusters = length.saturating_add(header.size) >> header.cluster_bits;
    let counts = (header.cluster_size() * 8) >> header.refcount_order;
    clusters / counts + 2
}
