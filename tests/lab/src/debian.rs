//! Debian: package sources, and roots that consist of Debian packages.

mod arch;
pub(crate) mod inside;
mod linked;
pub(crate) mod mirror;
pub(crate) mod root;
mod suite;

pub(crate) use arch::Arch;
pub(crate) use suite::Suite;
