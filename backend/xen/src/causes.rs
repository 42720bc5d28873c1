//! Formats an error and its causes for people.

use std::error::Error;
use std::fmt;
use std::iter;

/// Displays an error and its causes on one line, each once: first the failure, then the reasons.
/// This project's errors do not print their cause. Some libraries' errors do; then the cause is not
/// repeated.
#[derive(Clone, Copy, Debug)]
pub struct Causes<'a>(pub &'a dyn Error);

impl fmt::Display for Causes<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = self.0.to_string();
        f.write_str(&shown)?;
        for cause in iter::successors(self.0.source(), |&cause| cause.source()) {
            let cause = cause.to_string();
            if !shown.contains(&cause) {
                write!(f, ": {cause}")?;
                shown = cause;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("cannot read the image")]
    struct Inner(#[source] io::Error);

    #[derive(Debug, thiserror::Error)]
    #[error("no disk")]
    struct Outer(#[source] Inner);

    #[derive(Debug, thiserror::Error)]
    #[error("a library says: {0}")]
    struct Library(#[source] Inner);

    #[test]
    fn each_cause_is_shown_once() {
        let inner = || Inner(io::Error::other("the disk is gone"));
        let shown = Causes(&Outer(inner())).to_string();
        assert_eq!(shown, "no disk: cannot read the image: the disk is gone");
        let shown = Causes(&Library(inner())).to_string();
        assert_eq!(shown, "a library says: cannot read the image: the disk is gone");
        assert_eq!(Causes(&io::Error::other("alone")).to_string(), "alone");
    }
}
