//! The releases of Debian that the lab supports.

use std::fmt;
use std::str::FromStr;

/// A release of Debian.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Suite {
    /// Debian 12: kernel 6.1.
    Bookworm,
    /// Debian 13: kernel 6.12.
    Trixie,
    /// Unstable: Debian's newest kernel.
    Sid,
}

impl Suite {
    /// The release of Dom0, of the guests by default and of the lab's QEMU.
    pub(crate) const LAB: Suite = Suite::Trixie;

    /// All releases.
    pub(crate) const ALL: [Suite; 3] = [Suite::Bookworm, Suite::Trixie, Suite::Sid];

    /// Returns the release's name in package sources.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Suite::Bookworm => "bookworm",
            Suite::Trixie => "trixie",
            Suite::Sid => "sid",
        }
    }

    /// Returns whether the release has separate suites for updates and security updates. Sid has
    /// none: Debian updates sid itself.
    pub(super) fn is_released(self) -> bool {
        self != Suite::Sid
    }
}

/// Parses the name of a released suite.
impl FromStr for Suite {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        let mut released = Suite::ALL.into_iter().filter(|suite| suite.is_released());
        released
            .find(|suite| suite.name() == name)
            .ok_or_else(|| "packages are built for bookworm and trixie".to_owned())
    }
}

impl fmt::Display for Suite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
