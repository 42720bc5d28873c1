//! Flushes, write-through, and failures of both.

use std::collections::VecDeque;
use std::path::Path;
use std::time::Duration;

use tempfile::NamedTempFile;

use super::super::claim::{Owner, Sharing};
use super::super::progress::Progress;
use super::super::request::{Range, RangeChange};
use super::super::target::{Discard, Target, TargetError, TargetOptions};
use super::{Call, Scripted, Storage, failure, later, over};
use crate::device::{Gather, WriteMode};

const RANGE: Range = Range { sector: 8, sectors: 8, flags: 1 };

fn change(target: &mut Target, change: RangeChange) -> Result<(), TargetError> {
    target.change(change, RANGE, &mut 0, &later()).map(drop)
}

fn write(target: &mut Target) -> Result<(), TargetError> {
    target.write_to_image(0, &Gather::of(&mut [0; 512]))
}

#[test]
fn failed_sync_persists_until_the_target_is_reopened() {
    let image = Scripted::new(|script| script.syncs.push_back(failure(libc::EIO)));
    let (file, mut target) = image.target(|_| {});
    target.start(WriteMode::Back).unwrap();
    assert!(matches!(target.flush(), Err(TargetError::Sync(_))));
    for _ in 0..3 {
        assert!(matches!(target.flush(), Err(TargetError::Lost)));
    }
    // Another driver of the same guest gets the error too.
    target.stop().unwrap();
    target.start(WriteMode::Back).unwrap();
    assert!(matches!(target.flush(), Err(TargetError::Lost)));
    drop(target);
    let mut target = Target::open(TargetOptions::for_test(file.path())).unwrap();
    target.start(WriteMode::Back).unwrap();
    target.flush().unwrap();
}

/// A device that uses the file at `path`: with a guest's UUID, or by force.
fn device(path: &Path, domain: u16, vm: Option<&str>) -> Target {
    let sharing = if vm.is_some() { Sharing::Safe } else { Sharing::Forced };
    let owner =
        Owner { domain, number: 51712, vdev: "xvda".to_owned(), uuid: vm.map(str::to_owned) };
    let options = TargetOptions { sharing, owner, ..TargetOptions::for_test(path) };
    Target::open(options).unwrap()
}

/// Devices that share one file by force, with this image.
fn devices<const N: usize>(path: &Path, image: &Scripted, modes: [WriteMode; N]) -> [Target; N] {
    modes.map(|mode| {
        let mut target = device(path, 1, None);
        target.start(mode).unwrap();
        target.with_image(Box::new(image.clone()))
    })
}

/// A file, and an image whose first sync fails.
fn failing() -> (NamedTempFile, Scripted) {
    let file = NamedTempFile::new().unwrap();
    file.as_file().set_len(1 << 20).unwrap();
    (file, Scripted::new(|script| script.syncs.push_back(failure(libc::EIO))))
}

#[test]
fn failed_sync_reaches_all_users_until_the_last_is_gone() {
    let (file, image) = failing();
    let [mut first, mut second] = devices(file.path(), &image, [WriteMode::Back; 2]);
    assert!(matches!(first.flush(), Err(TargetError::Sync(_))));
    assert!(matches!(second.flush(), Err(TargetError::Lost)));
    let [mut third] = devices(file.path(), &image, [WriteMode::Through]);
    assert!(matches!(change(&mut third, RangeChange::Discard), Err(TargetError::Lost)));
    drop((first, second));
    assert!(matches!(third.flush(), Err(TargetError::Lost)));
    drop(third);
    let [mut next] = devices(file.path(), &image, [WriteMode::Back]);
    next.flush().unwrap();
}

#[test]
fn failed_write_through_reaches_all_users() {
    let (file, image) = failing();
    image.0.lock().unwrap().writes.push_back(failure(libc::EIO));
    let modes = [WriteMode::Through, WriteMode::Back];
    let [mut first, mut second] = devices(file.path(), &image, modes);
    write(&mut first).unwrap_err();
    assert!(matches!(second.flush(), Err(TargetError::Lost)));
}

#[test]
fn failed_sync_reaches_the_domain_that_takes_over() {
    let (file, image) = failing();
    let [from, mut to] = [1, 2].map(|domain| device(file.path(), domain, Some("one")));
    let mut from = from.with_image(Box::new(image));
    from.start(WriteMode::Back).unwrap();
    assert!(matches!(from.flush(), Err(TargetError::Sync(_))));
    from.stop().unwrap();
    to.start(WriteMode::Back).unwrap();
    assert!(matches!(to.flush(), Err(TargetError::Lost)));
}

#[test]
fn concurrent_flushes_all_fail_if_one_fails() {
    let (file, image) = failing();
    image.0.lock().unwrap().time = Duration::from_millis(100);
    let devices = devices(file.path(), &image, [WriteMode::Back; 2]);
    let outcomes = std::thread::scope(|scope| {
        let threads = devices.map(|mut target| scope.spawn(move || target.flush()));
        threads.map(|thread| thread.join().unwrap())
    });
    assert!(outcomes.iter().all(Result::is_err), "{outcomes:?}");
}

#[test]
fn failed_write_back_can_be_retried() {
    let image = Scripted::new(|script| script.write_backs.push_back(failure(libc::ENOSPC)));
    let (_file, mut target) = image.target(|_| {});
    target.start(WriteMode::Back).unwrap();
    assert!(matches!(target.flush(), Err(TargetError::Io(_))));
    target.flush().unwrap();
    assert_eq!(image.take_calls(), [Call::WriteBack, Call::WriteBack, Call::Sync]);
}

#[test]
fn driver_without_flush_gets_durable_writes() {
    let image = Scripted::default();
    let (_file, mut target) = image.target(|_| {});
    target.start(WriteMode::Through).unwrap();
    write(&mut target).unwrap();
    assert_eq!(image.take_calls(), [Call::Write(0, WriteMode::Through)]);
    change(&mut target, RangeChange::Discard).unwrap();
    assert_eq!(image.take_calls(), [Call::Discard(4096, 4096), Call::WriteBack, Call::Sync]);
    change(&mut target, RangeChange::WriteZeroes).unwrap();
    let zeroes = Call::WriteZeroes(4096, 4096, Storage::GiveBack);
    assert_eq!(image.take_calls(), [zeroes, Call::WriteBack, Call::Sync]);
    target.start(WriteMode::Back).unwrap();
    write(&mut target).unwrap();
    assert_eq!(image.take_calls(), [Call::Write(0, WriteMode::Back)]);
}

#[test]
fn driver_without_flush_cannot_write_after_a_failure() {
    for (errno, succeeds) in [(libc::ENOSPC, true), (libc::EDQUOT, true), (libc::EIO, false)] {
        let image = Scripted::new(|script| script.writes = VecDeque::from([failure(errno)]));
        let (_file, mut target) = image.target(|_| {});
        target.start(WriteMode::Through).unwrap();
        assert!(matches!(write(&mut target), Err(TargetError::Io(_))));
        assert_eq!(change(&mut target, RangeChange::Discard).is_ok(), succeeds, "{errno}");
        assert_eq!(target.flush().is_ok(), succeeds, "{errno}");
    }
    // A driver with flush gets the error from its flushes only.
    let image = Scripted::new(|script| script.syncs.push_back(failure(libc::EIO)));
    let (_file, mut target) = image.target(|_| {});
    target.start(WriteMode::Back).unwrap();
    target.flush().unwrap_err();
    change(&mut target, RangeChange::Discard).unwrap();
    target.flush().unwrap_err();
}

#[test]
fn storage_is_deallocated_only_if_both_sides_allow_it() {
    let cases = [
        (Discard::Allowed, 1, Storage::GiveBack),
        (Discard::Allowed, 0, Storage::Keep),
        (Discard::Refused, 1, Storage::Keep),
        (Discard::Refused, 0, Storage::Keep),
    ];
    for (discard, flags, storage) in cases {
        let image = Scripted::default();
        let (_file, mut target) = image.target(|options| options.discard = discard);
        target.start(WriteMode::Back).unwrap();
        let range = Range { flags, ..RANGE };
        let zeroed = target.change(RangeChange::WriteZeroes, range, &mut 0, &later());
        zeroed.map(drop).unwrap();
        assert_eq!(image.take_calls(), [Call::WriteZeroes(4096, 4096, storage)]);
        change(&mut target, RangeChange::Discard).unwrap();
        let discards = image.take_calls().len();
        assert_eq!(discards, usize::from(discard == Discard::Allowed), "{discard:?}");
    }
}

#[test]
fn failed_sync_of_what_bypassed_no_cache_reaches_all_users() {
    type Action = fn(&mut Target) -> Result<(), TargetError>;
    let zero: Action = |target| change(target, RangeChange::WriteZeroes);
    for action in [zero, write] {
        let (file, image) = failing();
        image.0.lock().unwrap().is_unsynced = true;
        let [mut first, mut second] = devices(file.path(), &image, [WriteMode::Back; 2]);
        assert!(matches!(action(&mut first), Err(TargetError::Sync(_))));
        assert!(matches!(first.flush(), Err(TargetError::Lost)));
        assert!(matches!(second.flush(), Err(TargetError::Lost)));
    }
}

#[test]
fn zeros_are_synced_before_other_requests_have_a_turn() {
    let image = Scripted::new(|script| {
        script.is_unsynced = true;
        script.most_zeros = Some(512);
    });
    let (_file, mut target) = image.target(|_| {});
    target.start(WriteMode::Back).unwrap();
    let unfinished = target.change(RangeChange::WriteZeroes, RANGE, &mut 0, &over()).unwrap();
    assert_eq!(unfinished, Progress::Unfinished);
    assert!(matches!(image.take_calls()[..], [Call::WriteZeroes(..), Call::WriteBack, Call::Sync]));
}

#[test]
fn written_through_zeros_are_synced_once() {
    let image = Scripted::new(|script| script.is_unsynced = true);
    let (_file, mut target) = image.target(|_| {});
    target.start(WriteMode::Through).unwrap();
    change(&mut target, RangeChange::WriteZeroes).unwrap();
    write(&mut target).unwrap();
    let syncs = image.take_calls().into_iter().filter(|call| *call == Call::Sync);
    assert_eq!(syncs.count(), 1);
}

#[test]
fn full_storage_is_a_loss_if_only_a_sync_sees_it() {
    let image = Scripted::new(|script| {
        script.syncs.push_back(failure(libc::ENOSPC));
        script.is_unsynced = true;
    });
    let (_file, mut target) = image.target(|_| {});
    target.start(WriteMode::Back).unwrap();
    assert!(matches!(write(&mut target), Err(TargetError::Sync(_))));
    assert!(matches!(target.flush(), Err(TargetError::Lost)));
}
