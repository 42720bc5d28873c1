//! Formats of disk images.

use std::fmt;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use serde::Deserialize;

/// A format of disk images.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ImageFormat {
    /// The disk's bytes as they are.
    Raw,
    /// QEMU's copy-on-write format, of version 2 or 3.
    Qcow2,
}

impl ImageFormat {
    /// The format that a target's name indicates. The contents do not matter: the guest writes
    /// them, and must not be able to turn a raw disk into another format.
    pub(in crate::device::blk) fn by_name(path: &Path) -> Self {
        match path.extension() {
            Some(extension) if extension == "qcow2" => Self::Qcow2,
            _ => Self::Raw,
        }
    }
}

impl fmt::Display for ImageFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
        })
    }
}

/// Offsets and bytes that identify formats, with qemu-img's names for these.
const MAGIC: [(u64, &[u8], &str); 9] = [
    (0, b"QFI\xfb\0\0\0\x01", "qcow"),
    (0, b"QFI\xfb", "qcow2"),
    (0, b"QED\0", "qed"),
    (0, b"KDMV", "vmdk"),
    (0, b"COWD", "vmdk"),
    (0, b"# Disk Descriptor", "vmdk"),
    (0, b"conectix", "vpc"),
    (0, b"vhdxfile", "vhdx"),
    (64, b"\x7f\x10\xda\xbe", "vdi"),
];

/// The format other than raw that a target seems to have. This is only a hint for people: a guest
/// can write these bytes.
pub(super) fn seems_to_be(file: &File) -> Option<&'static str> {
    let mut start = [0; 128];
    let length = file.read_at(&mut start, 0).ok()?;
    let start = start.get(..length)?;
    let found = MAGIC.iter().find(|(offset, magic, _)| {
        start.get(*offset as usize..).is_some_and(|rest| rest.starts_with(magic))
    });
    found.map(|(_, _, name)| *name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn format_follows_from_the_name_alone() {
        assert_eq!(ImageFormat::by_name(Path::new("/srv/disk.qcow2")), ImageFormat::Qcow2);
        for name in ["/srv/disk.img", "/srv/disk.QCOW2", "/srv/qcow2", "/srv/disk.qcow2.bak"] {
            assert_eq!(ImageFormat::by_name(Path::new(name)), ImageFormat::Raw, "{name}");
        }
    }

    #[test]
    fn other_formats_are_recognized_by_their_first_bytes() {
        let seems = |bytes: &[u8]| {
            let file = tempfile::NamedTempFile::new().unwrap();
            std::fs::write(file.path(), bytes).unwrap();
            seems_to_be(file.as_file())
        };
        assert_eq!(seems(b""), None);
        assert_eq!(seems(&[0; 4096]), None);
        assert_eq!(seems(b"QFI\xfb\0\0\0\x03rest"), Some("qcow2"));
        assert_eq!(seems(b"QFI\xfb\0\0\0\x01"), Some("qcow"));
        assert_eq!(seems(b"vhdxfile"), Some("vhdx"));
        assert_eq!(seems(&[&[b'<'; 64][..], b"\x7f\x10\xda\xbe"].concat()), Some("vdi"));
    }
}
