//! Traces of processes that were not killed: their instructions are those at which others die.

use std::collections::HashMap;
use std::fmt;

use crate::random::Random;

/// What a process was doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Phase {
    /// Taking the device over.
    TakeOver,
    /// Chains are marked in the record, and no request has its status.
    Taking,
    /// Some requests have their status, and none is given back.
    Moving,
    /// The used ring's elements and its index, then the record's marks and its index.
    GivingBack,
    /// Serving, with no chain taken that was not taken before.
    Elsewhere,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TakeOver => "taking over",
            Self::Taking => "taking",
            Self::Moving => "moving",
            Self::GivingBack => "giving back",
            Self::Elsewhere => "elsewhere",
        })
    }
}

/// A section of what a process executes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Section {
    /// From the record to the next doorbell.
    TakeOver,
    /// Until all requests are answered.
    Serving,
}

/// An execution of an instruction.
#[derive(Clone, Copy, Debug)]
struct Step {
    address: u64,
    /// How often it was executed in the section, with this time.
    nth: u32,
    phase: Phase,
}

/// A place at which a process is killed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moment {
    /// The name of the trace.
    trace: &'static str,
    /// The number of the instruction in the trace.
    number: usize,
    pub(super) section: Section,
    pub(super) address: u64,
    /// The process dies before the instruction is executed for so many times.
    pub(super) nth: u32,
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { trace, number, address, nth, .. } = self;
        write!(f, "instruction {number} of {trace} (execution {nth} of {address:#x})")
    }
}

/// What a process executed in a section.
pub(super) struct Trace {
    name: &'static str,
    section: Section,
    /// The number of requests that it answered.
    requests: usize,
    steps: Vec<Step>,
}

impl Trace {
    pub(super) fn new(name: &'static str, section: Section, requests: usize) -> Self {
        Self { name, section, requests, steps: Vec::new() }
    }

    /// Adds instructions, each with the phase before it is executed.
    pub(super) fn add(&mut self, executed: impl Iterator<Item = (u64, Phase)>) {
        let mut counts = HashMap::new();
        self.steps.extend(executed.map(|(address, phase)| {
            let nth = counts.entry(address).or_insert(0);
            *nth += 1;
            Step { address, nth: *nth, phase }
        }));
    }

    pub(super) fn name(&self) -> &'static str {
        self.name
    }

    /// Number of instructions.
    pub(super) fn length(&self) -> usize {
        self.steps.len()
    }

    /// The instructions of requests' lives: from the first mark in the record to the last word of
    /// what was given back.
    pub(super) fn life(&self) -> impl Iterator<Item = Moment> {
        let steps = self.steps.iter().enumerate();
        let lives = steps.filter(|(_, step)| {
            matches!(step.phase, Phase::Taking | Phase::Moving | Phase::GivingBack)
        });
        lives.map(|(number, step)| self.place(number, step.nth))
    }

    fn place(&self, number: usize, nth: u32) -> Moment {
        let Self { name: trace, section, .. } = *self;
        Moment { trace, number, section, address: self.steps[number].address, nth }
    }

    /// A place for a process that has `requests` requests: of this phase, if there is one.
    pub(super) fn any(&self, phase: Option<Phase>, requests: usize, random: &mut Random) -> Moment {
        let is_such = |step: &&(usize, &Step)| phase.is_none_or(|phase| step.1.phase == phase);
        let count = self.steps.iter().enumerate().filter(|step| is_such(&step)).count();
        let (number, step) = match count {
            0 => (0, &self.steps[0]),
            _ => {
                let chosen = random.below(count);
                let mut such = self.steps.iter().enumerate().filter(|step| is_such(&step));
                such.nth(chosen).unwrap()
            }
        };
        // As far into it as in the trace, and no loop is run through hundreds of times.
        let nth = 1 + (step.nth - 1) as usize * requests / self.requests.max(1);
        self.place(number, 1 + (nth as u32 - 1) % MOST_PASSED)
    }
}

/// Maximum number of times that a breakpoint is passed.
const MOST_PASSED: u32 = 64;
