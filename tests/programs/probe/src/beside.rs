//! Buffers of requests that share their pages with something else.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use anyhow::{Context, Result, ensure};

const SECTOR: usize = 512;
const PAGE: usize = 4096;

/// A buffer in [`Memory`].
struct Buffer {
    /// Offset of its first byte.
    start: usize,
    sectors: usize,
    /// Its first sector on the disk.
    sector: usize,
}

/// One at the beginning of a page; and one that begins at the end of a page, fills the next one and
/// ends at the beginning of a third.
const BUFFERS: [Buffer; 2] = [
    Buffer { start: 0, sectors: 1, sector: 0 },
    Buffer { start: 2 * PAGE - SECTOR, sectors: 10, sector: 1 },
];

/// Where the secret stands: in each page that a buffer does not fill.
const SECRETS: [usize; 3] = [PAGE / 2, PAGE, 3 * PAGE + PAGE / 2];

/// Pages with the buffers, and with the secret beside each.
#[derive(PartialEq)]
#[repr(align(4096))]
struct Memory([u8; 4 * PAGE]);

impl Memory {
    fn new(secret: &str) -> Result<Box<Self>> {
        ensure!(secret.len() <= PAGE / 2, "the secret does not fit into half a page");
        let mut memory = Box::new(Self([0; 4 * PAGE]));
        for start in SECRETS {
            memory.bytes(start, secret.len())?.copy_from_slice(secret.as_bytes());
        }
        Ok(memory)
    }

    fn bytes(&mut self, start: usize, length: usize) -> Result<&mut [u8]> {
        self.0.get_mut(start..start + length).context("outside of the memory")
    }

    fn buffer(&mut self, buffer: &Buffer) -> Result<&mut [u8]> {
        self.bytes(buffer.start, buffer.sectors * SECTOR)
    }

    /// Fills the buffers: the disk's first sector with a, the second with b, and so on.
    fn fill(&mut self) -> Result<()> {
        for buffer in &BUFFERS {
            for (letter, sector) in
                (b'a'..).skip(buffer.sector).zip(self.buffer(buffer)?.chunks_mut(SECTOR))
            {
                sector.fill(letter);
            }
        }
        Ok(())
    }
}

/// The disk, past the kernel's cache.
fn open(disk: &Path, options: &mut OpenOptions) -> Result<File> {
    options
        .custom_flags(libc::O_DIRECT | libc::O_SYNC)
        .open(disk)
        .with_context(|| format!("cannot open {}", disk.display()))
}

/// Writes the buffers to `disk`, with `secret` beside them.
pub(crate) fn write(disk: &Path, secret: &str) -> Result<()> {
    let mut memory = Memory::new(secret)?;
    memory.fill()?;
    let file = open(disk, OpenOptions::new().write(true))?;
    for buffer in &BUFFERS {
        let offset = (buffer.sector * SECTOR) as u64;
        file.write_all_at(memory.buffer(buffer)?, offset)
            .with_context(|| format!("cannot write {}", disk.display()))?;
    }
    // The secret must stand there until the requests are done.
    std::hint::black_box(&memory);
    Ok(())
}

/// Reads back what [`write()`] wrote; what stands beside the buffers must not change.
pub(crate) fn read(disk: &Path, secret: &str) -> Result<()> {
    let mut memory = Memory::new(secret)?;
    let file = open(disk, OpenOptions::new().read(true))?;
    for buffer in &BUFFERS {
        let offset = (buffer.sector * SECTOR) as u64;
        file.read_exact_at(memory.buffer(buffer)?, offset)
            .with_context(|| format!("cannot read {}", disk.display()))?;
    }
    let mut expected = Memory::new(secret)?;
    expected.fill()?;
    ensure!(memory == expected, "{} was read wrongly, or beside the buffers", disk.display());
    Ok(())
}
