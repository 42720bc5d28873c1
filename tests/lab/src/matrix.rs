//! The matrix: which type of virtio host, served by whom and where, comes to what on Xen.
//!
//! Cells are made by scenarios from what they observed. The README's table says what they are
//! expected to come to.

mod cell;
mod readme;
mod simulated;

pub(crate) use cell::{Cell, markdown, plain};
pub(crate) use readme::{differences, table};
pub(crate) use simulated::{PACKAGE, TESTS, simulated};
