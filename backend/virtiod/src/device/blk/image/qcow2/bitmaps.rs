//! The dirty bitmaps of an image, which record writes since a backup. The daemon does not update
//! them, and the library marks them as invalid when it opens an image for writing.

use std::fs::File;
use std::path::Path;

use super::header::{Directory, Qcow2Header, read_up_to};

/// Maximum bytes of the directory that are read.
const MOST_BYTES: u64 = 64 << 10;
/// Maximum number of bitmaps that the warning names.
const MOST_NAMES: usize = 8;
/// Bytes of the fixed part of a directory entry.
const ENTRY: usize = 24;

/// Warns if an image that is about to be written has bitmaps.
pub(super) fn warn_of_their_end(file: &File, path: &Path, header: &Qcow2Header) {
    let Some(directory) = header.bitmaps else { return };
    let names = names(file, directory);
    tracing::warn!(
        "{path:?} has dirty bitmaps ({}), which this daemon does not update: they are invalid from \
         now on, and the next backup that is based on one must be a full one. To remove one, run: \
         qemu-img bitmap --remove {path:?} NAME",
        names.join(", ")
    );
}

/// The names of the first bitmaps, as far as the directory can be read.
fn names(file: &File, directory: Directory) -> Vec<String> {
    let mut bytes = vec![0; directory.size.min(MOST_BYTES) as usize];
    if read_up_to(file, &mut bytes, directory.offset).is_err() {
        return Vec::new();
    }
    let mut rest = bytes.as_slice();
    let next = std::iter::from_fn(|| {
        let (name, behind) = split_entry(rest)?;
        rest = behind;
        Some(name)
    });
    next.take(MOST_NAMES).collect()
}

/// The name in the first entry, and the bytes behind that entry.
fn split_entry(bytes: &[u8]) -> Option<(String, &[u8])> {
    let name_size = u16::from_be_bytes(bytes.get(18..20)?.try_into().ok()?);
    let extra_size = u32::from_be_bytes(bytes.get(20..24)?.try_into().ok()?);
    let start = ENTRY.checked_add(extra_size as usize)?;
    let end = start.checked_add(name_size.into())?;
    let name = String::from_utf8_lossy(bytes.get(start..end)?);
    let behind = bytes.get(end.next_multiple_of(8)..).unwrap_or_default();
    Some((format!("{name:?}"), behind))
}
