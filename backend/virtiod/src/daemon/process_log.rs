//! The log of a guest's process: the supervisor reads it from a pipe, and writes it to its own.
//!
//! A process that shared the supervisor's standard error could shut it down, or fill it, for all.

use std::fmt::Write as _;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::thread;
use std::time::{Duration, Instant};

use xen::DomId;

/// Maximum length of a line in bytes; a longer one is divided.
const LONGEST: u64 = 4096;
/// Maximum number of lines in each such time; further ones are dropped, and counted.
const MOST_LINES: u32 = 2000;
const WINDOW: Duration = Duration::from_secs(10);

/// Passes the log of a guest's process on, until its end.
///
/// # Errors
/// No thread is left.
pub(super) fn pass_on(log: impl Read + Send + 'static, guest: DomId) -> io::Result<()> {
    let name = format!("log-{}", guest.0);
    // Nobody hears of an error of standard error's.
    let write = |line: &str| drop(io::stderr().lock().write_all(line.as_bytes()));
    thread::Builder::new().name(name).spawn(move || copy(log, guest, write)).map(drop)
}

fn copy(log: impl Read, guest: DomId, mut write: impl FnMut(&str)) {
    let mut log = BufReader::new(log);
    let (mut bytes, mut budget) = (Vec::new(), Budget::new());
    loop {
        bytes.clear();
        match log.by_ref().take(LONGEST).read_until(b'\n', &mut bytes) {
            Ok(0) | Err(_) => break,
            Ok(_) => {}
        }
        let dropped = budget.take_dropped(Instant::now());
        if dropped > 0 {
            write(&format!("the process of {guest} logged {dropped} more line(s)\n"));
        }
        if budget.take_line() {
            write(&one_line(&bytes));
        }
    }
}

/// A line with control characters escaped, and an end.
fn one_line(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let mut line = String::with_capacity(text.len() + 1);
    for character in text.trim_end().chars() {
        match character.is_control() {
            true => drop(write!(line, "{}", character.escape_default())),
            false => line.push(character),
        }
    }
    line.push('\n');
    line
}

/// The lines that may be passed on.
struct Budget {
    since: Instant,
    lines: u32,
    dropped: u64,
}

impl Budget {
    fn new() -> Self {
        Self { since: Instant::now(), lines: 0, dropped: 0 }
    }

    /// Begins another window if it is time; returns the number of lines that were dropped.
    fn take_dropped(&mut self, now: Instant) -> u64 {
        if now.saturating_duration_since(self.since) < WINDOW {
            return 0;
        }
        (self.since, self.lines) = (now, 0);
        std::mem::take(&mut self.dropped)
    }

    fn take_line(&mut self) -> bool {
        self.lines += 1;
        let is_within = self.lines <= MOST_LINES;
        if !is_within {
            self.lines = MOST_LINES;
            self.dropped += 1;
        }
        is_within
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_escaped_divided_and_limited() {
        let mut lines = Vec::new();
        let hostile = [b"a\x1b[2J\xff\n".to_vec(), vec![b'x'; 5000], b"\n".repeat(3000)].concat();
        copy(&*hostile, DomId(1), |line| lines.push(line.to_owned()));
        assert_eq!(lines[0], "a\\u{1b}[2J\u{fffd}\n");
        assert_eq!((lines[1].len(), lines[2].len()), (4097, 905));
        assert_eq!(lines.len(), MOST_LINES as usize);
    }
}
