//! Measurements of xen-virtiod and of other backends: the works, the parsers and the report.
//!
//! Every figure is a rate: higher is better. Every comparison is a ratio, ours to theirs: absolute
//! times on an emulated machine mean little, but the bench measures both sides of a ratio
//! alternately in the same boot.

pub(crate) mod block;
pub(crate) mod busyness;
pub(crate) mod chart;
#[cfg(test)]
mod close;
pub(crate) mod counts;
pub(crate) mod difference;
pub(crate) mod figure;
pub(crate) mod fio;
pub(crate) mod jobs;
pub(crate) mod latency;
pub(crate) mod machine;
pub(crate) mod markdown;
pub(crate) mod net;
pub(crate) mod pair;
pub(crate) mod report;
pub(crate) mod sample;
pub(crate) mod scale;
#[cfg(test)]
mod schema;
pub(crate) mod selection;
pub(crate) mod stores;
pub(crate) mod summary;
pub(crate) mod threshold;
pub(crate) mod work;
