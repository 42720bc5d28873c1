//! Tests of zeroed and discarded clusters, and of images that are found damaged late.

mod in_place;
mod killed;
mod memory;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use tempfile::TempDir;

use super::*;
use crate::device::blk::sample::{COPIED, ImageBytes, Shape, position};
use crate::tests::disk_options::logged;
use crate::tests::qcow2::store;

/// Cluster size in bytes of the images here.
const CLUSTER: u64 = 1 << 16;

struct Opened {
    image: Qcow2Image,
    path: PathBuf,
    _directory: TempDir,
    _files: DiskFiles,
}

/// Opens an image; `time` limits the check at opening.
fn open_within(bytes: &ImageBytes, time: Duration) -> Opened {
    let (directory, path) = store(bytes);
    fs::write(directory.path().join("base.raw"), vec![0x5a; 1 << 20]).unwrap();
    let options = TargetOptions::for_test(&path);
    let mut files = DiskFiles::claim_here(&options).unwrap();
    let image = Qcow2Image::open_within(&options, &mut files, &Deadline::after(time)).unwrap();
    Opened { image, path, _directory: directory, _files: files }
}

fn open(bytes: &ImageBytes) -> Opened {
    open_within(bytes, Duration::from_secs(60))
}

impl Opened {
    fn read(&mut self, offset: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0xee; length];
        self.image.read(offset, &Scatter::of(&mut bytes)).unwrap();
        bytes
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) {
        let mut bytes = bytes.to_vec();
        self.image.write(offset, &Gather::of(&mut bytes), WriteMode::Back).unwrap();
    }

    fn zero(&mut self, offset: u64, length: u64, storage: Storage) {
        let (mut at, end) = (offset, offset + length);
        while at < end {
            let zeroed = self.image.write_zeroes(at, end - at, storage).unwrap();
            assert!(zeroed > 0, "no progress");
            at += zeroed;
        }
    }

    /// Bytes of storage that the file occupies.
    fn allocated(&mut self) -> u64 {
        self.image.write_back().unwrap();
        self.image.sync().unwrap();
        fs::metadata(&self.path).unwrap().blocks() * 512
    }

    fn prepare(&mut self) -> io::Result<Progress> {
        self.image.prepare_to_write(&Deadline::after(Duration::ZERO))
    }
}

#[test]
fn image_is_readable_before_and_writable_after_a_long_check() {
    let mut opened = open_within(&ImageBytes::new(Shape::default()), Duration::ZERO);
    assert!(matches!(opened.image.soundness, Soundness::Unknown(_)));
    assert_eq!(opened.read(CLUSTER, 512), [2; 512]);
    let mut times = 0;
    while opened.prepare().unwrap() == Progress::Unfinished {
        times += 1;
    }
    assert!(times > 0, "the check was not done in parts");
    opened.write(CLUSTER, &[9; 512]);
    assert_eq!(opened.read(CLUSTER, 512), [9; 512]);
}

#[test]
fn image_found_damaged_late_stays_readable_and_unchanged() {
    let mut bytes = ImageBytes::new(Shape::default());
    bytes.put_u64(bytes.l2_entry(7), bytes.at(position::L1));
    let mut opened = open_within(&bytes, Duration::ZERO);
    let reason = loop {
        match opened.prepare() {
            Ok(progress) => assert_eq!(progress, Progress::Unfinished),
            Err(error) => break error.to_string(),
        }
    };
    assert!(reason.contains("two purposes") && reason.contains("qemu-img check"), "{reason}");
    assert_eq!(opened.prepare().unwrap_err().to_string(), reason);
    assert_eq!(opened.read(0, 512), [1; 512]);
    assert!(fs::read(&opened.path).unwrap() == bytes.bytes, "the image was changed");
}

#[test]
fn zeros_and_writes_over_them_keep_the_storage() {
    let mut opened = open(&ImageBytes::new(Shape { data: 8, ..Shape::default() }));
    let before = opened.allocated();
    opened.zero(0, 8 * CLUSTER, Storage::Keep);
    assert!(opened.allocated() >= before);
    // In the middle, to the end, and over the border of clusters.
    opened.write(4096, &[7; 512]);
    opened.write(2 * CLUSTER - 512, &[7; 512]);
    opened.write(4 * CLUSTER - 512, &[7; 1024]);
    opened.zero(6 * CLUSTER - 512, 1024, Storage::Keep);
    assert!(opened.allocated() >= before, "{} of {before}", opened.allocated());
    let bytes = opened.read(0, 8 * CLUSTER as usize);
    let sevens: Vec<_> = (0..bytes.len()).filter(|at| bytes[*at] == 7).collect();
    let expected = (4096..4608)
        .chain(2 * CLUSTER as usize - 512..2 * CLUSTER as usize)
        .chain(4 * CLUSTER as usize - 512..4 * CLUSTER as usize + 512);
    assert_eq!(sevens, expected.collect::<Vec<_>>());
    assert!(bytes.iter().all(|byte| [0, 7].contains(byte)));
}

#[test]
fn partial_last_cluster_is_zeroed() {
    for (size, version) in [(8192, 3), (8192 + 100, 3), (8192, 2), (CLUSTER + 8192, 3)] {
        for storage in [Storage::Keep, Storage::GiveBack] {
            let shape = Shape { version, size, data: size.div_ceil(CLUSTER), ..Shape::default() };
            let mut opened = open(&ImageBytes::new(shape));
            let before = opened.read(0, size as usize / 512 * 512);
            opened.zero(1024, size - 4096 - size % 512, storage);
            let after = opened.read(0, before.len());
            let kept = |bytes: &[u8]| [&bytes[..1024], &bytes[before.len() - 3072..]].concat();
            assert_eq!(kept(&after), kept(&before), "{size} {version} {storage:?}");
            assert!(after[1024..before.len() - 3072].iter().all(|byte| *byte == 0));
        }
    }
}

fn version_2(backing: Option<(&str, Option<&str>)>) -> ImageBytes {
    let mut image = ImageBytes::new(Shape { version: 2, data: 4, ..Shape::default() });
    if let Some((name, format)) = backing {
        image.set_backing(name, format);
    }
    image
}

#[test]
fn version_2_image_discards_whole_clusters_and_zeroes_all_bytes() {
    for storage in [Storage::Keep, Storage::GiveBack] {
        let mut opened = open(&version_2(None));
        assert!(opened.image.can_discard());
        opened.image.discard(512, 2 * CLUSTER).unwrap();
        assert_eq!(opened.read(0, 512), [1; 512]);
        assert_eq!(opened.read(CLUSTER, 512), [0; 512]);
        assert_eq!(opened.read(2 * CLUSTER, 1024), [3; 1024]);
        opened.zero(512, 4 * CLUSTER - 1024, storage);
        let bytes = opened.read(0, 4 * CLUSTER as usize);
        let (first, rest) = bytes.split_at(512);
        let (zeros, last) = rest.split_at(rest.len() - 512);
        assert_eq!((first, last), (&[1; 512][..], &[4; 512][..]));
        assert!(zeros.iter().all(|byte| *byte == 0), "{storage:?}");
    }
}

#[test]
fn version_2_image_does_not_expose_its_backing_file_again() {
    for storage in [Storage::Keep, Storage::GiveBack] {
        let mut opened = open(&version_2(Some(("base.raw", Some("raw")))));
        assert_eq!(opened.read(4 * CLUSTER, 512), [0x5a; 512]);
        assert!(!opened.image.can_discard());
        opened.image.discard(0, CLUSTER).unwrap();
        assert_ne!(opened.read(0, 512), [0x5a; 512]);
        opened.zero(CLUSTER, 4 * CLUSTER, storage);
        assert!(opened.read(CLUSTER, 4 * CLUSTER as usize).iter().all(|byte| *byte == 0));
        assert_eq!(opened.read(5 * CLUSTER, 512), [0x5a; 512]);
    }
}

/// An image with two dirty bitmaps; `autoclear`: its autoclear features.
fn with_bitmaps(autoclear: u64) -> ImageBytes {
    let mut image = ImageBytes::new(Shape::default());
    let directory = image.add_clusters(1);
    image.set_refcount(directory, 1);
    let mut at = image.at(directory);
    let extension = [&2u32.to_be_bytes()[..], &[0; 4], &64u64.to_be_bytes(), &at.to_be_bytes()];
    let end = image.add_extension(104, 0x2385_2875, &extension.concat());
    image.add_extension(end, 0, &[]);
    image.put_u64(88, autoclear);
    for name in ["daily", "weekly"] {
        image.bytes[at as usize + 19] = name.len() as u8;
        image.bytes[at as usize + 24..][..name.len()].copy_from_slice(name.as_bytes());
        at += 32;
    }
    image
}

#[test]
fn log_names_dirty_bitmaps_that_a_writer_invalidates() {
    for (autoclear, mode, warns) in [
        (1, AccessMode::ReadWrite, true),
        (1, AccessMode::ReadOnly, false),
        (0, AccessMode::ReadWrite, false),
    ] {
        let (_directory, path) = store(&with_bitmaps(autoclear));
        let options = TargetOptions { mode, ..TargetOptions::for_test(&path) };
        let log = || {
            logged(|| {
                let mut files = DiskFiles::claim_here(&options).unwrap();
                Qcow2Image::open(&options, &mut files).map(drop).unwrap();
            })
        };
        let first = log();
        assert_eq!(first.contains("dirty bitmaps (\"daily\", \"weekly\")"), warns, "{first}");
        assert_eq!(first.contains("WARN"), warns, "{first}");
        if mode == AccessMode::ReadWrite {
            assert!(!log().contains("WARN"), "the bitmaps are invalid already");
        }
    }
}

#[test]
fn malformed_bitmap_directory_is_ignored() {
    for (at, value) in [(112, u64::MAX), (120, u64::MAX), (120, u64::MAX >> 1), (112 + 8, 1 << 62)]
    {
        let mut image = with_bitmaps(1);
        image.put_u64(at, value);
        drop(open(&image));
    }
    let mut image = with_bitmaps(1);
    let directory = image.at(position::DATA + 2);
    image.put_u64(directory + 16, u64::MAX);
    drop(open(&image));
    image.put_u32(108, 8);
    drop(open(&image));
}

fn refusal(bytes: &ImageBytes, path: impl Fn(&Path) -> String) -> String {
    let (directory, image) = store(bytes);
    fs::write(directory.path().join("base.raw"), [0; 4096]).unwrap();
    let options = TargetOptions::for_test(&image);
    let mut files = DiskFiles::claim_here(&options).unwrap();
    let error = Qcow2Image::open(&options, &mut files).err().unwrap();
    let error = crate::Causes(&error).to_string();
    let words = path(&image);
    assert!(error.contains(&words), "{words:?} is not in {error:?}");
    error
}

#[test]
fn backing_file_without_format_is_refused_with_a_command() {
    for version in [2, 3] {
        let mut image = ImageBytes::new(Shape { version, ..Shape::default() });
        image.set_backing("base.raw", None);
        refusal(&image, |path| format!("qemu-img rebase -u -F FORMAT -b \"base.raw\" {path:?}"));
    }
}

#[test]
fn error_names_the_backing_file_that_caused_it() {
    let mut image = ImageBytes::new(Shape { data: 0, ..Shape::default() });
    image.set_backing("base.raw", Some("qcow2"));
    let error = refusal(&image, |path| format!("{:?}: ", path.with_file_name("base.raw")));
    assert!(error.contains("not a qcow2 image"), "{error}");
}
