//! Debian: package sources, and roots that consist of Debian packages.

pub(crate) mod inside;
pub(crate) mod mirror;
pub(crate) mod root;
mod suite;

pub(crate) use suite::Suite;
