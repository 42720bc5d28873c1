//! Cases: a disk of their own each, whose processes die again and again.

use std::collections::BTreeMap;
use std::env;
use std::fmt::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::str::FromStr;

use crate::random::Random;
use crate::setting::{Kind, Setting, WriteMode};
use crate::simulated::guest::SLOTS;
use crate::trace::{Moment, Phase, Section, Trace};
use crate::tracer;

/// Number of deaths without another argument.
const KILLS: usize = 1000;
/// The seed without another argument: runs before and after a change try the same.
const SEED: u64 = 1;
/// Batches of a case.
const BATCHES: u64 = 8;
/// Those of one request, whose first process dies where the walk is: half of all deaths.
const WALKED: u64 = 6;
/// Maximum number of deaths in a batch.
const MOST_DEATHS: usize = 4;

/// Number of processes of which one dies where another is to find the record as it is then.
const MOST_ATTEMPTS: usize = 20;

/// What has happened.
#[derive(Default)]
struct Counts {
    kills: BTreeMap<Phase, usize>,
    /// Deaths of the walk.
    walked: usize,
    requests: usize,
    done_again: usize,
    /// Processes that were to die at an instruction to which they did not come.
    missed: usize,
}

impl Counts {
    fn kills(&self) -> usize {
        self.kills.values().sum()
    }
}

/// What processes execute.
struct Traces {
    taking_over: Trace,
    /// Traces of a process that serves requests.
    serving: Vec<Trace>,
    /// The lives of single requests, instruction after instruction.
    lives: Vec<(Kind, Moment)>,
    /// The distance between two deaths of the walk.
    stride: usize,
}

impl Traces {
    /// Steps processes of a disk.
    fn new(random: &mut Random) -> Self {
        let mut setting = Setting::new(WriteMode::Back);
        let mut serving = Vec::new();
        let mut lives = Vec::new();
        let single = [
            ("a read", Kind::Read),
            ("a write", Kind::Write),
            ("a zeroing", Kind::Zero),
            ("a flush", Kind::Flush),
        ];
        for (name, kind) in single {
            setting.submit_kinds(&[kind], random);
            let trace = setting.trace(name, Section::Serving);
            lives.extend(trace.life().map(|place| (kind, place)));
            serving.push(trace);
        }
        setting.submit(SLOTS.into(), random);
        serving.push(setting.trace("a batch", Section::Serving));
        // Processes that find the ring ahead of the record, and chains that were taken.
        let mut after = |phase: Phase, name, section| {
            for _ in 0..MOST_ATTEMPTS {
                setting.submit_kinds(&[Kind::Write], random);
                let place = serving[1].any(Some(phase), 1, random);
                if setting.serve(Some(&place)) == Some(phase) {
                    break;
                }
            }
            setting.submit(SLOTS.into(), random);
            setting.trace(name, section)
        };
        let taking_over = after(Phase::GivingBack, "a take-over", Section::TakeOver);
        let again = after(Phase::Moving, "a batch after a death", Section::Serving);
        serving.push(again);
        let mut stride = lives.len() * 618 / 1000;
        while gcd(stride, lives.len()) > 1 {
            stride += 1;
        }
        Self { taking_over, serving, lives, stride }
    }

    /// A request, and a place in its life: each one of all lives in turn, near and far.
    fn walk(&self, number: u64) -> (Kind, Moment) {
        let count = self.lives.len() as u64;
        self.lives[(number % count * self.stride as u64 % count) as usize]
    }

    /// Where a process dies that has `requests` requests.
    fn any(&self, requests: usize, random: &mut Random) -> Moment {
        if random.one_of(5) {
            return self.taking_over.any(None, requests, random);
        }
        let phases = [None, Some(Phase::Taking), Some(Phase::Moving), Some(Phase::GivingBack)];
        let phase = *random.choose(&phases);
        let trace = random.choose(&self.serving);
        trace.any(phase, requests, random)
    }
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// The arguments, without those of cargo's.
struct Arguments {
    kills: usize,
    seed: u64,
    case: Option<u64>,
}

impl Arguments {
    fn of(arguments: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut parsed = Self { kills: KILLS, seed: SEED, case: None };
        let mut arguments = arguments.filter(|argument| argument != "--bench");
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                "--seed" => parsed.seed = number(arguments.next())?,
                "--case" => parsed.case = Some(number(arguments.next())?),
                _ => parsed.kills = number(Some(argument))?,
            }
        }
        Ok(parsed)
    }
}

fn number<T: FromStr>(argument: Option<String>) -> Result<T, String> {
    let parsed = argument.as_ref().and_then(|argument| argument.parse().ok());
    parsed.ok_or_else(|| format!("{argument:?} is no number; usage: [COUNT] [--seed N] [--case N]"))
}

pub(super) fn main() -> ExitCode {
    let arguments = match Arguments::of(env::args().skip(1)) {
        Ok(arguments) => arguments,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::FAILURE;
        }
    };
    if let Err(why) = tracer::check() {
        println!("skipped: {why}");
        return ExitCode::SUCCESS;
    }
    run(&arguments)
}

fn run(&Arguments { kills, seed, case }: &Arguments) -> ExitCode {
    let traces = Traces::new(&mut Random::new(seed, u64::MAX));
    for trace in std::iter::once(&traces.taking_over).chain(&traces.serving) {
        println!("stepped: {} has {} instructions", trace.name(), trace.length());
    }
    let mut counts = Counts::default();
    let cases = case.map_or(0..u64::MAX, |case| case..case + 1);
    for case in cases {
        if counts.kills() >= kills {
            break;
        }
        let mut log = String::new();
        let run = AssertUnwindSafe(|| run_case(seed, case, &traces, &mut counts, &mut log));
        if let Err(why) = catch_unwind(run) {
            let why = why.downcast_ref::<String>().map_or("see above", String::as_str);
            eprintln!("{log}failed: {why}\nrepeat it with --seed {seed} --case {case}");
            return ExitCode::FAILURE;
        }
    }
    report(seed, &counts, &traces);
    ExitCode::SUCCESS
}

/// Runs a case, and writes where its processes died to `log`.
fn run_case(seed: u64, case: u64, traces: &Traces, counts: &mut Counts, log: &mut String) {
    let mut random = Random::new(seed, case);
    let mode = if random.one_of(4) { WriteMode::Through } else { WriteMode::Back };
    let mut setting = Setting::new(mode);
    let _ = writeln!(log, "case {case}: {mode:?}");
    for batch in 0..BATCHES {
        let is_walk = batch < WALKED;
        let place = if is_walk {
            let (kind, place) = traces.walk(case * WALKED + batch);
            setting.submit_kinds(&[kind], &mut random);
            place
        } else {
            setting.submit(1 + random.below(SLOTS.into()), &mut random);
            traces.any(setting.awaited(), &mut random)
        };
        let first_dies = serve_batch(place, &mut setting, traces, &mut random, counts, log);
        counts.walked += usize::from(is_walk && first_dies);
    }
    counts.requests += setting.requests;
}

/// Has a batch served by processes of which the first dies at `place`; returns whether it did.
fn serve_batch(
    place: Moment,
    setting: &mut Setting,
    traces: &Traces,
    random: &mut Random,
    counts: &mut Counts,
    log: &mut String,
) -> bool {
    let (mut next, mut deaths) = (Some(place), 0);
    loop {
        let _ = match &next {
            Some(place) => writeln!(log, "{} request(s), to die at {place}", setting.awaited()),
            None => writeln!(log, "{} request(s), to live", setting.awaited()),
        };
        let Some(phase) = setting.serve(next.as_ref()) else {
            counts.missed += usize::from(next.is_some());
            return deaths > 0;
        };
        deaths += 1;
        let again = setting.done_again();
        let _ = writeln!(log, "  died {phase}; {again} request(s) are done again");
        *counts.kills.entry(phase).or_default() += 1;
        counts.done_again += again;
        if random.one_of(3) {
            setting.submit(1 + random.below(4), random);
        }
        let dies = deaths < MOST_DEATHS && random.one_of(3);
        next = dies.then(|| traces.any(setting.awaited(), random));
    }
}

fn report(seed: u64, counts: &Counts, traces: &Traces) {
    let phases = counts.kills.iter().map(|(phase, count)| format!("{count} {phase}"));
    let phases: Vec<_> = phases.collect();
    let Counts { walked, requests, done_again, missed, .. } = counts;
    println!(
        "kills: {} ({}), {walked} of them at the {} instructions of requests' lives in turn; \
         {requests} requests, {done_again} done again; {missed} processes missed their \
         instruction; seed {seed}",
        counts.kills(),
        phases.join(", "),
        traces.lives.len(),
    );
}
