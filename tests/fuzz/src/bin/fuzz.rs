//! A target under libFuzzer: `FUZZ_TARGET` names it, the arguments are libFuzzer's. See `cargo lab
//! fuzz`.
#![no_main]
#![allow(clippy::panic, reason = "nobody is there who could be given an error")]

use std::env;
use std::sync::OnceLock;

use fuzz::Target;

/// The target of this process.
fn target() -> &'static Target {
    static TARGET: OnceLock<&'static Target> = OnceLock::new();
    TARGET.get_or_init(|| {
        let name = env::var("FUZZ_TARGET").unwrap_or_default();
        fuzz::find(&name).unwrap_or_else(|| {
            panic!("FUZZ_TARGET is {name:?}, and the targets are {:?}", fuzz::TARGETS)
        })
    })
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| (target().run)(bytes));
