//! Tests of the options of a disk line: discard, direct I/O, formats.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use protocol::message::{Request, Response};
use tempfile::NamedTempFile;
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_WRITE_ZEROES, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_UNSUPP,
    VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
};

use super::block::{OK, header, request};
use super::disk_sharing::refusal;
use super::driver::Driver;
use super::host::{Host, TestDisk, XVDA, numbered_disk};
use crate::device::blk::sample::{ImageBytes, Shape};
use crate::device::blk::{ImageFormat, Target, TargetOptions};
use crate::stats::Requests;
use xen::{Access, DomId};

/// One range of a discard or write-zeroes request.
pub(super) fn range(sector: u64, sectors: u32, flags: u32) -> Vec<u8> {
    [&sector.to_le_bytes()[..], &sectors.to_le_bytes(), &flags.to_le_bytes()].concat()
}

pub(super) fn config_u64(driver: &mut Driver, offset: u32) -> u64 {
    driver.ask(Request::GetConfig { offset, size: 8 }, |answer| match answer {
        Response::GetConfig(config) => u64::from_le_bytes(config.data.try_into().unwrap()),
        other => panic!("{other:?}"),
    })
}

/// A fully allocated file of `mib` MiB.
fn full_disk(mib: usize) -> NamedTempFile {
    let file = NamedTempFile::new().unwrap();
    fs::write(file.path(), vec![0xaa; mib << 20]).unwrap();
    file
}

fn allocated(path: &Path) -> u64 {
    fs::metadata(path).unwrap().blocks() * 512
}

#[test]
fn discard_releases_storage() {
    let mut disk = TestDisk::connect(full_disk(4), "w");
    let bits = 1 << VIRTIO_BLK_F_DISCARD | 1 << VIRTIO_BLK_F_WRITE_ZEROES;
    assert_eq!(disk.driver.offered() & bits, bits);
    disk.driver.start();
    let before = allocated(disk.file.path());
    let ranges = [range(2048, 2048, 0), range(6144, 1024, 0)].concat();
    assert_eq!(request(&mut disk.driver, VIRTIO_BLK_T_DISCARD, 0, &ranges, 0).0, OK);
    let after = allocated(disk.file.path());
    assert!(before - after >= 3072 * 512, "{before} bytes before, {after} after");
    assert_eq!(fs::metadata(disk.file.path()).unwrap().len(), 4 << 20, "the size stays");
    let (_, read) = request(&mut disk.driver, VIRTIO_BLK_T_IN, 2047, &[], 1024);
    assert_eq!((&read[..512], &read[512..]), (&[0xaa; 512][..], &[0; 512][..]));
}

#[test]
fn write_zeroes_works_with_and_without_unmap() {
    let mut disk = TestDisk::start(full_disk(1), "w");
    for (sector, flags) in [(8, 0), (64, 1)] {
        let out = range(sector, 16, flags);
        assert_eq!(request(&mut disk.driver, VIRTIO_BLK_T_WRITE_ZEROES, 0, &out, 0).0, OK);
        let (_, read) = request(&mut disk.driver, VIRTIO_BLK_T_IN, sector - 1, &[], 18 * 512);
        assert_eq!(read[..512], [0xaa; 512]);
        assert_eq!(read[512..17 * 512], [0; 16 * 512]);
        assert_eq!(read[17 * 512..], [0xaa; 512]);
    }
}

#[test]
fn invalid_discard_ranges_change_nothing() {
    let mut disk = TestDisk::start(full_disk(1), "w");
    let (ioerr, unsupported) = (VIRTIO_BLK_S_IOERR as u8, VIRTIO_BLK_S_UNSUPP as u8);
    for (out, status) in [
        (range(2048, 1, 0), ioerr),
        (range(2047, 2, 0), ioerr),
        (range(u64::MAX, 1, 0), ioerr),
        (range(0, 0, 0), ioerr),
        (range(0, u32::MAX, 0), unsupported),
        (range(0, 8, 1), unsupported),
        (range(0, 8, 0)[..15].to_vec(), unsupported),
        (range(0, 8, 0).repeat(17), unsupported),
    ] {
        assert_eq!(
            request(&mut disk.driver, VIRTIO_BLK_T_DISCARD, 0, &out, 0).0,
            status,
            "{out:x?}"
        );
    }
    assert!(fs::read(disk.file.path()).unwrap().iter().all(|byte| *byte == 0xaa));
}

#[test]
fn discard_without_the_toolstacks_permission_is_refused() {
    let (host, disk) = (Host::start(), full_disk(1));
    let keys = [("params", disk.path().to_str().unwrap()), ("mode", "w"), ("discard-enable", "0")];
    let ends = host.add("virtio_disk", 1, XVDA, &keys);
    let mut driver = host.connect(&ends);
    assert_eq!(driver.offered() & 1 << VIRTIO_BLK_F_DISCARD, 0);
    driver.start();
    let before = allocated(disk.path());
    let out = range(0, 2048, 0);
    let status = request(&mut driver, VIRTIO_BLK_T_DISCARD, 0, &out, 0).0;
    assert_eq!(status, VIRTIO_BLK_S_UNSUPP as u8);
    assert_eq!(allocated(disk.path()), before);
    driver.close();
    host.remove(&ends);
    host.finish();
}

/// Whether this process has the file open with direct I/O.
fn is_open_direct(path: &Path) -> bool {
    let path = path.canonicalize().unwrap();
    let open = fs::read_dir("/proc/self/fd").unwrap().map(|entry| entry.unwrap());
    open.filter(|entry| fs::read_link(entry.path()).is_ok_and(|target| target == path)).any(
        |entry| {
            let about = Path::new("/proc/self/fdinfo").join(entry.file_name());
            let about = fs::read_to_string(about).unwrap_or_default();
            let flags = about.lines().find_map(|line| line.strip_prefix("flags:"));
            let flags = flags.and_then(|flags| i32::from_str_radix(flags.trim(), 8).ok());
            flags.is_some_and(|flags| flags & libc::O_DIRECT != 0)
        },
    )
}

#[test]
fn direct_io_disk_stores_aligned_and_unaligned_writes() {
    let (host, disk) = (Host::start(), numbered_disk(64));
    let directly = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(disk.path());
    let possible = directly.is_ok();
    drop(directly);
    if !possible {
        println!("skipped in part: this file system has no direct I/O");
    }
    for (value, wanted) in [("1", possible), ("0", false)] {
        let path = disk.path().to_str().unwrap();
        let keys = [("params", path), ("mode", "w"), ("direct-io-safe", value)];
        let ends = host.add("virtio_disk", 1, XVDA, &keys);
        let mut driver = host.connect(&ends);
        driver.start();
        assert_eq!(is_open_direct(disk.path()), wanted);
        // A page-aligned page, and one unaligned sector.
        for (sector, length) in [(8, 4096), (13, 512)] {
            let data = vec![value.as_bytes()[0] + length as u8; length];
            assert_eq!(request(&mut driver, VIRTIO_BLK_T_OUT, sector, &data, 0).0, OK);
            let answer = request(&mut driver, VIRTIO_BLK_T_IN, sector, &[], length);
            assert_eq!(answer, (OK, data.clone()));
            let start = sector as usize * 512;
            assert_eq!(fs::read(disk.path()).unwrap()[start..start + length], data);
        }
        driver.close();
        host.remove(&ends);
    }
    host.finish();
}

#[test]
fn growing_disk_sends_a_config_event() {
    let mut disk = TestDisk::start(numbered_disk(8), "w");
    assert_eq!(config_u64(&mut disk.driver, 0), 8);
    disk.file.as_file().set_len(64 * 512).unwrap();
    disk.driver.wait_config_event();
    assert_eq!(config_u64(&mut disk.driver, 0), 64);
    assert_eq!(request(&mut disk.driver, VIRTIO_BLK_T_OUT, 63, &[5; 512], 0).0, OK);
    assert_eq!(fs::read(disk.file.path()).unwrap()[63 * 512..], [5; 512]);
}

#[test]
fn sparse_disk_beyond_two_tebibytes_is_usable_to_its_end() {
    let (host, disk) = (Host::start(), NamedTempFile::new().unwrap());
    let sectors: u64 = (3 << 40) / 512;
    disk.as_file().set_len(sectors * 512).unwrap();
    let ends = host.add_disk(1, XVDA, disk.path(), "w");
    let mut driver = host.connect(&ends);
    driver.start();
    assert_eq!(config_u64(&mut driver, 0), sectors);
    assert_eq!(request(&mut driver, VIRTIO_BLK_T_OUT, sectors - 1, &[7; 512], 0).0, OK);
    let (status, read) = request(&mut driver, VIRTIO_BLK_T_IN, sectors - 1, &[], 512);
    assert_eq!((status, read), (OK, vec![7; 512]));
    assert!(allocated(disk.path()) < 1 << 20);
    driver.close();
    host.remove(&ends);
    host.finish();
}

#[test]
fn raw_disk_with_a_qcow2_header_stays_raw() {
    let (host, disk) = (Host::start(), numbered_disk(64));
    let mut header = b"QFI\xfb\0\0\0\x03".to_vec();
    header.resize(512, 0);
    for _ in 0..2 {
        let ends = host.add_disk(1, XVDA, disk.path(), "w");
        let mut driver = host.connect(&ends);
        driver.start();
        assert_eq!(config_u64(&mut driver, 0), 64);
        assert_eq!(request(&mut driver, VIRTIO_BLK_T_OUT, 0, &header, 0).0, OK);
        driver.close();
        host.remove(&ends);
    }
    host.finish();
}

#[test]
fn spec_6_2_features_negotiated_elsewhere_are_accepted() {
    let (host, disk) = (Host::start(), full_disk(1));
    let keys = [("params", disk.path().to_str().unwrap()), ("mode", "w"), ("discard-enable", "0")];
    let ends = host.add("virtio_disk", 1, XVDA, &keys);
    let mut driver = host.connect(&ends);
    let discard = 1 << VIRTIO_BLK_F_DISCARD;
    let offered = driver.offered();
    assert_eq!(offered & discard, 0);
    driver.start_accepting(offered | discard, 1);
    let before = allocated(disk.path());
    let out = range(0, 2048, 0);
    assert_eq!(request(&mut driver, VIRTIO_BLK_T_DISCARD, 0, &out, 0).0, OK);
    assert_eq!(allocated(disk.path()), before, "the discard does nothing");
    driver.close();
    host.remove(&ends);
    host.finish();
}

#[test]
fn write_zeroes_keeps_storage_without_permission_to_discard() {
    let (host, disk) = (Host::start(), full_disk(1));
    let keys = [("params", disk.path().to_str().unwrap()), ("mode", "w"), ("discard-enable", "0")];
    let ends = host.add("virtio_disk", 1, XVDA, &keys);
    let mut driver = host.connect(&ends);
    driver.start();
    let before = allocated(disk.path());
    for flags in [0, 1] {
        let out = range(0, 2048, flags);
        assert_eq!(request(&mut driver, VIRTIO_BLK_T_WRITE_ZEROES, 0, &out, 0).0, OK);
        disk.as_file().sync_all().unwrap();
        assert!(allocated(disk.path()) >= before, "{flags}");
    }
    assert!(fs::read(disk.path()).unwrap().iter().all(|byte| *byte == 0));
    driver.close();
    host.remove(&ends);
    host.finish();
}

#[test]
fn relative_target_is_refused() {
    let host = Host::start();
    for path in ["Cargo.toml", "./Cargo.toml", "disk.img"] {
        let reason = refusal(&host, &host.add_disk(1, XVDA, Path::new(path), "r"));
        assert!(reason.contains("relative path") && reason.contains("target=/"), "{reason}");
    }
    host.finish();
}

#[test]
fn partial_last_sector_reads_with_zeros_appended() {
    let (host, disk) = (Host::start(), NamedTempFile::new().unwrap());
    let (size, sectors) = (123_456_789u64, 241_127u64);
    disk.as_file().set_len(size).unwrap();
    disk.as_file().write_at(&[7; 277], size - 277).unwrap();
    for (mode, uses) in [("r", 1), ("w", 2)] {
        let ends = host.add_disk(1, XVDA, disk.path(), mode);
        let mut driver = host.connect(&ends);
        driver.start();
        assert_eq!(config_u64(&mut driver, 0), sectors);
        for _ in 0..uses {
            let (status, read) = request(&mut driver, VIRTIO_BLK_T_IN, sectors - 2, &[], 1024);
            assert_eq!(status, OK);
            assert_eq!((&read[512..789], &read[789..]), (&[7; 277][..], &[0; 235][..]));
            let beyond = request(&mut driver, VIRTIO_BLK_T_IN, sectors, &[], 512).0;
            assert_eq!(beyond, VIRTIO_BLK_S_IOERR as u8);
        }
        if mode == "w" {
            let data = [9; 1024];
            let status = request(&mut driver, VIRTIO_BLK_T_OUT, sectors - 2, &data, 0).0;
            assert_eq!(status, OK);
            let (_, read) = request(&mut driver, VIRTIO_BLK_T_IN, sectors - 2, &[], 1024);
            assert!(read == data, "the written data is not read back");
        }
        assert_eq!(config_u64(&mut driver, 0), sectors);
        driver.close();
        host.remove(&ends);
    }
    assert_eq!(fs::metadata(disk.path()).unwrap().len(), sectors * 512);
    host.finish();
}

#[test]
fn shrinking_file_sends_a_config_event_and_fails_requests_beyond() {
    let mut disk = TestDisk::start(numbered_disk(64), "w");
    disk.file.as_file().set_len(8 * 512).unwrap();
    let beyond = request(&mut disk.driver, VIRTIO_BLK_T_IN, 32, &[], 512).0;
    assert_eq!(beyond, VIRTIO_BLK_S_IOERR as u8);
    assert_eq!(request(&mut disk.driver, VIRTIO_BLK_T_IN, 7, &[], 512), (OK, vec![7; 512]));
    disk.driver.wait_config_event();
    assert_eq!(config_u64(&mut disk.driver, 0), 8);
}

#[test]
fn file_that_shrinks_within_its_last_sector_reads_as_zeros_from_its_end_on() {
    let mut disk = TestDisk::start(numbered_disk(2), "w");
    disk.file.as_file().set_len(1000).unwrap();
    let head = disk.driver.share(&header(VIRTIO_BLK_T_IN, 1), Access::ReadOnly);
    let input = disk.driver.share(&[0xee; 512], Access::ReadWrite);
    let status = disk.driver.share(&[0xff], Access::ReadWrite);
    // No event follows: the disk has as many sectors as before.
    let end = Instant::now() + Duration::from_secs(10);
    while {
        disk.driver.submit(&[head.readable(), input.writable(), status.writable()]);
        disk.driver.wait_used();
        disk.driver.peek(&status) != [OK]
    } {
        assert!(Instant::now() < end, "waited 10 s for the disk to notice its size");
    }
    let read = disk.driver.unshare(&input);
    assert_eq!((&read[..488], &read[488..]), (&[1; 488][..], &[0; 24][..]));
    [head, status].iter().for_each(|shared| drop(disk.driver.unshare(shared)));
}

/// Runs `act` and returns the log of this thread meanwhile.
pub(crate) fn logged(act: impl FnOnce()) -> String {
    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);
    impl std::io::Write for Log {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let log = Log::default();
    let writer = log.clone();
    let subscriber =
        tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
    tracing::subscriber::with_default(subscriber, act);
    let text = log.0.lock().unwrap().clone();
    String::from_utf8(text).unwrap()
}

/// The log of the opening of a target.
fn log_of(options: TargetOptions) -> (String, bool) {
    let mut opened = false;
    let log = logged(|| opened = Target::open(options).is_ok());
    (log, opened)
}

#[test]
fn qcow2_image_with_another_suffix_is_raw_with_a_warning() {
    let image = ImageBytes::new(Shape::default());
    let directory = tempfile::tempdir().unwrap();
    for name in ["disk.img", "disk.QCOW2", "qcow2"] {
        let path = directory.path().join(name);
        fs::write(&path, &image.bytes).unwrap();
        let (log, opened) = log_of(TargetOptions::for_test(&path));
        assert!(opened && log.contains("WARN") && log.contains("as a qcow2 image does"), "{log}");
        assert!(log.contains("format = \"qcow2\""), "{log}");
        for format in [ImageFormat::Raw, ImageFormat::Qcow2] {
            let options = TargetOptions { format: Some(format), ..TargetOptions::for_test(&path) };
            let (log, opened) = log_of(options);
            assert!(opened && !log.contains("WARN"), "{log}");
        }
    }
    let odd = directory.path().join("odd.img");
    fs::write(&odd, [0; 1000]).unwrap();
    let (log, _) = log_of(TargetOptions::for_test(&odd));
    assert!(
        log.contains("WARN") && log.contains("488 bytes beyond its last whole sector"),
        "{log}"
    );
}

#[test]
fn configured_format_overrides_the_targets_name() {
    let (host, directory) = (Host::start(), tempfile::tempdir().unwrap());
    host.configure("[domain.db.disk.xvda]\nformat = \"qcow2\"");
    host.hypervisor.store_write("/local/domain/1/name", "db");
    // As xl names a guest that is being migrated to this host.
    host.hypervisor.store_write("/local/domain/3/name", "db--incoming");
    let path = directory.path().join("disk.img");
    let image = ImageBytes::new(Shape::default());
    fs::write(&path, &image.bytes).unwrap();
    let (configured, whole) = (image.shape.size / 512, image.bytes.len() as u64 / 512);
    for (guest, sectors, format) in
        [(1, configured, "qcow2"), (2, whole, "raw"), (3, configured, "qcow2")]
    {
        let ends = host.add_disk(guest, XVDA, &path, "w");
        let mut driver = host.connect(&ends);
        assert_eq!(config_u64(&mut driver, 0), sectors);
        assert_eq!(host.stat(DomId(guest)).stats.state.details["format"], format);
        driver.close();
        host.remove(&ends);
    }
    host.finish();
}

#[test]
fn configured_limit_of_requests_in_flight_is_the_disks() {
    let (host, disk) = (Host::start(), numbered_disk(8));
    host.configure(
        "[default.disk]\nin-flight-requests = 8\n[domain.db.disk.xvda]\nin-flight-requests = 7",
    );
    host.hypervisor.store_write("/local/domain/1/name", "db");
    for (guest, limit) in [(1, 7), (2, 8)] {
        let ends = host.add_disk(guest, XVDA, disk.path(), "r");
        let driver = host.connect(&ends);
        assert_eq!(host.stat(DomId(guest)).stats.storage.unwrap().limit, limit);
        driver.close();
        host.remove(&ends);
    }
    host.finish();
}

#[test]
fn written_zeros_keep_or_give_back_storage_as_configured() {
    for (settings, discard, keeps) in [
        ("detect-zeroes = \"off\"", "1", true),
        ("detect-zeroes = \"on\"", "1", true),
        ("detect-zeroes = \"unmap\"", "1", false),
        ("detect-zeroes = \"unmap\"", "0", true),
    ] {
        let (host, disk) = (Host::start(), full_disk(1));
        host.configure(&format!("[default.disk]\n{settings}"));
        let path = disk.path().to_str().unwrap();
        let keys = [("params", path), ("mode", "w"), ("discard-enable", discard)];
        let ends = host.add("virtio_disk", 1, XVDA, &keys);
        let mut driver = host.connect(&ends);
        driver.start();
        let before = allocated(disk.path());
        let mut almost = vec![0; 65536];
        *almost.last_mut().unwrap() = 1;
        // The last two are no whole blocks.
        let all = [(128, &[0; 65536][..]), (512, &almost), (1024, &[0; 512]), (1153, &[0; 4096])];
        for (sector, data) in all {
            assert_eq!(request(&mut driver, VIRTIO_BLK_T_OUT, sector, data, 0).0, OK);
            let (status, read) = request(&mut driver, VIRTIO_BLK_T_IN, sector, &[], data.len());
            assert!(status == OK && read == data, "{settings} {sector}");
        }
        let bytes = fs::read(disk.path()).unwrap();
        let zeros = bytes.iter().filter(|byte| **byte == 0).count();
        assert_eq!((bytes.len(), zeros), (1 << 20, 65536 + 65535 + 512 + 4096), "{settings}");
        disk.as_file().sync_all().unwrap();
        assert_eq!(allocated(disk.path()) >= before, keeps, "{settings} {discard}");
        // What is outside the disk, or too short, is refused as other data is.
        let outside = request(&mut driver, VIRTIO_BLK_T_OUT, 2047, &[0; 4096], 0).0;
        assert_eq!(outside, VIRTIO_BLK_S_IOERR as u8);
        let stats = host.stat(DomId(1)).stats;
        let Requests { write, discard, failed, .. } = stats.requests;
        assert_eq!((write, discard, failed), (4, 0, 1), "{settings}");
        driver.close();
        host.remove(&ends);
        host.finish();
    }
}

#[test]
fn written_zeros_take_no_cluster_of_an_image() {
    let (host, directory) = (Host::start(), tempfile::tempdir().unwrap());
    let path = directory.path().join("disk.qcow2");
    let image = ImageBytes::new(Shape::default());
    for (settings, grows) in [("on", false), ("unmap", false), ("off", true)] {
        fs::write(&path, &image.bytes).unwrap();
        host.configure(&format!("[default.disk]\ndetect-zeroes = \"{settings}\""));
        let ends = host.add_disk(1, XVDA, &path, "w");
        let mut driver = host.connect(&ends);
        driver.start();
        let last = config_u64(&mut driver, 0) - 256;
        // A part of a cluster is data.
        assert_eq!(request(&mut driver, VIRTIO_BLK_T_OUT, last - 128, &[0; 4096], 0).0, OK);
        let zeros = vec![0; 256 * 512];
        assert_eq!(request(&mut driver, VIRTIO_BLK_T_OUT, last, &zeros, 0).0, OK);
        let (status, read) = request(&mut driver, VIRTIO_BLK_T_IN, last, &[], zeros.len());
        assert!(status == OK && read == zeros, "{settings}");
        driver.close();
        host.remove(&ends);
        let grown = fs::metadata(&path).unwrap().len() - image.bytes.len() as u64;
        assert_eq!(grown >= zeros.len() as u64, grows, "{settings}");
        assert!(grown >= 65536, "{settings}: {grown}");
    }
    host.finish();
}

/// `blk_size` and `physical_block_exp` of the configuration space.
fn block_sizes(driver: &mut Driver) -> (u32, u8) {
    let both = config_u64(driver, 20).to_le_bytes();
    (u32::from_le_bytes(*both.first_chunk().unwrap()), both[4])
}

#[test]
fn configured_logical_block_size_is_what_the_guest_sees() {
    let (host, disk) = (Host::start(), numbered_disk(17));
    host.configure(
        "[domain.large.disk.xvda]\nlogical-block-size = 4096\n[domain.small.disk.xvda]\n\
         logical-block-size = 512",
    );
    for (guest, name) in [(1, "small"), (2, "large"), (3, "large")] {
        host.hypervisor.store_write(&format!("/local/domain/{guest}/name"), name);
    }
    for (guest, size, sectors) in [(1, 512, 17), (2, 4096, 16)] {
        let ends = host.add_disk(guest, XVDA, disk.path(), "w");
        let mut driver = host.connect(&ends);
        let (logical, exponent) = block_sizes(&mut driver);
        assert_eq!((logical, config_u64(&mut driver, 0)), (size, sectors));
        assert!(size << exponent >= 4096, "{exponent}");
        driver.start();
        // The unit of requests stays the sector.
        assert_eq!(request(&mut driver, VIRTIO_BLK_T_OUT, 3, &[7; 512], 0).0, OK);
        assert_eq!(request(&mut driver, VIRTIO_BLK_T_IN, 3, &[], 512), (OK, vec![7; 512]));
        driver.close();
        host.remove(&ends);
    }
    let small = numbered_disk(7);
    let reason = refusal(&host, &host.add_disk(3, XVDA, small.path(), "w"));
    assert!(reason.contains("3584") && reason.contains("4096"), "{reason}");
    host.finish();
}

#[test]
fn empty_file_is_refused_and_one_byte_suffices() {
    let (host, disk) = (Host::start(), NamedTempFile::new().unwrap());
    let reason = refusal(&host, &host.add_disk(1, XVDA, disk.path(), "w"));
    assert!(reason.contains("holds 0 bytes, less than one block of 512"), "{reason}");
    fs::write(disk.path(), b"x").unwrap();
    let ends = host.add_disk(1, XVDA, disk.path(), "r");
    let mut driver = host.connect(&ends);
    driver.start();
    let (status, read) = request(&mut driver, VIRTIO_BLK_T_IN, 0, &[], 512);
    assert_eq!((status, &read[..2], config_u64(&mut driver, 0)), (OK, &b"x\0"[..], 1));
    driver.close();
    host.remove(&ends);
    host.finish();
}

#[test]
fn invalid_configuration_refuses_disks() {
    let (host, disk) = (Host::start(), numbered_disk(8));
    host.configure("[domain.db.disk.xvda]\nformat = \"vmdk\"");
    let reason = refusal(&host, &host.add_disk(1, XVDA, disk.path(), "w"));
    assert!(reason.contains(":2: domain.db.disk.xvda.format: "), "{reason}");
    host.finish();
}
