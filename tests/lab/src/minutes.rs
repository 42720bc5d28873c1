//! Measures the time that the parts of a command take.

use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The parts so far, in the order in which they first ended.
#[derive(Debug, Default)]
pub(crate) struct Minutes(Mutex<Vec<Part>>);

#[derive(Debug)]
struct Part {
    name: String,
    time: Duration,
}

impl Minutes {
    /// Runs `work` and returns its result; adds its time to the part `name`.
    pub(crate) fn part<T>(&self, name: &str, work: impl FnOnce() -> T) -> T {
        let start = Instant::now();
        let done = work();
        self.add(name, start.elapsed());
        done
    }

    fn add(&self, name: &str, time: Duration) {
        let mut parts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match parts.iter_mut().find(|part| part.name == name) {
            Some(part) => part.time += time,
            None => parts.push(Part { name: name.to_owned(), time }),
        }
    }
}

/// Formats one line for each part, and one with the sum.
impl fmt::Display for Minutes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for part in parts.iter() {
            writeln!(f, "{:5.1} min  {}", part.time.as_secs_f64() / 60.0, part.name)?;
        }
        let sum: Duration = parts.iter().map(|part| part.time).sum();
        write!(f, "{:5.1} min  total", sum.as_secs_f64() / 60.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_keep_their_order_and_are_summed() {
        let minutes = Minutes::default();
        minutes.add("fetch", Duration::from_secs(90));
        minutes.add("unit tests", Duration::from_secs(600));
        minutes.add("fetch", Duration::from_secs(30));
        let lines = ["  2.0 min  fetch", " 10.0 min  unit tests", " 12.0 min  total"];
        assert_eq!(minutes.to_string(), lines.join("\n"));
    }

    #[test]
    fn part_returns_the_result_of_its_work() {
        let minutes = Minutes::default();
        assert_eq!(minutes.part("sum", || 1 + 1), 2);
        assert!(minutes.to_string().contains("sum"));
    }
}
