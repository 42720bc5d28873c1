//! The matrix of experiments with types of virtio host on Xen.
//!
//! Scenarios write the results that they observe. The table in tests/matrix/README.md has the
//! expected results.

mod cell;
mod readme;
mod simulated;

pub(crate) use cell::{Cell, markdown, plain};
pub(crate) use readme::{differences, table};
pub(crate) use simulated::{PACKAGE, TESTS, simulated};
