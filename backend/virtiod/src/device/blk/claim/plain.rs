//! Whether a block device keeps nothing of what it answered in this domain's memory alone.

use std::fs;
use std::path::Path;

use nix::sys::stat::{major, minor};

/// The kernel's block devices, by number.
const BLOCK_DEVICES: &str = "/sys/dev/block";
/// Devices whose data, or whose tables, are in memory.
const IN_MEMORY: [&str; 5] = ["loop", "ram", "zram", "nullb", "bcache"];
/// Length of the UUID that LVM gives to a volume that it shows to users. Those of its own volumes,
/// such as the tables of thin volumes, and of what is made of them, have a suffix.
const LVM_UUID: usize = "LVM-".len() + 64;
/// Devices that are made of others are followed so far.
const DEPTH: u32 = 8;

/// Whether `device` is plain: a disk, a partition or a volume whose blocks stay where they are. A
/// thin volume, a snapshot and a cache have tables of their own.
pub(super) fn is_plain(device: u64) -> bool {
    let entry = format!("{}:{}", major(device), minor(device));
    is_plain_entry(&Path::new(BLOCK_DEVICES).join(entry), DEPTH)
}

/// The same by its entry in sysfs.
fn is_plain_entry(entry: &Path, depth: u32) -> bool {
    let Ok(mut directory) = entry.canonicalize() else { return false };
    if directory.join("partition").exists() {
        directory.pop();
    }
    let name = directory.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let kind = name.trim_end_matches(|digit: char| digit.is_ascii_digit());
    if depth == 0 || IN_MEMORY.contains(&kind) || kind.is_empty() {
        return false;
    }
    if directory.join("dm").exists() && !is_plain_map(&directory) {
        return false;
    }
    let Ok(parts) = fs::read_dir(directory.join("slaves")) else { return true };
    parts.flatten().all(|part| is_plain_entry(&part.path(), depth - 1))
}

/// Whether a device of the device mapper maps blocks without tables.
fn is_plain_map(directory: &Path) -> bool {
    let uuid = fs::read_to_string(directory.join("dm/uuid")).unwrap_or_default();
    let uuid = uuid.trim();
    match uuid.split('-').next() {
        Some("LVM") => uuid.len() == LVM_UUID,
        Some("CRYPT" | "mpath") => true,
        Some(other) => other.starts_with("part") && uuid.contains("-mpath-"),
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// A device in a directory as sysfs is, made of others.
    fn device(root: &Path, name: &str, uuid: Option<&str>, parts: &[&str]) {
        let directory = root.join(name);
        fs::create_dir_all(directory.join("slaves")).unwrap();
        if let Some(uuid) = uuid {
            fs::create_dir_all(directory.join("dm")).unwrap();
            fs::write(directory.join("dm/uuid"), format!("{uuid}\n")).unwrap();
        }
        for part in parts {
            symlink(root.join(part), directory.join("slaves").join(part)).unwrap();
        }
    }

    #[test]
    fn devices_with_tables_or_data_in_memory_are_not_plain() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        let volume = format!("LVM-{}", "a".repeat(64));
        fs::create_dir_all(root.join("sda/sda1")).unwrap();
        fs::write(root.join("sda/sda1/partition"), "1").unwrap();
        symlink(root.join("sda/sda1"), root.join("sda1")).unwrap();
        for name in ["nvme0n1", "md127", "loop0", "ram1", "zram0", "nullb0"] {
            device(root, name, None, &[]);
        }
        device(root, "dm-0", Some(&volume), &["sda1"]);
        device(root, "dm-1", Some("CRYPT-LUKS2-ab-cd"), &["dm-0"]);
        device(root, "dm-2", Some(&format!("{volume}-tpool")), &["sda1"]);
        device(root, "dm-3", Some(&volume), &["dm-2"]);
        device(root, "dm-4", Some(&volume), &["loop0"]);
        device(root, "dm-5", Some(""), &["sda1"]);
        let is_plain = |name: &str| is_plain_entry(&root.join(name), DEPTH);
        for plain in ["sda", "sda1", "nvme0n1", "md127", "dm-0", "dm-1"] {
            assert!(is_plain(plain), "{plain}");
        }
        let others = ["loop0", "ram1", "zram0", "nullb0", "dm-2", "dm-3", "dm-4", "dm-5", "none"];
        for other in others {
            assert!(!is_plain(other), "{other}");
        }
    }

    #[test]
    fn device_that_is_made_of_itself_is_not_plain() {
        let root = tempfile::tempdir().unwrap();
        device(root.path(), "dm-0", Some("CRYPT-x"), &["dm-0"]);
        assert!(!is_plain_entry(&root.path().join("dm-0"), DEPTH));
    }
}
