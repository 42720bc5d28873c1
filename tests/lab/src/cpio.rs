//! Writes cpio archives in the format that the kernel accepts as an initrd ("newc").
//!
//! Archives can be concatenated: a later archive adds files to earlier ones and overwrites theirs.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result};

const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const LINK: u32 = 0o120_000;

/// The entry that ends an archive.
const TRAILER: &str = "TRAILER!!!";

/// An archive under construction. All entries belong to root.
#[derive(Default)]
pub(crate) struct Cpio {
    bytes: Vec<u8>,
    entries: u32,
}

impl Cpio {
    /// Adds the directories `paths`. Each must follow its parent.
    pub(crate) fn directories(&mut self, paths: &[&str]) {
        for path in paths {
            self.entry(path, DIRECTORY | 0o755, &[]);
        }
    }

    /// Adds the symbolic link `path`, which points to `target`.
    pub(crate) fn link(&mut self, path: &str, target: &str) {
        self.entry(path, LINK | 0o777, target.as_bytes());
    }

    /// Adds the regular file `path`.
    pub(crate) fn file(&mut self, path: &str, permissions: u32, contents: &[u8]) {
        self.entry(path, REGULAR | permissions, contents);
    }

    /// Adds the host's file `source` as `path`, with mode 0755 if it is executable, else 0644.
    pub(crate) fn copy(&mut self, path: &str, source: &Path) -> Result<()> {
        let read = || -> std::io::Result<_> {
            Ok((fs::metadata(source)?.permissions().mode(), fs::read(source)?))
        };
        let (mode, contents) =
            read().with_context(|| format!("cannot read {}", source.display()))?;
        self.file(path, if mode & 0o111 == 0 { 0o644 } else { 0o755 }, &contents);
        Ok(())
    }

    /// Adds the regular files and directories below `source` as `path`, sorted by name.
    pub(crate) fn copy_tree(&mut self, path: &str, source: &Path) -> Result<()> {
        self.directories(&[path]);
        let mut entries = fs::read_dir(source)
            .with_context(|| format!("cannot list {}", source.display()))?
            .collect::<Result<Vec<_>, _>>()?;
        entries.sort_by_key(|entry| entry.file_name());
        for entry in entries {
            let name = format!("{path}/{}", entry.file_name().to_string_lossy());
            let kind = entry.file_type()?;
            if kind.is_dir() {
                self.copy_tree(&name, &entry.path())?;
            } else if kind.is_file() {
                self.copy(&name, &entry.path())?;
            }
        }
        Ok(())
    }

    /// Adds the trailer and returns the archive.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.entry(TRAILER, 0, &[]);
        self.bytes
    }

    fn entry(&mut self, path: &str, mode: u32, contents: &[u8]) {
        self.entries += 1;
        let links = 1;
        let header = [
            self.entries,
            mode,
            0, // uid
            0, // gid
            links,
            0, // mtime
            contents.len() as u32,
            0, // device numbers: of the file system, then of the entry if it is a device node
            0,
            0,
            0,
            path.len() as u32 + 1,
            0, // checksum
        ];
        self.bytes.extend_from_slice(b"070701");
        for field in header {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(path.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(contents);
        self.pad();
    }

    /// Pads the archive to a multiple of four bytes, where names and contents must end.
    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entry_has_header_name_and_padding() {
        let mut cpio = Cpio::default();
        cpio.file("ab", 0o644, b"hello");
        let bytes = cpio.finish();
        let header = std::str::from_utf8(&bytes[..110]).unwrap();
        assert!(header.starts_with("07070100000001000081a4"), "{header}");
        assert_eq!(&header[54..62], "00000005");
        assert_eq!(&header[94..102], "00000003");
        assert_eq!(&bytes[110..113], b"ab\0");
        assert_eq!(&bytes[116..121], b"hello");
        assert_eq!(bytes.len() % 4, 0);
    }

    #[test]
    fn archive_ends_with_the_trailer() {
        let bytes = Cpio::default().finish();
        assert!(String::from_utf8(bytes).unwrap().contains("TRAILER!!!\0"));
    }

    #[test]
    fn tree_is_added_sorted_by_name() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("sub")).unwrap();
        for name in ["b", "a", "sub/c"] {
            fs::write(dir.path().join(name), name).unwrap();
        }
        let mut cpio = Cpio::default();
        cpio.copy_tree("tree", dir.path()).unwrap();
        let text = String::from_utf8(cpio.finish()).unwrap();
        let at = |name| text.find(name).unwrap();
        assert!(at("tree/a") < at("tree/b"));
        assert!(at("tree/b") < at("tree/sub\0"));
        assert!(at("tree/sub\0") < at("tree/sub/c"));
    }
}
