//! What comes from the distribution: package sources, and roots made of packages.

pub(crate) mod inside;
pub(crate) mod mirror;
pub(crate) mod root;
mod suite;

pub(crate) use suite::Suite;
