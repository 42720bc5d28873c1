//! One measured figure, and what it is a figure of.

use serde::{Deserialize, Serialize};

/// What is compared: everything but who does it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Task {
    /// The kind of guest: `pv`, `pvh`, `hvm`; `dom0` for Dom0 itself.
    pub(crate) guest: String,
    /// What the data goes to.
    pub(crate) target: String,
    /// The work, by its key.
    pub(crate) work: String,
}

/// A rate that was measured once; more is better.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Sample {
    /// What was done.
    pub(crate) task: Task,
    /// Who served it, by its key.
    pub(crate) server: String,
    /// How fast, in the work's unit.
    pub(crate) rate: f64,
}
