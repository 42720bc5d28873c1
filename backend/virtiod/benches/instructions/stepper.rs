//! Counts the instructions of a process by single steps, which needs no counter of the processor
//! and no other program.

use std::ops::Range;
use std::process::Command;
use std::{env, fs};

use nix::sys::ptrace;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::simulated::mark::{MARK, section};

/// Set in the process that is counted.
const COUNTED: &str = "XEN_VIRTIOD_COUNTED";

/// Runs this program in another process, and returns the number of instructions in each of its
/// sections. Returns `None` in that process.
#[expect(clippy::zombie_processes, reason = "`follow` waits for it")]
pub(super) fn counts() -> Option<Vec<u64>> {
    if env::var_os(COUNTED).is_some() {
        ptrace::traceme().unwrap();
        section(|| ());
        return None;
    }
    let child = Command::new(env::current_exe().unwrap()).env(COUNTED, "1").spawn().unwrap();
    let counts = follow(Pid::from_raw(child.id().try_into().unwrap()));
    // The first section is empty: its count is that of the marks.
    let marks = counts[0];
    Some(counts[1..].iter().map(|count| count - marks).collect())
}

/// Counts the instructions of each section until the process ends.
fn follow(process: Pid) -> Vec<u64> {
    let mut counts = Vec::new();
    loop {
        match waitpid(process, None).unwrap() {
            WaitStatus::Stopped(_, MARK) => {
                counts.push(count_section(process, &clock_code(process)));
                ptrace::cont(process, None).unwrap();
            }
            WaitStatus::Stopped(_, signal) => ptrace::cont(process, signal).unwrap(),
            WaitStatus::Exited(_, 0) => return counts,
            other => panic!("the counted process failed: {other:?}"),
        }
    }
}

/// The addresses of the vDSO: the kernel's code that reads the clock.
fn clock_code(process: Pid) -> Range<u64> {
    let maps = fs::read_to_string(format!("/proc/{process}/maps")).unwrap();
    let line = maps.lines().find(|line| line.ends_with("[vdso]"));
    let range = line.and_then(|line| line.split(' ').next()?.split_once('-'));
    let address = |text| u64::from_str_radix(text, 16).unwrap();
    range.map_or(0..0, |(start, end)| address(start)..address(end))
}

/// Steps to the mark that ends a section. A repeated string instruction counts once, though each
/// repetition is a step, and so does a read of the `clock`, whose code loops while the kernel sets
/// it.
fn count_section(process: Pid, clock: &Range<u64>) -> u64 {
    let (mut count, mut before) = (0, 0);
    loop {
        ptrace::step(process, None).unwrap();
        match waitpid(process, None).unwrap() {
            WaitStatus::Stopped(_, Signal::SIGTRAP) => {}
            WaitStatus::Stopped(_, MARK) => return count,
            other => panic!("a section ended with {other:?}"),
        }
        let now = ptrace::getregs(process).unwrap().rip;
        let is_same = now == before || clock.contains(&now) && clock.contains(&before);
        count += u64::from(!is_same);
        before = now;
    }
}
