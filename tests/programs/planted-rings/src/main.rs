//! `planted-rings`: shows whether a card uses a guest's addresses as the machine's. Before the
//! experiment it fills the memory of a domain that does not use the card: at every address where
//! the guest's driver may believe its own virtqueue to be, it plants a virtqueue with two requests.
//! One writes words of that domain's memory to the card's disk, the other reads a sector of the
//! disk into that memory. Afterwards it reports the virtqueues that a card has used. It runs in
//! Dom0, before and after the experiment.

mod ring;

use std::fmt;
use std::ops::Range;
use std::process::ExitCode;

use anyhow::{Result, ensure};
use clap::{Parser, ValueEnum};
use foreign_map::{Access, PAGE, Privcmd, Window};

use crate::ring::BLOCK;

/// Bytes that the program maps at a time; whole blocks.
const WINDOW: u64 = 1 << 20;

/// Plants virtqueues in a PV domain's memory, or reports which of them a card has used.
#[derive(Parser)]
struct Arguments {
    /// Plant or inspect.
    action: Action,
    /// Domain ID of the PV domain with the memory.
    domid: u16,
    /// Upper limit of the machine addresses, in MiB.
    below: u64,
}

#[derive(Clone, Copy, ValueEnum)]
enum Action {
    /// Plants virtqueues, and prints their addresses as ranges.
    Plant,
    /// Prints a line for each used virtqueue: its address, the number of served requests, their
    /// status bytes, and the text that was read from the disk.
    Look,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("planted-rings: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(Arguments { action, domid, below }: &Arguments) -> Result<()> {
    let memory = Privcmd::open()?;
    let mut planted = Ranges::default();
    for start in (0..below << 20).step_by(WINDOW as usize) {
        let frames: Vec<u64> = (start / PAGE..(start + WINDOW) / PAGE).collect();
        let window = memory.map(*domid, &frames, Access::ReadWrite)?;
        for offset in (0..WINDOW).step_by(BLOCK as usize) {
            if !window.has(offset, BLOCK) {
                continue;
            }
            match action {
                Action::Plant => plant(&window, start, offset, *domid),
                Action::Look => inspect(&window, start, offset),
            }
            planted.add(start + offset);
        }
    }
    ensure!(!planted.0.is_empty(), "domain {domid} has no memory below {below} MiB");
    if let Action::Plant = action {
        println!("virtqueues planted at {planted}");
    }
    Ok(())
}

/// Addresses of blocks, with adjacent blocks merged.
#[derive(Default)]
struct Ranges(Vec<Range<u64>>);

impl Ranges {
    /// Adds a block after all others.
    fn add(&mut self, block: u64) {
        match self.0.last_mut() {
            Some(last) if last.end == block => last.end += BLOCK,
            _ => self.0.push(block..block + BLOCK),
        }
    }
}

impl fmt::Display for Ranges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|Range { start, end }| write!(f, "{start:#x}-{end:#x} "))
    }
}

fn plant(window: &Window, start: u64, offset: u64, domid: u16) {
    for (at, bytes) in ring::planted(start + offset, &format!("secret of domain {domid}")) {
        window.write(offset + at, &bytes);
    }
}

fn inspect(window: &Window, start: u64, offset: u64) {
    if let Some(used) = ring::used(|at, bytes| window.read(offset + at, bytes)) {
        println!("ring at {:#x}: {used}", start + offset);
    }
}
