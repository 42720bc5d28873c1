//! The block device's configuration space (virtio 1.3 section 5.2.4, `struct virtio_blk_config`).

use super::{SECTOR_SIZE, Target};

/// Bytes up to and including `unused1`, behind the last field of any feature we might offer.
pub(super) const SIZE: usize = 60;

const CAPACITY: usize = 0;
const SEG_MAX: usize = 12;
const BLK_SIZE: usize = 20;
const NUM_QUEUES: usize = 34;

/// The configuration of a disk on `target`.
pub(super) fn bytes(target: &Target, queues: u16, queue_size: u16) -> [u8; SIZE] {
    let mut config = [0; SIZE];
    put(&mut config, CAPACITY, &target.sectors().to_le_bytes());
    // A request has a header and a status beside its data.
    put(&mut config, SEG_MAX, &u32::from(queue_size.saturating_sub(2)).to_le_bytes());
    put(&mut config, BLK_SIZE, &(SECTOR_SIZE as u32).to_le_bytes());
    put(&mut config, NUM_QUEUES, &queues.to_le_bytes());
    config
}

fn put(config: &mut [u8], at: usize, field: &[u8]) {
    config.iter_mut().skip(at).zip(field).for_each(|(to, from)| *to = *from);
}
