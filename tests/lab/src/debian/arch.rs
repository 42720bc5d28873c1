//! The architectures of the machines that the lab boots.

use std::fmt;
use std::str::FromStr;

/// An architecture.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Arch {
    /// The lab's own: what its host has.
    #[default]
    X86_64,
    /// Arm, for which the lab compiles and emulates.
    Aarch64,
}

impl Arch {
    /// The name that `--arch` takes, and that `uname -m` prints.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Arch::X86_64 => "x86_64",
            Arch::Aarch64 => "aarch64",
        }
    }

    /// Debian's name.
    pub(crate) fn debian(self) -> &'static str {
        match self {
            Arch::X86_64 => "amd64",
            Arch::Aarch64 => "arm64",
        }
    }

    /// The target of rustc for programs.
    pub(crate) fn target(self) -> &'static str {
        match self {
            Arch::X86_64 => "x86_64-unknown-linux-gnu",
            Arch::Aarch64 => "aarch64-unknown-linux-gnu",
        }
    }

    /// Debian's directory of libraries in a root.
    pub(crate) fn libraries(self) -> &'static str {
        match self {
            Arch::X86_64 => "usr/lib/x86_64-linux-gnu",
            Arch::Aarch64 => "usr/lib/aarch64-linux-gnu",
        }
    }

    /// The dynamic loader in a root.
    pub(crate) fn loader(self) -> &'static str {
        match self {
            Arch::X86_64 => "lib64/ld-linux-x86-64.so.2",
            Arch::Aarch64 => "lib/ld-linux-aarch64.so.1",
        }
    }
}

impl fmt::Display for Arch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Arch {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        let mut all = [Arch::X86_64, Arch::Aarch64].into_iter();
        let unknown = || format!("unknown architecture {name}: x86_64 or aarch64");
        all.find(|arch| arch.name() == name).ok_or_else(unknown)
    }
}
