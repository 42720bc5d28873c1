//! Tests of disks in qcow2 images and of their backing files.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use imago::file::File;
use imago::qcow2::Qcow2;
use imago::{FormatAccess, FormatCreateBuilder, Storage, StorageCreateOptions};
use tempfile::TempDir;
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
};

use super::block::{OK, request};
use super::disk_options::{config_u64, range};
use super::host::{Host, XVDA};
use crate::device::blk::sample::ImageBytes;

/// Virtual size of every image here, in bytes.
const SIZE: u64 = 8 << 20;

/// Creates an empty image; `backing` is the backing file's name and format.
pub(super) fn create(path: &Path, backing: Option<(&str, &str)>) {
    let file = File::create_open(StorageCreateOptions::new().filename(path)).unwrap();
    let mut image = Qcow2::<File, FormatAccess<File>>::create_builder(file).size(SIZE);
    if let Some((name, format)) = backing {
        image = image.backing(name.to_owned(), format.to_owned());
    }
    image.create().unwrap();
}

/// Creates a directory with an image `disk.qcow2`.
pub(super) fn image(backing: Option<(&str, &str)>) -> (TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("disk.qcow2");
    create(&path, backing);
    (directory, path)
}

/// Writes an image into a directory of its own.
pub(crate) fn store(image: &ImageBytes) -> (TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("disk.qcow2");
    fs::write(&path, &image.bytes).unwrap();
    (directory, path)
}

/// Checks that the image is refused with a reason that contains `words`.
fn refused(path: &Path, words: &str) {
    let host = Host::start();
    let ends = host.add_disk(1, XVDA, path, "w");
    host.hypervisor.store_wait(&format!("{}/state", ends.backend), None);
    let error = host.error(&ends).unwrap();
    assert!(error.contains(words), "{words:?} is not in {error:?}");
    host.hypervisor.store_remove(&ends.backend);
    host.finish();
}

#[test]
fn qcow2_image_works_as_a_disk() {
    let (_directory, path) = image(None);
    let host = Host::start();
    let data: Vec<u8> = (0..8192u32).map(|n| (n * 31) as u8).collect();
    for round in 0..2 {
        let ends = host.add_disk(1, XVDA, &path, "w");
        let mut driver = host.connect(&ends);
        driver.start();
        assert_eq!(config_u64(&mut driver, 0), SIZE / 512);
        if round == 0 {
            assert_eq!(request(&mut driver, VIRTIO_BLK_T_OUT, 1001, &data, 0).0, OK);
            assert_eq!(request(&mut driver, VIRTIO_BLK_T_FLUSH, 0, &[], 0).0, OK);
            let out = range(1001, 8, 1);
            assert_eq!(request(&mut driver, VIRTIO_BLK_T_WRITE_ZEROES, 0, &out, 0).0, OK);
        }
        let (_, read) = request(&mut driver, VIRTIO_BLK_T_IN, 1001, &[], data.len());
        assert_eq!((&read[..4096], &read[4096..]), (&[0; 4096][..], &data[4096..]));
        driver.close();
        host.remove(&ends);
    }
    host.finish();
    assert!(fs::metadata(&path).unwrap().len() < SIZE / 2, "the file is sparse by its format");
}

#[test]
fn unwritten_data_is_read_from_the_backing_files() {
    let (directory, path) = image(Some(("middle.qcow2", "qcow2")));
    create(&directory.path().join("middle.qcow2"), Some(("base.raw", "raw")));
    let base = directory.path().join("base.raw");
    fs::write(&base, [0x5a; 1 << 20]).unwrap();
    let host = Host::start();
    let ends = host.add_disk(1, XVDA, &path, "w");
    let mut driver = host.connect(&ends);
    driver.start();
    assert_eq!(request(&mut driver, VIRTIO_BLK_T_OUT, 8, &[1; 512], 0).0, OK);
    let (_, read) = request(&mut driver, VIRTIO_BLK_T_IN, 7, &[], 3 * 512);
    assert_eq!(read, [[0x5a; 512], [1; 512], [0x5a; 512]].concat());
    let (_, read) = request(&mut driver, VIRTIO_BLK_T_IN, (1 << 20) / 512, &[], 512);
    assert_eq!(read, [0; 512], "the backing file is shorter");
    driver.close();
    host.remove(&ends);
    host.finish();
    assert!(
        fs::read(&base).unwrap().iter().all(|byte| *byte == 0x5a),
        "the backing file is read only"
    );
}

#[test]
fn backing_file_in_another_directory_is_refused() {
    let words = "beside the image";
    let elsewhere = tempfile::NamedTempFile::new().unwrap();
    fs::write(elsewhere.path(), "what the guest must not read").unwrap();
    let (_directory, path) = image(Some((elsewhere.path().to_str().unwrap(), "raw")));
    refused(&path, words);

    let (directory, path) = image(Some(("link.raw", "raw")));
    symlink(elsewhere.path(), directory.path().join("link.raw")).unwrap();
    refused(&path, words);

    let (_directory, path) = image(Some(("/dev/null", "raw")));
    refused(&path, words);
    let (_directory, path) = image(Some(("missing.raw", "raw")));
    refused(&path, words);
}

#[test]
fn backing_file_of_another_format_is_refused() {
    let (directory, path) = image(Some(("base.vmdk", "vmdk")));
    fs::write(directory.path().join("base.vmdk"), [0; 4096]).unwrap();
    refused(&path, "neither raw nor qcow2");
}

#[test]
fn image_with_itself_as_backing_file_is_refused() {
    let (_directory, path) = image(Some(("disk.qcow2", "qcow2")));
    refused(&path, "comes back to");
}

#[test]
fn file_without_a_qcow2_header_is_refused() {
    let (_directory, path) = image(None);
    fs::write(&path, [7; 65536]).unwrap();
    refused(&path, "cannot open disk target");
}

#[test]
fn backing_chain_has_at_most_16_images() {
    let directory = tempfile::tempdir().unwrap();
    let path = |number: usize| directory.path().join(format!("{number}.qcow2"));
    create(&path(0), None);
    for number in 1..=16 {
        create(&path(number), Some((&format!("{}.qcow2", number - 1), "qcow2")));
    }
    let host = Host::start();
    let ends = host.add_disk(1, XVDA, &path(15), "w");
    host.wait_state(&ends, "2");
    host.remove(&ends);
    host.finish();
    refused(&path(16), "more than 16 images");
}
