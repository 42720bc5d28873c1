//! `reach-pages`: measures how fast a backend reads pages that a guest granted. It supports three
//! methods: pages that stay mapped, as in a pool; a copy by the hypervisor; a mapping for each
//! read.
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

/// Reads the pages that a guest granted, all at once, again and again; prints the number of pages
/// per second.
#[derive(Debug, Parser)]
struct CommandLine {
    direction: Method,
    /// Duration of the measurement.
    milliseconds: u64,
    /// Domain ID of the guest that granted the pages.
    domid: u16,
    /// Grant references of the pages.
    #[arg(required = true)]
    references: Vec<u32>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Method {
    /// Maps the pages once.
    Mapped,
    /// Lets the hypervisor copy all pages, with one call for each read.
    Copy,
    /// Maps all pages with one call for each read, and unmaps them.
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
    let rate = match line.direction {
        Method::Mapped => {
            let pages = gntdev.map(&references, Access::ReadOnly)?;
            count(line, || read(pages.as_ref(), &mut bytes))?
        }
        Method::Copy => {
            let staging = Staging::new(bytes.len());
            let rate = count(line, || copy(&gntdev, &references, &staging))?;
            read(staging.as_ref(), &mut bytes)?;
            rate
        }
        Method::Map => count(line, || {
            let pages = gntdev.map(&references, Access::ReadOnly)?;
            read(pages.as_ref(), &mut bytes)
        })?,
    };
    ensure!(bytes == expected, "the data read differs from the pages' content");
    println!("{rate:.1}");
    Ok(())
}

fn read(pages: &MappedRange, bytes: &mut [u8]) -> Result<()> {
    let slice = pages.slice(0, bytes.len()).context("not all pages are mapped")?;
    slice.copy_to(black_box(bytes));
    Ok(())
}

/// Copies whole pages into the staging memory, with one call.
fn copy(gntdev: &Gntdev, references: &[GrantRef], staging: &Staging) -> Result<()> {
    let segment = |(page, reference): (usize, &GrantRef)| {
        let here =
            staging.as_ref().slice(page * PAGE, PAGE).context("the staging memory is too short")?;
        Ok(CopySegment { reference: *reference, offset: 0, here })
    };
    let segments = references.iter().enumerate().map(segment).collect::<Result<Vec<_>>>()?;
    Ok(gntdev.copy(CopyDirection::FromGuest, &segments)?)
}

/// Calls `once` for the duration of the measurement; returns the number of pages per second.
fn count(line: &CommandLine, mut once: impl FnMut() -> Result<()>) -> Result<f64> {
    /// Reads between two reads of the clock, each of which is a system call here.
    const AT_ONCE: usize = 8;
    let (start, time) = (Instant::now(), Duration::from_millis(line.milliseconds));
    let mut reads = 0;
    while start.elapsed() < time {
        (0..AT_ONCE).try_for_each(|_| once())?;
        reads += AT_ONCE;
    }
    Ok((reads * line.references.len()) as f64 / start.elapsed().as_secs_f64())
}
