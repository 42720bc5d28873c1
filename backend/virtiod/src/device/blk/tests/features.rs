//! The features that a disk offers, depending on its target.

use std::sync::Arc;

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_WRITE_ZEROES,
    VIRTIO_BLK_T_OUT,
};

use super::super::target::{AccessMode, Caching};
use super::super::{Block, BlockOptions};
use super::driver::Driver;
use super::{Call, Scripted};
use crate::device::{VirtioDevice, WriteMode};
use crate::dma::DmaMemory;
use crate::dma::grants::GrantPlatform;
use crate::stats::DeviceStats;
use uring::engine::Method;
use xen::Access;
use xen_sim::SimGrants;

type Memory = DmaMemory<GrantPlatform<SimGrants>>;

/// Offset of `write_zeroes_may_unmap` in the configuration space (virtio 1.3 section 5.2.4).
const WRITE_ZEROES_MAY_UNMAP: usize = 56;
/// Offset of `num_queues`.
const NUM_QUEUES: usize = 34;

const DISCARD: u64 = 1 << VIRTIO_BLK_F_DISCARD;
const ZEROES: u64 = 1 << VIRTIO_BLK_F_WRITE_ZEROES;
const READ_ONLY: u64 = 1 << VIRTIO_BLK_F_RO;

#[test]
fn offered_features_follow_the_target_and_discard_is_always_accepted() {
    let cases = [
        (AccessMode::ReadWrite, false, DISCARD | ZEROES, DISCARD | ZEROES),
        (AccessMode::ReadWrite, true, ZEROES, DISCARD | ZEROES),
        (AccessMode::ReadOnly, false, READ_ONLY, READ_ONLY),
    ];
    for (mode, no_discard, offered, accepted) in cases {
        let image = Scripted::new(|script| script.no_discard = no_discard);
        let (_file, target) = image.target(|options| options.mode = mode);
        let stats = Arc::new(DeviceStats::default());
        let disk = Block::new(target, BlockOptions::named("xvda"), stats).unwrap();
        let these = DISCARD | ZEROES | READ_ONLY;
        assert_eq!(VirtioDevice::<Memory>::features(&disk) & these, offered);
        assert_eq!(VirtioDevice::<Memory>::accepted_features(&disk) & these, accepted);
        assert_ne!(VirtioDevice::<Memory>::features(&disk) & 1 << VIRTIO_BLK_F_FLUSH, 0);
        let may_unmap = VirtioDevice::<Memory>::config(&disk)[WRITE_ZEROES_MAY_UNMAP];
        assert_eq!(may_unmap, u8::from(!no_discard));
    }
}

#[test]
fn storage_without_a_cache_offers_no_flush_but_accepts_it() {
    for no_cache in [true, false] {
        let image = Scripted::new(|script| script.no_cache = no_cache);
        let (_file, target) = image.target(|_| {});
        let stats = Arc::new(DeviceStats::default());
        let disk = Block::new(target, BlockOptions::named("xvda"), stats).unwrap();
        let flush = 1 << VIRTIO_BLK_F_FLUSH;
        assert_eq!(VirtioDevice::<Memory>::features(&disk) & flush == 0, no_cache);
        assert_ne!(VirtioDevice::<Memory>::accepted_features(&disk) & flush, 0);
    }
}

#[test]
fn write_through_offers_no_flush_and_writes_so_for_every_driver() {
    let image = Scripted::default();
    let (file, target) = image.target(|options| options.caching = Caching::WriteThrough);
    let stats = Arc::new(DeviceStats::default());
    let disk = Block::new(target, BlockOptions::named("xvda"), stats).unwrap();
    let flush = 1 << VIRTIO_BLK_F_FLUSH;
    assert_eq!(VirtioDevice::<Memory>::features(&disk) & flush, 0);
    drop((disk, file));
    // A driver that negotiated it elsewhere.
    let target = image.target(|options| options.caching = Caching::WriteThrough);
    let mut driver = Driver::with_target(target, flush, Method::Ring);
    driver.add_at(VIRTIO_BLK_T_OUT, 0, 0, &[], Some((512, Access::ReadOnly)));
    driver.serve_all();
    let calls = image.take_calls();
    assert!(calls.contains(&Call::Write(0, WriteMode::Through)), "{calls:?}");
}

#[test]
fn disk_offers_as_many_queues_as_configured() {
    let image = Scripted::default();
    let (_file, target) = image.target(|_| {});
    let options = BlockOptions { queues: 2, ..BlockOptions::named("xvda") };
    let disk = Block::new(target, options, Arc::default()).unwrap();
    assert_eq!(VirtioDevice::<Memory>::queue_sizes(&disk).len(), 2);
    assert_eq!(VirtioDevice::<Memory>::config(&disk)[NUM_QUEUES..NUM_QUEUES + 2], [2, 0]);
}
