//! The commands of `cargo lab`, one module for each.

mod bench;
mod demo;
mod fuzz;
mod matrix;
mod packages;
mod release;
mod run;
mod shell;
mod test;

pub(crate) use bench::{Record, bench};
pub(crate) use demo::demo;
pub(crate) use fuzz::{Keep, fuzz};
pub(crate) use matrix::matrix;
pub(crate) use packages::packages;
pub(crate) use release::release;
pub(crate) use run::run;
pub(crate) use shell::shell;
pub(crate) use test::{Busyness, Extent, test};
