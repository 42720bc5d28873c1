//! `reach-pages`: how fast a backend reads pages that a guest granted, by each of the ways that
//! there are: pages that stay mapped, as those of a pool, a copy by the hypervisor, and a mapping
//! made and ended each time.
#![forbid(unsafe_code)]

use std::hint::black_box;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::{Parser, ValueEnum};
use protocol::grant::{GrantRef, PAGE_SIZE};
use xen::mapped::MappedRange;
use xen::staging::Staging;
use xen::{Access, CopyDirection, CopySegment, DomId, Gntdev, GrantTable};

const PAGE: usize = PAGE_SIZE as usize;

/// Reads pages that a guest granted, all at a time, again and again; prints how many pages a second
/// it read.
#[derive(Debug, Parser)]
struct CommandLine {
    way: Way,
    /// How long to count.
    milliseconds: u64,
    /// Who granted them.
    domid: u16,
    /// The grant references.
    #[arg(required = true)]
    references: Vec<u32>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Way {
    /// They are mapped once.
    Mapped,
    /// The hypervisor copies them, all by one call.
    Copy,
    /// They are mapped each time, all by one call, and unmapped again.
    Map,
}

fn main() -> ExitCode {
    match run(&CommandLine::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("reach-pages: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(line: &CommandLine) -> Result<()> {
    let references: Vec<_> = line.references.iter().copied().map(GrantRef).collect();
    let mut bytes = vec![0u8; references.len() * PAGE];
    let guest = DomId(line.domid);
    let gntdev = Gntdev::open(guest)?;
    let expected = {
        let pages = gntdev.map(&references, Access::ReadOnly)?;
        read(pages.as_ref(), &mut bytes)?;
        bytes.clone()
    };
    bytes.fill(0);
    let rate = match line.way {
        Way::Mapped => {
            let pages = gntdev.map(&references, Access::ReadOnly)?;
            count(line, || read(pages.as_ref(), &mut bytes))?
        }
        Way::Copy => {
            let staging = Staging::new(bytes.len());
            let rate = count(line, || copy(&gntdev, &references, &staging))?;
            read(staging.as_ref(), &mut bytes)?;
            rate
        }
        Way::Map => count(line, || {
            let pages = gntdev.map(&references, Access::ReadOnly)?;
            read(pages.as_ref(), &mut bytes)
        })?,
    };
    ensure!(bytes == expected, "what was read is not what the pages hold");
    println!("{rate:.1}");
    Ok(())
}

fn read(pages: &MappedRange, bytes: &mut [u8]) -> Result<()> {
    let slice = pages.slice(0, bytes.len()).context("not all pages are mapped")?;
    slice.copy_to(black_box(bytes));
    Ok(())
}

/// Has whole pages copied, one after the other.
fn copy(gntdev: &Gntdev, references: &[GrantRef], staging: &Staging) -> Result<()> {
    let segment = |(page, reference): (usize, &GrantRef)| {
        let here = staging.as_ref().slice(page * PAGE, PAGE).context("no room for a page")?;
        Ok(CopySegment { reference: *reference, offset: 0, here })
    };
    let segments = references.iter().enumerate().map(segment).collect::<Result<Vec<_>>>()?;
    Ok(gntdev.copy(CopyDirection::FromGuest, &segments)?)
}

/// Pages a second.
fn count(line: &CommandLine, mut once: impl FnMut() -> Result<()>) -> Result<f64> {
    /// Reads between two looks at the clock, which is a system call here.
    const AT_ONCE: usize = 8;
    let (start, time) = (Instant::now(), Duration::from_millis(line.milliseconds));
    let mut reads = 0;
    while start.elapsed() < time {
        (0..AT_ONCE).try_for_each(|_| once())?;
        reads += AT_ONCE;
    }
    Ok((reads * line.references.len()) as f64 / start.elapsed().as_secs_f64())
}
