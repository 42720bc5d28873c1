//! How much memory the library takes for an image.
//!
//! It keeps level 2 tables and refcount blocks by number, and each is a cluster, which may have 2
//! MiB: an image of a few KiB, with nothing but empty tables, would take hundreds of MiB as soon as
//! its guest reads here and there, and so would each of its backing files. The numbers cannot be
//! set.

use super::header::Qcow2Header;
use crate::device::blk::target::AccessMode;

/// Most bytes for a disk's images together: any one image takes less.
pub(super) const MOST: u64 = 384 << 20;
/// Level 2 tables that the library keeps.
const L2_TABLES: u64 = 128;
/// Refcount blocks that it keeps of an image that is written.
const REFCOUNT_BLOCKS: u64 = 32;

/// Most bytes that the library takes for an image in a file of `length` bytes.
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

/// How many refcount blocks an image may come to have that it has no snapshots added to.
fn refcount_blocks(header: &Qcow2Header, length: u64) -> u64 {
    let clusters = length.saturating_add(header.size) >> header.cluster_bits;
    let counts = (header.cluster_size() * 8) >> header.refcount_order;
    clusters / counts + 2
}
