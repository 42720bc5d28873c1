//! One measured rate, and its task.

use serde::{Deserialize, Serialize};

use super::latency::Latency;

/// A task, at which servers are compared.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Task {
    /// The kind of guest: `pv`, `pvh`, `hvm`; `dom0` for Dom0 itself.
    pub(crate) guest: String,
    /// The backing store, or another key that names a section of the report.
    pub(crate) target: String,
    /// The work's key.
    pub(crate) work: String,
}

/// The rate of one round; higher is better.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Sample {
    /// The task.
    pub(crate) task: Task,
    /// The server's key.
    pub(crate) server: String,
    /// The round's number. In each round all servers do the task.
    pub(crate) round: usize,
    /// The rate, in the work's unit.
    pub(crate) rate: f64,
    /// The latency, if the tool measured it.
    pub(crate) latency: Option<Latency>,
}
