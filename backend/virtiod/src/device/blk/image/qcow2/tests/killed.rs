//! Tests of images whose daemon was killed: the next daemon serves them.

use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};

use imago::qcow2::Qcow2;
use imago::{FormatCreateBuilder, Storage as _, StorageCreateOptions};

use super::*;
use crate::device::blk::claim::Owner;
use crate::device::blk::sample::{compressed, snapshotted};

/// Creates a new image with the library.
fn create(path: &Path, cluster_size: usize, size: u64) {
    let file = File::create_open(StorageCreateOptions::new().filename(path)).unwrap();
    let builder = Qcow2::<File, FormatAccess<File>>::create_builder(file);
    builder.cluster_size(cluster_size).size(size).create().unwrap();
}

/// The tested images, each in a directory of its own.
pub(super) fn images() -> Vec<(&'static str, TempDir, PathBuf)> {
    let created = |cluster_size, size| {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("disk.qcow2");
        create(&path, cluster_size, size);
        (directory, path)
    };
    let version_2 = ImageBytes::new(Shape { version: 2, ..Shape::default() });
    let named = [
        ("clusters of 512 bytes", created(512, 4 << 20)),
        ("clusters of 4 KiB", created(4096, 32 << 20)),
        ("clusters of 64 KiB", created(65536, 4 << 30)),
        ("a snapshot", store(&snapshotted())),
        ("compressed clusters", store(&compressed())),
        ("version 2", store(&version_2)),
    ];
    named.map(|(name, (directory, path))| (name, directory, path)).into()
}

pub(super) fn open_path(path: &Path) -> io::Result<(Qcow2Image, DiskFiles)> {
    let options = TargetOptions::for_test(path);
    let mut files = DiskFiles::claim_here(&options).unwrap();
    let image =
        Qcow2Image::open_within(&options, &mut files, &Deadline::after(Duration::from_secs(60)))?;
    Ok((image, files))
}

/// Number of uncounted clusters of an image.
fn uncounted(image: &Qcow2Image) -> usize {
    match &image.soundness {
        Soundness::Sound => 0,
        Soundness::Unknown(check) => check.uncounted(),
        Soundness::Damaged(why) => panic!("{why}"),
    }
}

/// A copy of an image as a kill leaves it.
pub(super) fn copy(path: &Path) -> (TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let to = directory.path().join("disk.qcow2");
    fs::copy(path, &to).unwrap();
    (directory, to)
}

/// Opens an image as a kill left it, writes it, and opens it again; returns the number of uncounted
/// clusters.
fn reopen(path: &Path, what: &str) -> usize {
    let (mut image, files) = open_path(path).unwrap_or_else(|error| panic!("{what}: {error}"));
    let count = uncounted(&image);
    prepare(&mut image).unwrap();
    let end = image.size();
    for offset in [0, end / 3 / 512 * 512, end - 4096] {
        write(&mut image, offset, 4096, 0x77);
    }
    image.write_back().unwrap();
    drop((image, files));
    let (mut image, _files) = open_path(path).unwrap_or_else(|error| panic!("{what}: {error}"));
    assert_eq!(uncounted(&image), 0, "{what}");
    let mut bytes = [0; 4096];
    image.read(0, &Scatter::of(&mut bytes)).unwrap();
    assert!(bytes == [0x77; 4096], "{what}");
    count
}

fn prepare(image: &mut Qcow2Image) -> io::Result<()> {
    let progress = image.prepare_to_write(&Deadline::after(Duration::from_secs(60)))?;
    assert_eq!(progress, Progress::Done);
    Ok(())
}

fn write(image: &mut Qcow2Image, offset: u64, length: u64, value: u8) {
    let mut bytes = vec![value; length as usize];
    image.write(offset, &Gather::of(&mut bytes), WriteMode::Back).unwrap();
}

struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }

    /// Changes an image at a random location; returns a description of the change.
    fn change(&mut self, image: &mut Qcow2Image) -> String {
        let sectors = image.size() / 512;
        let sector = self.below(sectors);
        let count = (1 + self.below(300)).min(sectors - sector);
        let (offset, length) = (sector * 512, count * 512);
        let what = self.below(6);
        match what {
            0..=2 => write(image, offset, length, what as u8 + 1),
            3 => image.discard(offset, length).unwrap(),
            _ => {
                let storage = if what == 4 { Storage::Keep } else { Storage::GiveBack };
                image.write_zeroes(offset, length, storage).map(drop).unwrap();
            }
        }
        format!("operation {what} on {count} sectors from {sector} on")
    }
}

#[test]
fn image_is_sound_between_batches() {
    for (name, _directory, path) in images() {
        let (mut image, _files) = open_path(&path).unwrap();
        let mut random = Random(7919);
        for step in 0..30 {
            let what = random.change(&mut image);
            let what = format!("{name}, step {step}: {what}");
            image.finish_batch().unwrap();
            let (_directory, copy) = copy(&path);
            assert_eq!(reopen(&copy, &what), 0, "{what}");
        }
    }
}

#[test]
fn image_killed_inside_a_batch_is_repaired_before_writing() {
    let mut repaired = 0;
    for (name, _directory, path) in images() {
        let (mut image, _files) = open_path(&path).unwrap();
        let mut random = Random(104_729);
        for step in 0..30 {
            let what = random.change(&mut image);
            let (_directory, copy) = copy(&path);
            repaired += reopen(&copy, &format!("{name}, step {step}: {what}"));
            if random.below(8) == 0 {
                image.finish_batch().unwrap();
            }
        }
    }
    assert!(repaired > 0, "nothing was left uncounted");
}

/// A change of an image, with its name.
type Change = (&'static str, fn(&mut Qcow2Image));

#[test]
fn freed_cluster_becomes_a_table_only_after_its_old_use_is_erased() {
    // A level 2 table maps 32 KiB.
    let changes: [Change; 3] = [
        ("a write after a discard", |image| {
            image.discard(0, 8192).unwrap();
            write(image, 1 << 20, 512, 2);
        }),
        ("a discard over two tables", |image| image.discard(0, 64 << 10).unwrap()),
        ("zeros over two tables", |image| {
            image.write_zeroes(0, 64 << 10, Storage::GiveBack).map(drop).unwrap();
        }),
    ];
    for (what, change) in changes {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("disk.qcow2");
        create(&path, 512, 4 << 20);
        let (mut image, _files) = open_path(&path).unwrap();
        write(&mut image, 0, 8192, 1);
        image.finish_batch().unwrap();
        change(&mut image);
        let (_directory, copy) = copy(&path);
        reopen(&copy, what);
    }
}

#[test]
fn data_written_before_a_kill_persists() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("disk.qcow2");
    create(&path, 4096, 32 << 20);
    let (mut image, _files) = open_path(&path).unwrap();
    let offsets: Vec<u64> = (0..15).map(|number| number * (2 << 20) + 4096).collect();
    for offset in &offsets {
        write(&mut image, *offset, 8192, (*offset >> 20) as u8 + 1);
        image.finish_batch().unwrap();
    }
    let (_directory, copy) = copy(&path);
    let (mut image, _files) = open_path(&copy).unwrap();
    for offset in offsets {
        let mut bytes = [0; 8192];
        image.read(offset, &Scatter::of(&mut bytes)).unwrap();
        assert!(bytes == [(offset >> 20) as u8 + 1; 8192], "at {offset}");
    }
}

/// The environment variable with the image's path, if the test below runs as the program to be
/// killed.
const VICTIM: &str = "XEN_VIRTIOD_TEST_VICTIM";

/// Changes an image without end.
fn change_for_ever(path: &Path) -> ! {
    let (mut image, _files) = open_path(path).unwrap();
    prepare(&mut image).unwrap();
    let mut random = Random(u64::from(std::process::id()) * 31 + 1);
    loop {
        random.change(&mut image);
        if random.below(4) == 0 {
            image.finish_batch().unwrap();
        }
    }
}

#[test]
#[ignore = "a starting program holds other tests' locks for a moment: run it alone"]
fn image_of_a_program_killed_at_any_moment_is_served_again() {
    if let Some(path) = std::env::var_os(VICTIM) {
        change_for_ever(Path::new(&path));
    }
    let module = module_path!().split_once("::").unwrap().1;
    let name = format!("{module}::image_of_a_program_killed_at_any_moment_is_served_again");
    let times = std::env::var("XEN_VIRTIOD_TEST_KILLS").map_or(2, |times| times.parse().unwrap());
    for round in 0..times {
        for (what, _directory, path) in images() {
            let mut victim = Command::new(std::env::current_exe().unwrap())
                .args([&name, "--exact", "--ignored"])
                .env(VICTIM, &path)
                .stdout(Stdio::null())
                .spawn()
                .unwrap();
            std::thread::sleep(Duration::from_micros(30_000 + round * 7919 % 50_000));
            victim.kill().unwrap();
            assert_eq!(victim.wait().unwrap().signal(), Some(libc::SIGKILL), "{what}");
            reopen(&path, what);
        }
    }
}

/// Opens an image with uncounted clusters; returns their number, the repaired file and the log.
fn repair(bytes: &ImageBytes) -> (usize, Vec<u8>, String) {
    let (_directory, path) = store(bytes);
    let (mut image, _files) = open_path(&path).unwrap();
    let count = uncounted(&image);
    assert!(fs::read(&path).unwrap() == bytes.bytes, "opening changed the image");
    let log = logged(|| prepare(&mut image).unwrap());
    (count, fs::read(&path).unwrap(), log)
}

#[test]
fn uncounted_clusters_of_a_kill_are_repaired_and_logged() {
    for refcount_order in 0..=6 {
        let shape = Shape { refcount_order, ..Shape::default() };
        let sound = ImageBytes::new(shape).bytes;
        for clusters in
            [&[position::L2][..], &[position::DATA + 1], &[position::L2, position::DATA]]
        {
            let mut image = ImageBytes::new(shape);
            clusters.iter().for_each(|cluster| image.set_refcount(*cluster, 0));
            let (count, bytes, log) = repair(&image);
            assert_eq!(count, clusters.len());
            assert!(bytes == sound, "counts of 2^{refcount_order} bits, {clusters:?}");
            assert!(log.contains("not closed properly"), "{log}");
            assert!(log.contains(&format!("clusters={}", clusters.len())), "{log}");
        }
    }
    let (count, _, log) = repair(&ImageBytes::new(Shape::default()));
    assert_eq!((count, log.as_str()), (0, ""));
}

#[test]
fn refcount_block_may_be_uncounted_in_another() {
    let shape = Shape { cluster_bits: 9, size: 32 << 10, ..Shape::default() };
    let mut image = ImageBytes::new(shape);
    let block = image.add_clusters(1);
    let mut inside = ImageBytes::new(shape);
    inside.add_clusters(1);
    for (image, count) in [(&mut image, 0), (&mut inside, 1)] {
        image.put_u64(image.at(position::REFCOUNT_TABLE) + 8, image.at(block));
        image.set_refcount(block, count);
    }
    let (count, bytes, _) = repair(&image);
    assert_eq!(count, 1);
    assert!(bytes == inside.bytes);
}

/// Checks that the image is refused with the usual advice, and returns the error.
fn refused(bytes: &ImageBytes) -> String {
    let error = refusal(bytes, |path| format!("qemu-img check -r all {path:?}"));
    assert!(error.contains("it is damaged"), "{error}");
    error
}

#[test]
fn uncounted_clusters_that_no_kill_leaves_are_damage() {
    // Without the mark of a single use, or used twice.
    let mut unmarked = ImageBytes::new(Shape::default());
    unmarked.put_u64(unmarked.l2_entry(0), unmarked.at(position::DATA));
    unmarked.set_refcount(position::DATA, 0);
    refused(&unmarked);
    let mut table = ImageBytes::new(Shape::default());
    table.put_u64(table.at(position::L1), table.at(position::L2));
    table.set_refcount(position::L2, 0);
    refused(&table);
    let mut twice = ImageBytes::new(Shape::default());
    twice.put_u64(twice.l2_entry(9), COPIED | twice.at(position::DATA));
    twice.set_refcount(position::DATA, 0);
    refused(&twice);
    let mut overlap = ImageBytes::new(Shape::default());
    overlap.put_u64(overlap.l2_entry(9), COPIED | overlap.at(position::L2));
    overlap.set_refcount(position::L2, 0);
    refused(&overlap);
    // Without a refcount block for its count.
    let shape = Shape { cluster_bits: 9, size: 32 << 10, data: 20, ..Shape::default() };
    let mut nowhere = ImageBytes::new(shape);
    nowhere.add_clusters(300);
    let far = nowhere.at(280);
    nowhere.put_u64(nowhere.l2_entry(0), COPIED | far);
    refused(&nowhere);
    // A cluster that a kill leaves uncounted, and other damage.
    let mut both = ImageBytes::new(Shape::default());
    both.set_refcount(position::L2, 0);
    both.put_u64(both.l2_entry(9), 1 << 61);
    refused(&both);
}

/// Options of the guest's disk in one of its domains.
fn domain(path: &Path, domain: u16) -> TargetOptions {
    let vm = Some("7a5f3b0e-0000-4000-8000-000000000001".to_owned());
    TargetOptions {
        owner: Owner { domain, number: 51712, vdev: "xvda".to_owned(), uuid: vm },
        ..TargetOptions::for_test(path)
    }
}

#[test]
fn image_written_by_the_other_domain_is_checked_before_the_first_write() {
    let (_directory, path) = store(&ImageBytes::new(Shape::default()));
    let open = |number| {
        let options = domain(&path, number);
        let mut files = DiskFiles::claim_here(&options).unwrap();
        let image = Qcow2Image::open(&options, &mut files).unwrap();
        (image, files)
    };
    let (mut first, first_files) = open(1);
    assert!(matches!(first.soundness, Soundness::Sound));
    // A state as during a write of the other domain: a check would find damage.
    let entry = ImageBytes::new(Shape::default()).l2_entry(7);
    let put = |value: u64| {
        use std::os::unix::fs::FileExt;
        let file = first_files.target().file().unwrap();
        file.write_all_at(&value.to_be_bytes(), entry).unwrap();
    };
    put(3 << 16);
    let (mut second, _second_files) = open(2);
    put(0);
    write(&mut first, 4 << 16, 512, 9);
    first.write_back().unwrap();
    drop((first, first_files));
    prepare(&mut second).unwrap();
    assert!(matches!(second.soundness, Soundness::Sound));
}
