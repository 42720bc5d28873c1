//! Rules of sharing a file.

use std::fs;

use tempfile::{NamedTempFile, TempDir};

use super::lock::{LockState, LockedFile};
use super::*;

const READS: Usage = Usage { access: AccessMode::ReadOnly, sharing: Sharing::Safe };
const WRITES: Usage = Usage { access: AccessMode::ReadWrite, sharing: Sharing::Safe };
const FORCED: Usage = Usage { access: AccessMode::ReadWrite, sharing: Sharing::Forced };

fn owner(domain: u16) -> Owner {
    Owner { domain, number: 51712, vdev: "xvda".to_owned(), uuid: None }
}

fn of_guest(domain: u16, uuid: &str) -> Owner {
    Owner { uuid: Some(uuid.to_owned()), ..owner(domain) }
}

/// A sysfs without loop devices.
fn sysfs() -> TempDir {
    let sysfs = tempfile::tempdir().unwrap();
    fs::create_dir(sysfs.path().join("block")).unwrap();
    sysfs
}

fn add_loop_device(sysfs: &TempDir, file: &Path, read_only: &str) {
    let device = sysfs.path().join("block/loop5");
    fs::create_dir_all(device.join("loop")).unwrap();
    fs::write(device.join("loop/backing_file"), format!("{}\n", file.display())).unwrap();
    fs::write(device.join("ro"), read_only).unwrap();
}

struct Images {
    registry: ImageRegistry,
    sysfs: TempDir,
    file: NamedTempFile,
}

impl Images {
    fn new() -> Self {
        let sysfs = sysfs();
        let registry = ImageRegistry::new(sysfs.path().to_owned());
        Self { registry, sysfs, file: NamedTempFile::new().unwrap() }
    }

    fn claim(&self, usage: Usage, owner: &Owner) -> Result<Claim, ClaimError> {
        self.registry.claim(self.file.path(), usage, owner)
    }

    fn refusal(&self, usage: Usage, owner: &Owner) -> String {
        self.claim(usage, owner).err().unwrap().to_string()
    }
}

#[test]
fn file_has_one_writer_or_many_readers() {
    let images = Images::new();
    let first = images.claim(WRITES, &owner(7)).unwrap();
    for usage in [READS, WRITES, FORCED] {
        let reason = images.refusal(usage, &owner(8));
        assert!(reason.contains("domain 7 uses it for xvda and may write it"), "{reason}");
    }
    // The same guest cannot claim it twice either.
    images.refusal(READS, &owner(7));
    drop(first);
    let _first = images.claim(READS, &owner(7)).unwrap();
    let _second = images.claim(READS, &owner(8)).unwrap();
    let reason = images.refusal(WRITES, &owner(9));
    assert!(reason.contains("domain 7 uses it for xvda; only a file"), "{reason}");
}

#[test]
fn file_identity_does_not_depend_on_its_name() {
    let images = Images::new();
    let directory = tempfile::tempdir().unwrap();
    let (hard, soft) = (directory.path().join("hard"), directory.path().join("soft"));
    fs::hard_link(images.file.path(), &hard).unwrap();
    std::os::unix::fs::symlink(images.file.path(), &soft).unwrap();
    let _first = images.claim(WRITES, &owner(1)).unwrap();
    for name in [hard, soft] {
        assert!(images.registry.claim(&name, WRITES, &owner(2)).is_err(), "{name:?}");
    }
}

#[test]
fn forced_sharing_needs_force_from_all_users() {
    let images = Images::new();
    let _first = images.claim(FORCED, &owner(1)).unwrap();
    let _second = images.claim(FORCED, &owner(2)).unwrap();
    images.refusal(WRITES, &owner(3));
    images.refusal(READS, &owner(3));
    // Other programs see that it is written, and are not kept from it otherwise.
    let mut other = LockedFile::new(images.file.reopen().unwrap());
    assert!(other.change(READS.locks()).is_err());
    other.change(FORCED.locks()).unwrap();
}

#[test]
fn forced_sharing_ignores_locks_of_other_programs() {
    let images = Images::new();
    let mut other = LockedFile::new(images.file.reopen().unwrap());
    other.change(WRITES.locks()).unwrap();
    let reason = images.refusal(WRITES, &owner(1));
    let words = ["another program", "Failed to get \"write\" lock", "fuser -v"];
    words.iter().for_each(|word| assert!(reason.contains(word), "{word:?} is not in {reason:?}"));
    let reason = images.refusal(READS, &owner(1));
    assert!(reason.contains("Failed to get shared \"write\" lock"), "{reason}");
    let _claim = images.claim(FORCED, &owner(1)).unwrap();
}

#[test]
fn locks_are_the_union_of_all_users_and_end_with_the_last() {
    let images = Images::new();
    let mut other = LockedFile::new(images.file.reopen().unwrap());
    let mut conflict = |usage: Usage| {
        let outcome = other.change(usage.locks());
        other.change(LockState::default()).unwrap();
        outcome.is_err()
    };
    let first = images.claim(WRITES, &of_guest(1, "one")).unwrap();
    let second = images.claim(READS, &of_guest(2, "one")).unwrap();
    assert!(conflict(READS) && conflict(WRITES));
    drop(first);
    assert!(!conflict(READS) && conflict(WRITES));
    let third = images.claim(WRITES, &of_guest(3, "one")).unwrap();
    assert!(conflict(READS) && conflict(WRITES));
    drop(second);
    assert!(conflict(READS) && conflict(WRITES));
    drop(third);
    assert!(!conflict(READS) && !conflict(WRITES));
}

#[test]
fn migrating_guest_uses_its_disk_in_one_domain() {
    let images = Images::new();
    let (here, there) = (of_guest(1, "one"), of_guest(2, "one"));
    let first = images.claim(WRITES, &here).unwrap();
    assert_eq!(first.activate(), Ok(Handover::None));
    let second = images.claim(WRITES, &there).unwrap();
    images.refusal(WRITES, &of_guest(3, "other"));
    images.refusal(WRITES, &owner(3));
    assert_eq!(second.activate(), Err(here.clone()));
    assert_eq!(first.activate(), Ok(Handover::None));
    first.deactivate();
    assert_eq!(second.activate(), Ok(Handover::FromOther));
    assert_eq!(first.activate(), Err(there));
    // The guest returns, as after a failed migration.
    drop(second);
    assert_eq!(first.activate(), Ok(Handover::FromOther));
    assert_eq!(first.activate(), Ok(Handover::None));
    // One domain cannot claim it twice.
    images.refusal(WRITES, &here);
}

#[test]
fn readers_are_active_together() {
    let images = Images::new();
    for owners in [[owner(1), owner(2)], [of_guest(1, "one"), of_guest(2, "one")]] {
        let [first, second] = owners.map(|owner| images.claim(READS, &owner).unwrap());
        assert_eq!(first.activate(), Ok(Handover::None));
        assert_eq!(second.activate(), Ok(Handover::None));
    }
}

#[test]
fn file_behind_a_loop_device_needs_two_readers() {
    let images = Images::new();
    add_loop_device(&images.sysfs, images.file.path(), "0\n");
    for usage in [READS, WRITES] {
        let reason = images.refusal(usage, &owner(1));
        let words = ["behind /dev/loop5", "losetup -d /dev/loop5"];
        words.iter().for_each(|word| assert!(reason.contains(word), "{reason}"));
    }
    drop(images.claim(FORCED, &owner(1)).unwrap());
    add_loop_device(&images.sysfs, images.file.path(), "1\n");
    images.refusal(WRITES, &owner(1));
    drop(images.claim(READS, &owner(1)).unwrap());
    add_loop_device(&images.sysfs, Path::new("/nonexistent"), "0\n");
    drop(images.claim(WRITES, &owner(1)).unwrap());
}

#[test]
fn claim_of_a_loop_device_includes_its_file() {
    let images = Images::new();
    add_loop_device(&images.sysfs, images.file.path(), "0\n");
    fs::create_dir_all(images.sysfs.path().join("dev/block")).unwrap();
    let link = images.sysfs.path().join("dev/block/7:5");
    std::os::unix::fs::symlink("../../block/loop5", link).unwrap();
    // A claim of the device itself; the test checks the claim of the file behind it.
    let device = |user| Claim {
        path: "/dev/loop5".into(),
        file: FileId::Device(nix::sys::stat::makedev(7, 5)),
        access: AccessMode::ReadWrite,
        entry: Arc::default(),
        durability: Arc::default(),
        user,
        mark: IoMark::of(&owner(1)),
    };
    let behind = |owner: &Owner| images.registry.claim_behind(&device(0), WRITES, owner);
    let first = behind(&owner(1)).unwrap().unwrap();
    // Another partition of the same loop device.
    let second = behind(&owner(2)).unwrap().unwrap();
    let reason = images.refusal(WRITES, &owner(3));
    assert!(reason.contains("domain 1 uses it for xvda"), "{reason}");
    drop((first, second));
}

#[test]
fn special_files_are_refused_without_being_opened() {
    let images = Images::new();
    let directory = tempfile::tempdir().unwrap();
    let fifo = directory.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let socket = directory.path().join("socket");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let others = [fifo, socket, directory.path().to_owned(), "/dev/null".into()];
    for path in others {
        let refused = images.registry.claim(&path, WRITES, &owner(1)).err().unwrap();
        assert!(matches!(refused, ClaimError::Kind { .. }), "{path:?}: {refused}");
    }
    let missing = images.registry.claim(Path::new("/nonexistent"), WRITES, &owner(1));
    assert!(matches!(missing.err().unwrap(), ClaimError::Open(_)));
}

#[test]
fn claimed_file_is_open_with_the_claimed_access() {
    let images = Images::new();
    let here = images.claim(WRITES, &of_guest(1, "one")).unwrap();
    let there = images.claim(READS, &of_guest(2, "one")).unwrap();
    let can_write = |claim: &Claim| {
        use std::os::unix::fs::FileExt;
        claim.file().unwrap().write_at(b"x", 0).is_ok()
    };
    assert!(can_write(&here) && !can_write(&there));
    drop(here);
    let back = images.claim(WRITES, &of_guest(3, "one")).unwrap();
    assert!(can_write(&back) && !can_write(&there));
}
