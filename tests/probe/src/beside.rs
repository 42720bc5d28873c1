//! A buffer of a request that shares its page with something else.

use std::fs::OpenOptions;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use anyhow::{Context, Result, ensure};

const SECTOR: usize = 512;
const PAGE: usize = 4096;

/// A page of memory.
#[repr(align(4096))]
struct Page([u8; PAGE]);

/// Writes a page's first sector to sector 0 of `disk`, with `secret` in the page's second half.
pub(crate) fn write(disk: &Path, secret: &str) -> Result<()> {
    let mut page = Box::new(Page([b'.'; PAGE]));
    let (_, behind) = page.0.split_at_mut(PAGE / 2);
    let place = behind.get_mut(..secret.len());
    place.context("the secret does not fit into half a page")?.copy_from_slice(secret.as_bytes());
    let file = OpenOptions::new()
        .write(true)
        .custom_flags(libc::O_DIRECT | libc::O_SYNC)
        .open(disk)
        .with_context(|| format!("cannot open {}", disk.display()))?;
    let (sector, _) = page.0.split_at(SECTOR);
    let written =
        file.write_at(sector, 0).with_context(|| format!("cannot write {}", disk.display()))?;
    ensure!(written == SECTOR, "{} took {written} bytes of {SECTOR}", disk.display());
    // The secret must stand there until the request is done.
    std::hint::black_box(&page);
    Ok(())
}
