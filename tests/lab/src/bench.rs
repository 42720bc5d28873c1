//! Measurements of ours beside others: what is measured, how it is read, and the report.
//!
//! Every figure is a rate, so that more is better, and every comparison a ratio, ours to theirs:
//! seconds of an emulated machine mean little, but both sides of a ratio were measured in the same
//! boot, in turns.

pub(crate) mod bar;
pub(crate) mod block;
pub(crate) mod chart;
pub(crate) mod counts;
pub(crate) mod difference;
pub(crate) mod figure;
pub(crate) mod fio;
pub(crate) mod machine;
pub(crate) mod markdown;
pub(crate) mod net;
pub(crate) mod report;
pub(crate) mod sample;
pub(crate) mod scale;
pub(crate) mod summary;
pub(crate) mod work;
