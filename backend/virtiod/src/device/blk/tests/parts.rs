//! Tests of long operations: each call does a part, and the next one continues.

use std::time::Duration;

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
    VIRTIO_BLK_T_WRITE_ZEROES,
};
use vm_memory::Bytes;

use super::super::Block;
use super::super::request::{Range, RangeChange};
use super::driver::{Driver, Memory};
use super::{Call, Progress, SIZE, Scripted, Storage, later, over};
use crate::device::{VirtioDevice, WriteMode};
use xen::Access;

/// The whole disk.
const WHOLE: Range = Range { sector: 0, sectors: 1 << 21, flags: 0 };

#[test]
fn long_change_is_done_in_consecutive_parts() {
    let image = Scripted::default();
    let (_file, mut target) = image.target(|_| {});
    target.start(WriteMode::Back).unwrap();
    let (mut done, mut times) = (0, 0);
    loop {
        times += 1;
        let progress = target.change(RangeChange::Discard, WHOLE, &mut done, &over()).unwrap();
        if progress == Progress::Done {
            break;
        }
        assert_eq!(image.0.lock().unwrap().calls.len(), times, "one part when time is over");
    }
    let mut next = 0;
    for call in image.take_calls() {
        let Call::Discard(offset, length) = call else { panic!("{call:?}") };
        assert_eq!(offset, next);
        next = offset + length;
    }
    assert_eq!((next, done), (1 << 30, 1 << 30));
    assert!(times > 2, "{times}");
}

#[test]
fn change_within_the_deadline_is_done_at_once() {
    let image = Scripted::default();
    let (_file, mut target) = image.target(|_| {});
    target.start(WriteMode::Back).unwrap();
    let progress = target.change(RangeChange::WriteZeroes, WHOLE, &mut 0, &later()).unwrap();
    assert_eq!(progress, Progress::Done);
    let first = Call::WriteZeroes(0, 4 << 20, Storage::Keep);
    assert_eq!(image.take_calls().first(), Some(&first));
}

#[test]
fn write_zeroes_continues_where_the_image_stopped() {
    let image = Scripted::new(|script| script.most_zeros = Some(3 << 20));
    let (_file, mut target) = image.target(|_| {});
    target.start(WriteMode::Back).unwrap();
    let range = Range { sectors: 20 << 11, ..WHOLE };
    let progress = target.change(RangeChange::WriteZeroes, range, &mut 0, &later()).unwrap();
    assert_eq!(progress, Progress::Done);
    let calls = image.take_calls();
    let parts: Vec<_> = calls
        .iter()
        .map(|call| match call {
            Call::WriteZeroes(offset, length, _) => (offset >> 20, length >> 20),
            other => panic!("{other:?}"),
        })
        .collect();
    let expected = [(0, 4), (3, 4), (6, 4), (9, 4), (12, 4), (15, 4), (18, 2)];
    assert_eq!(parts, expected);
}

#[test]
fn nothing_is_written_before_the_image_is_prepared() {
    let image = Scripted::new(|script| {
        let damaged = || Err(std::io::Error::other("damaged"));
        let unfinished = || Ok(Progress::Unfinished);
        script.preparations = [unfinished(), unfinished(), damaged(), damaged()].into();
    });
    let (_file, mut target) = image.target(|_| {});
    target.start(WriteMode::Back).unwrap();
    let mut discard = || {
        let discarded = target.change(RangeChange::Discard, WHOLE, &mut 0, &over());
        discarded.map_err(|error| crate::Causes(&error).to_string())
    };
    assert_eq!(discard(), Ok(Progress::Unfinished));
    assert_eq!(discard(), Ok(Progress::Unfinished));
    for _ in 0..2 {
        assert_eq!(discard(), Err("disk target: cannot access the image: damaged".to_owned()));
    }
    assert_eq!(image.take_calls(), []);
}

fn slow() -> Scripted {
    Scripted::new(|script| script.time = Duration::from_millis(6))
}

#[test]
fn slow_request_yields_between_parts_and_is_answered_once() {
    let image = slow();
    let mut driver = Driver::new(&image);
    driver.add(VIRTIO_BLK_T_WRITE_ZEROES, &[WHOLE, WHOLE], None);
    driver.add(VIRTIO_BLK_T_IN, &[], Some((512, Access::ReadWrite)));
    driver.add(VIRTIO_BLK_T_WRITE_ZEROES, &[Range { sectors: 8, ..WHOLE }], None);
    let counts = driver.serve_all();
    assert_eq!(counts.first(), Some(&0), "the device's thread does not wait");
    assert_eq!(counts.iter().sum::<u32>(), 3, "{counts:?}");
    assert_eq!(driver.statuses(), [0, 0, 0]);
    let calls = image.take_calls();
    let bytes = |calls: &[Call]| -> u64 {
        let lengths = calls.iter().map(|call| match call {
            Call::WriteZeroes(_, length, _) => *length,
            _ => 0,
        });
        lengths.sum()
    };
    assert_eq!(bytes(&calls), (2 << 30) + 4096, "nothing is done twice");
}

#[test]
fn resumed_read_keeps_earlier_data() {
    // Lengths that are copied, not mapped, with the number of parts.
    for (bytes, parts) in [(5 << 18, 2), (2 << 20, 2), (512 << 10, 1)] {
        let image = Scripted::new(|script| script.time = Duration::from_millis(12));
        let mut driver = Driver::new(&image);
        driver.add(VIRTIO_BLK_T_FLUSH, &[], None);
        driver.add(VIRTIO_BLK_T_IN, &[], Some((bytes, Access::ReadWrite)));
        driver.serve_all();
        assert_eq!(driver.statuses(), [0, 0]);
        let reads = |call: &Call| matches!(call, Call::Read(_));
        assert_eq!(image.take_calls().iter().filter(|call| reads(call)).count(), parts);
        let wrong = (0..bytes as usize / 4096).find(|page| {
            let page = driver.guest.slice(driver.pages[5 + page], 0, 4096);
            let mut data = [0u8; 4096];
            page.copy_to(&mut data);
            data != [7; 4096]
        });
        assert_eq!(wrong, None, "a page of a read of {bytes} bytes");
    }
}

#[test]
fn header_is_read_once_for_a_long_request() {
    let image = slow();
    let mut driver = Driver::new(&image);
    driver.add(VIRTIO_BLK_T_WRITE_ZEROES, &[WHOLE], None);
    assert_eq!(driver.serve().count, 0);
    // The guest overwrites the header with that of another request.
    let headers = driver.guest.slice(driver.pages[3], 0, 4096);
    headers.write_obj(VIRTIO_BLK_T_OUT, 0).unwrap();
    headers.write_obj(SIZE, 16).unwrap();
    driver.serve_all();
    assert_eq!(driver.statuses(), [0]);
    assert!(image.take_calls().iter().all(|call| matches!(call, Call::WriteZeroes(..))));
}

#[test]
fn large_transfer_on_slow_storage_is_done_in_parts() {
    for (kind, access) in
        [(VIRTIO_BLK_T_IN, Access::ReadWrite), (VIRTIO_BLK_T_OUT, Access::ReadOnly)]
    {
        let image = slow();
        let mut driver = Driver::new(&image);
        driver.add(kind, &[], Some((4 << 20, access)));
        let counts = driver.serve_all();
        assert_eq!(counts.first(), Some(&0), "the device's thread does not wait");
        assert_eq!((driver.statuses(), counts.iter().sum::<u32>()), (vec![0], 1));
        let offsets: Vec<_> = image
            .take_calls()
            .iter()
            .map(|call| match call {
                Call::Read(offset) | Call::Write(offset, _) => *offset,
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(offsets, [0, 1 << 20, 2 << 20, 3 << 20]);
    }
}

#[test]
fn error_in_a_later_part_fails_the_request() {
    let image = slow();
    image.0.lock().unwrap().writes = [Ok(()), Ok(()), super::failure(libc::EIO)].into();
    let mut driver = Driver::new(&image);
    driver.add(VIRTIO_BLK_T_OUT, &[], Some((4 << 20, Access::ReadOnly)));
    driver.serve_all();
    assert_eq!(driver.statuses(), [VIRTIO_BLK_S_IOERR as u8]);
    assert_eq!(image.take_calls().len(), 3);
}

#[test]
fn image_finishes_each_batch_once() {
    let image = Scripted::default();
    let mut driver = Driver::new(&image);
    for batches in 1..3 {
        (0..3).for_each(|_| driver.add(VIRTIO_BLK_T_OUT, &[], Some((512, Access::ReadOnly))));
        assert_eq!(driver.serve_all().iter().sum::<u32>(), 3);
        assert_eq!(image.0.lock().unwrap().settled, batches);
    }
}

#[test]
fn reset_drops_suspended_requests() {
    let reset_device = |disk: &mut Block| VirtioDevice::<Memory>::reset(disk);
    let reset_queue = |disk: &mut Block| VirtioDevice::<Memory>::reset_queue(disk, 0);
    for reset in [reset_device as fn(&mut Block), reset_queue] {
        let image = slow();
        let mut driver = Driver::new(&image);
        driver.add(VIRTIO_BLK_T_WRITE_ZEROES, &[WHOLE], None);
        assert_eq!(driver.serve().count, 0);
        reset(&mut driver.disk);
        image.take_calls();
        let touched = driver.serve();
        assert_eq!((touched.count, touched.rescheduled.is_empty()), (0, true));
        // The worker may have written back only now.
        assert!(image.take_calls().iter().all(|call| *call == Call::WriteBack));
        assert_eq!(driver.statuses(), [0xff]);
    }
}

#[test]
fn driver_without_flush_gets_write_through() {
    for (features, mode) in [(0, WriteMode::Through), (1 << VIRTIO_BLK_F_FLUSH, WriteMode::Back)] {
        let image = Scripted::default();
        let mut driver = Driver::with_features(&image, features);
        driver.add(VIRTIO_BLK_T_OUT, &[], Some((512, Access::ReadOnly)));
        driver.serve_all();
        assert_eq!(driver.statuses(), [0]);
        assert_eq!(image.take_calls(), [Call::Write(0, mode)]);
    }
}
