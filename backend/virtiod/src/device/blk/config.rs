//! The block device's configuration space (virtio 1.3 section 5.2.4, `struct virtio_blk_config`).

use super::facts::DiskFacts;
use super::request::{MAX_RANGE_SECTORS, MAX_RANGES};

/// Bytes up to and including `unused1`, behind the last field that belongs to an offered feature.
pub(super) const SIZE: usize = 60;

const CAPACITY: usize = 0;
const SEG_MAX: usize = 12;
const BLK_SIZE: usize = 20;
const PHYSICAL_BLOCK_EXP: usize = 24;
const NUM_QUEUES: usize = 34;
const MAX_DISCARD_SECTORS: usize = 36;
const MAX_DISCARD_SEG: usize = 40;
const DISCARD_SECTOR_ALIGNMENT: usize = 44;
const MAX_WRITE_ZEROES_SECTORS: usize = 48;
const MAX_WRITE_ZEROES_SEG: usize = 52;
const WRITE_ZEROES_MAY_UNMAP: usize = 56;

/// The configuration space of a disk.
pub(super) fn bytes(disk: &DiskFacts, queues: u16, queue_size: u16) -> [u8; SIZE] {
    let block = disk.block_size;
    let mut config = [0; SIZE];
    let mut put = |at: usize, field: &[u8]| {
        config.iter_mut().skip(at).zip(field).for_each(|(to, from)| *to = *from);
    };
    put(CAPACITY, &disk.sectors.to_le_bytes());
    // Header and status take two of a request's descriptors.
    put(SEG_MAX, &u32::from(queue_size.saturating_sub(2)).to_le_bytes());
    put(BLK_SIZE, &block.logical.to_le_bytes());
    put(PHYSICAL_BLOCK_EXP, &[(block.physical / block.logical).max(1).ilog2() as u8]);
    put(NUM_QUEUES, &queues.to_le_bytes());
    put(MAX_DISCARD_SECTORS, &MAX_RANGE_SECTORS.to_le_bytes());
    put(MAX_DISCARD_SEG, &MAX_RANGES.to_le_bytes());
    put(DISCARD_SECTOR_ALIGNMENT, &disk.discard_alignment.to_le_bytes());
    put(MAX_WRITE_ZEROES_SECTORS, &MAX_RANGE_SECTORS.to_le_bytes());
    put(MAX_WRITE_ZEROES_SEG, &MAX_RANGES.to_le_bytes());
    put(WRITE_ZEROES_MAY_UNMAP, &[u8::from(disk.can_discard)]);
    config
}
