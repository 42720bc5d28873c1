//! Loop devices, which make a block device of a file. A mount of a loop device writes to its file
//! and takes no lock on it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::FileId;

/// The directory in which the kernel lists devices.
pub(super) const SYSFS: &str = "/sys";

/// A loop device.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct LoopDevice {
    /// Its name, as in /dev.
    pub(super) name: String,
    /// Whether the loop device is read-only.
    pub(super) read_only: bool,
}

/// Finds the loop devices over a file, according to `sysfs`.
///
/// # Errors
/// The kernel's, if `sysfs` cannot be read for want of memory or file descriptors.
pub(super) fn loop_devices_of(sysfs: &Path, file: FileId) -> io::Result<Vec<LoopDevice>> {
    let mut found = Vec::new();
    let devices = match fs::read_dir(sysfs.join("block")) {
        Ok(devices) => devices,
        // The system has no block devices.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(found),
        Err(error) => return Err(error),
    };
    for device in devices {
        let device = device?;
        let name = device.file_name().to_string_lossy().into_owned();
        if !name.starts_with("loop") {
            continue;
        }
        let Some(backing) = attribute(&device.path().join("loop/backing_file"))? else { continue };
        // A file that was removed meanwhile has another identity, or none.
        if FileId::of(Path::new(&backing)).is_ok_and(|id| id == file) {
            let read_only = attribute(&device.path().join("ro"))?.is_some_and(|text| text == "1");
            found.push(LoopDevice { name, read_only });
        }
    }
    Ok(found)
}

/// A loop device and its file.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct BackingFile {
    /// The file.
    pub(super) file: PathBuf,
    /// The loop device's name.
    pub(super) device: String,
}

/// Finds the file behind the loop device with this number, or behind the loop device that has a
/// partition with this number; `None` for any other device.
pub(super) fn backing_file(sysfs: &Path, number: u64) -> Option<BackingFile> {
    let (major, minor) = (nix::sys::stat::major(number), nix::sys::stat::minor(number));
    let device = fs::canonicalize(sysfs.join(format!("dev/block/{major}:{minor}"))).ok()?;
    device.ancestors().take(2).find_map(|device| {
        let file = attribute(&device.join("loop/backing_file")).ok()??.into();
        Some(BackingFile { file, device: device.file_name()?.to_string_lossy().into_owned() })
    })
}

/// Reads an attribute; `None` if the device does not have it, as a loop device without a file.
fn attribute(path: &Path) -> io::Result<Option<String>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text.strip_suffix('\n').map(str::to_owned).unwrap_or(text))),
        Err(error) => match error.raw_os_error() {
            Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM) => Err(error),
            _ => Ok(None),
        },
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use tempfile::{NamedTempFile, TempDir};

    use super::*;

    /// A sysfs with one loop device.
    fn sysfs(backing: &str, read_only: &str) -> TempDir {
        let sysfs = tempfile::tempdir().unwrap();
        let device = sysfs.path().join("block/loop3");
        fs::create_dir_all(device.join("loop")).unwrap();
        fs::create_dir_all(device.join("loop3p1")).unwrap();
        fs::write(device.join("loop/backing_file"), format!("{backing}\n")).unwrap();
        fs::write(device.join("ro"), read_only).unwrap();
        fs::create_dir_all(sysfs.path().join("block/loop4")).unwrap();
        fs::create_dir_all(sysfs.path().join("block/sda")).unwrap();
        fs::create_dir_all(sysfs.path().join("dev/block")).unwrap();
        symlink("../../block/loop3", sysfs.path().join("dev/block/7:3")).unwrap();
        symlink("../../block/loop3/loop3p1", sysfs.path().join("dev/block/259:0")).unwrap();
        symlink("../../block/sda", sysfs.path().join("dev/block/8:0")).unwrap();
        sysfs
    }

    #[test]
    fn loop_device_is_found_by_its_file() {
        let (file, other) = (NamedTempFile::new().unwrap(), NamedTempFile::new().unwrap());
        let sysfs = sysfs(file.path().to_str().unwrap(), "1\n");
        let devices_of =
            |file: &NamedTempFile| loop_devices_of(sysfs.path(), FileId::of(file.path()).unwrap());
        let expected = LoopDevice { name: "loop3".to_owned(), read_only: true };
        assert_eq!(devices_of(&file).unwrap(), [expected]);
        assert_eq!(devices_of(&other).unwrap(), []);
    }

    #[test]
    fn loop_file_is_found_by_device_and_partition_numbers() {
        let sysfs = sysfs("/srv/disk.img", "0\n");
        let backing =
            |major, minor| backing_file(sysfs.path(), nix::sys::stat::makedev(major, minor));
        let device = "loop3".to_owned();
        let expected = Some(BackingFile { file: "/srv/disk.img".into(), device });
        assert_eq!(backing(7, 3), expected);
        assert_eq!(backing(259, 0), expected);
        assert_eq!(backing(8, 0), None);
        assert_eq!(backing(1, 1), None);
    }
}
