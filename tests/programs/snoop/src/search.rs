//! The search for words, and its report.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::sync::{Mutex, MutexGuard};

use anyhow::{Context, Result};
use memchr::memmem;
use protocol::grant::PAGE_SIZE;

/// A search through the memory of guests, which threads share.
pub(crate) struct Search(Mutex<State>);

struct State {
    report: File,
    /// The words that were not found yet.
    words: Vec<String>,
    bytes: u64,
    /// The first failure to write the report.
    failure: Option<io::Error>,
}

impl Search {
    /// Starts a search for `words`, with a new report.
    pub(crate) fn new(report: &Path, words: &[String]) -> io::Result<Self> {
        let report = File::create(report)?;
        Ok(Self(Mutex::new(State { report, words: words.to_vec(), bytes: 0, failure: None })))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic of a device's thread may have poisoned the lock; the state is consistent after
        // every step.
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Searches whole pages of a guest.
    pub(crate) fn search_pages(&self, pages: &[u8]) {
        let mut state = self.lock();
        let State { report, words, bytes, failure } = &mut *state;
        *bytes += pages.len() as u64;
        words.retain(|word| {
            let found = memmem::find(pages, word.as_bytes()).is_some();
            if found && let Err(error) = writeln!(report, "found {word}") {
                failure.get_or_insert(error);
            }
            !found
        });
    }

    /// Writes the last line of the report; fails if an earlier write failed.
    pub(crate) fn finish(&self) -> Result<()> {
        let mut state = self.lock();
        if let Some(error) = state.failure.take() {
            return Err(error).context("cannot write a found word to the report");
        }
        let pages = state.bytes / PAGE_SIZE;
        Ok(writeln!(state.report, "looked through {pages} pages")?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn word_is_reported_once_at_any_offset() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("report");
        let words = ["secret", "other"].map(str::to_owned);
        let search = Search::new(&path, &words).unwrap();
        let mut page = vec![0; 4096];
        search.search_pages(&page);
        page[4090..].copy_from_slice(b"secret");
        search.search_pages(&page);
        search.search_pages(&page);
        search.finish().unwrap();
        let report = std::fs::read_to_string(path).unwrap();
        assert_eq!(report, "found secret\nlooked through 3 pages\n");
    }
}
