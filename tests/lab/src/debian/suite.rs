//! The releases of Debian that the lab knows.

use std::fmt;

/// A release, by the name that its package sources have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Suite {
    /// Debian 12: kernel 6.1.
    Bookworm,
    /// Debian 13: kernel 6.12.
    Trixie,
    /// Unstable: the newest kernel that Debian has.
    Sid,
}

impl Suite {
    /// Where Dom0, the guests and the lab's own QEMU come from.
    pub(crate) const LAB: Suite = Suite::Trixie;

    /// All of them.
    pub(crate) const ALL: [Suite; 3] = [Suite::Bookworm, Suite::Trixie, Suite::Sid];

    /// Its name in package sources.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Suite::Bookworm => "bookworm",
            Suite::Trixie => "trixie",
            Suite::Sid => "sid",
        }
    }

    /// Whether it has updates and security updates beside it: sid is updated itself.
    pub(super) fn is_released(self) -> bool {
        self != Suite::Sid
    }
}

impl fmt::Display for Suite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
