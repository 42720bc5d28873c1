//! Tests of writes of zeros that the disk does not transfer.

use virtio_bindings::virtio_blk::{VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_T_OUT};

use super::super::image::Storage;
use super::super::{BlockOptions, DetectZeroes, Method};
use super::driver::Driver;
use super::{Call, Scripted};
use crate::device::WriteMode;
use xen::Access;

/// What an image is asked for by a write of zeros of a driver with these features.
fn asked(detect_zeroes: DetectZeroes, features: u64, sector: u64, length: u32) -> Vec<Call> {
    asked_of(&Scripted::default(), detect_zeroes, features, sector, length)
}

fn asked_of(
    image: &Scripted,
    detect_zeroes: DetectZeroes,
    features: u64,
    sector: u64,
    length: u32,
) -> Vec<Call> {
    let options = BlockOptions { detect_zeroes, ..BlockOptions::named("xvda") };
    let mut driver = Driver::with_options(image.target(|_| {}), options, features, Method::Ring);
    image.take_calls();
    driver.add_at(VIRTIO_BLK_T_OUT, sector, 0, &[], Some((length, Access::ReadOnly)));
    driver.serve_all();
    image.take_calls()
}

#[test]
fn whole_blocks_of_zeros_alone_are_zeroed() {
    let flush = 1 << VIRTIO_BLK_F_FLUSH;
    let zeroed = |storage| vec![Call::WriteZeroes(4096, 4096, storage)];
    assert_eq!(asked(DetectZeroes::On, flush, 8, 4096), zeroed(Storage::Keep));
    assert_eq!(asked(DetectZeroes::Unmap, flush, 8, 4096), zeroed(Storage::GiveBack));
    let written = |offset| vec![Call::Write(offset, WriteMode::Back)];
    assert_eq!(asked(DetectZeroes::Off, flush, 8, 4096), written(4096));
    assert_eq!(asked(DetectZeroes::On, flush, 9, 4096), written(9 * 512), "not aligned");
    assert_eq!(asked(DetectZeroes::On, flush, 8, 512), written(4096), "a part of a block");
}

#[test]
fn zeros_that_must_be_durable_are_written() {
    let calls = asked(DetectZeroes::On, 0, 8, 4096);
    assert_eq!(calls, [Call::Write(4096, WriteMode::Through)]);
}

#[test]
fn storage_without_a_cache_zeroes_for_a_driver_that_does_not_flush() {
    let image = Scripted::new(|script| script.no_cache = true);
    let calls = asked_of(&image, DetectZeroes::On, 0, 8, 4096);
    assert_eq!(calls, [Call::WriteZeroes(4096, 4096, Storage::Keep), Call::WriteBack, Call::Sync]);
}
