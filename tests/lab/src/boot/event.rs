//! The events that Dom0 reports to the lab, as lines on a port of their own.
//!
//! | line | meaning |
//! |---|---|
//! | `up` | Dom0 runs its init |
//! | `ready` | the Xen tools and xen-virtiod run |
//! | `begin NAME` | the scenario NAME starts |
//! | `end NAME STATUS MILLISECONDS BYTES` | it ended; BYTES bytes follow, a tar of its results |
//! | `exit STATUS` | the job ended; the machine powers off |

use std::io::{BufRead, Read};
use std::time::Duration;

use anyhow::{Context, Result, bail};

/// The maximum size of a scenario's results in bytes.
const MAX_RESULTS: u64 = 64 << 20;

/// An event that Dom0 reported.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// Dom0 runs its init.
    Up,
    /// The Xen tools and xen-virtiod run.
    Ready,
    /// A scenario starts.
    Begin {
        /// Its name.
        name: String,
    },
    /// A scenario ended.
    End {
        /// Its name.
        name: String,
        /// Its exit status.
        status: i32,
        /// The time from start to end, measured in Dom0.
        time: Duration,
        /// A tar archive of its results.
        results: Vec<u8>,
    },
    /// The job ended.
    Exit {
        /// Its exit status.
        status: i32,
    },
}

/// Reads the next event; returns `None` at the end of the stream.
///
/// # Errors
/// The stream cannot be read, or has a line that is no event, or results that are too large or cut
/// off.
pub(crate) fn read(input: &mut impl BufRead) -> Result<Option<Event>> {
    let mut line = String::new();
    if input.read_line(&mut line).context("cannot read Dom0's events")? == 0 {
        return Ok(None);
    }
    let words: Vec<&str> = line.split_whitespace().collect();
    let event = match words.as_slice() {
        ["up"] => Event::Up,
        ["ready"] => Event::Ready,
        ["begin", name] => Event::Begin { name: (*name).to_owned() },
        ["end", name, status, time, size] => Event::End {
            name: (*name).to_owned(),
            status: status.parse().context("invalid status in Dom0's event `end`")?,
            time: Duration::from_millis(
                time.parse().context("invalid time in Dom0's event `end`")?,
            ),
            results: bytes(input, size.parse().context("invalid size in Dom0's event `end`")?)?,
        },
        ["exit", status] => {
            Event::Exit { status: status.parse().context("invalid status in Dom0's event `exit`")? }
        }
        _ => bail!("Dom0 sent an unknown event: {line:?}"),
    };
    Ok(Some(event))
}

fn bytes(input: &mut impl BufRead, size: u64) -> Result<Vec<u8>> {
    if size > MAX_RESULTS {
        bail!("a scenario's results have {size} bytes; the limit is {MAX_RESULTS}");
    }
    let mut bytes = Vec::new();
    input.take(size).read_to_end(&mut bytes)?;
    if (bytes.len() as u64) < size {
        bail!("Dom0 stopped while it sent a scenario's results");
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(mut input: &[u8]) -> Result<Vec<Event>> {
        std::iter::from_fn(|| read(&mut input).transpose()).collect()
    }

    #[test]
    fn events_are_read_with_their_results() {
        let events = all(b"up\nready\nbegin pv/x\nend pv/x 1 1500 4\nup\n\nexit 3\n").unwrap();
        let end = Event::End {
            name: "pv/x".into(),
            status: 1,
            time: Duration::from_millis(1500),
            results: b"up\n\n".to_vec(),
        };
        let begin = Event::Begin { name: "pv/x".into() };
        let exit = Event::Exit { status: 3 };
        assert_eq!(events, [Event::Up, Event::Ready, begin, end, exit]);
    }

    #[test]
    fn unknown_event_error_quotes_the_line() {
        let error = all(b"hello there\n").unwrap_err();
        assert!(error.to_string().contains("hello there"));
    }

    #[test]
    fn cut_or_oversized_end_is_an_error() {
        assert!(all(b"end x 0 1 10\nshort").is_err());
        assert!(all(b"end x 0 1 99999999999\n").is_err());
        assert!(all(b"end x zero 1 0\n").is_err());
    }
}
