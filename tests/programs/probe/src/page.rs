//! Pages that this process holds: one with a known frame number, or granted ones.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::thread;

use anyhow::{Context, Result, ensure};
use xen::{Access, DomId, Gntalloc};

const PAGE: usize = 4096;

/// Size of an entry in `/proc/self/pagemap`, the bit for a page in memory, and the bits of its
/// frame number, which the kernel shows only to root.
const ENTRY: usize = 8;
const PRESENT: u64 = 1 << 63;
const FRAME: u64 = (1 << 55) - 1;

#[repr(align(4096))]
struct Page([u8; PAGE]);

/// Fills a page from standard input, prints its frame number, and waits for a signal. Guests have
/// no swap, so that the page keeps its frame.
pub(crate) fn hold() -> Result<()> {
    let mut page = Box::new(Page([0; PAGE]));
    io::stdin().lock().read_exact(&mut page.0).context("cannot read a page from standard input")?;
    println!("{}", frame(&page)?);
    io::stdout().flush()?;
    loop {
        thread::park();
        std::hint::black_box(&page);
    }
}

/// Grants pages to domain 0, prints their references, and waits for a signal.
pub(crate) fn share(count: u16) -> Result<()> {
    let pages = Gntalloc::new(DomId(0)).share(count, Access::ReadWrite)?;
    let bytes: Vec<u8> = (0..usize::from(count) * PAGE).map(|at| (at / 3) as u8).collect();
    let slice = pages.as_ref().slice(0, bytes.len()).context("not all pages are mapped")?;
    slice.copy_from(&bytes);
    let references: Vec<_> =
        pages.references().iter().map(|reference| reference.0.to_string()).collect();
    println!("{}", references.join(" "));
    io::stdout().flush()?;
    loop {
        thread::park();
        std::hint::black_box(&pages);
    }
}

fn frame(page: &Page) -> Result<u64> {
    let number = page.0.as_ptr() as usize / PAGE;
    let mut entry = [0; ENTRY];
    let pagemap = File::open("/proc/self/pagemap").context("cannot open /proc/self/pagemap")?;
    pagemap.read_exact_at(&mut entry, (number * ENTRY) as u64)?;
    let entry = u64::from_ne_bytes(entry);
    ensure!(entry & PRESENT != 0 && entry & FRAME != 0, "the kernel hides frame numbers; be root");
    Ok(entry & FRAME)
}
