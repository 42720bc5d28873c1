//! The matrix of experiments with types of virtio host on Xen.
//!
//! Scenarios write the results that they observe. The table in tests/matrix/README.md has the
//! expected results.

mod readme;
mod result;
mod simulated;

pub(crate) use readme::{differences, table};
pub(crate) use result::{MatrixResult, markdown, plain};
pub(crate) use simulated::{PACKAGE, TESTS, simulated};
