//! Disk requests with buffers that share their pages with other data.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use anyhow::{Context, Result, ensure};

const SECTOR: usize = 512;
const PAGE: usize = 4096;

/// A buffer in [`Memory`].
struct Buffer {
    /// Offset in the memory, in bytes.
    start: usize,
    sectors: usize,
    /// Number of the first sector on the disk.
    sector: usize,
}

/// The first buffer is at the start of a page. The second starts at the end of a page, fills the
/// next one and ends at the start of a third.
const BUFFERS: [Buffer; 2] = [
    Buffer { start: 0, sectors: 1, sector: 0 },
    Buffer { start: 2 * PAGE - SECTOR, sectors: 10, sector: 1 },
];

/// Offsets of the secret, one in each page that a buffer does not fill.
const SECRETS: [usize; 3] = [PAGE / 2, PAGE, 3 * PAGE + PAGE / 2];

/// Pages with the buffers and the secret beside them.
#[derive(PartialEq)]
#[repr(align(4096))]
struct Memory([u8; 4 * PAGE]);

impl Memory {
    fn new(secret: &str) -> Result<Box<Self>> {
        ensure!(secret.len() <= PAGE / 2, "the secret is longer than half a page");
        let mut memory = Box::new(Self([0; 4 * PAGE]));
        for start in SECRETS {
            memory.bytes(start, secret.len())?.copy_from_slice(secret.as_bytes());
        }
        Ok(memory)
    }

    fn bytes(&mut self, start: usize, length: usize) -> Result<&mut [u8]> {
        self.0.get_mut(start..start + length).context("the range is outside of the memory")
    }

    fn buffer(&mut self, buffer: &Buffer) -> Result<&mut [u8]> {
        self.bytes(buffer.start, buffer.sectors * SECTOR)
    }

    /// Fills the buffers: the first sector of the disk with a, the second with b, and so on.
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

/// Opens the disk for direct I/O.
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
    // Keeps the secret in memory until the requests are done.
    std::hint::black_box(&memory);
    Ok(())
}

/// Reads the data that [`write()`] wrote, and checks it and the memory beside the buffers.
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
    ensure!(
        memory == expected,
        "the data of {} is wrong, or the read changed memory beside the buffers",
        disk.display()
    );
    Ok(())
}
