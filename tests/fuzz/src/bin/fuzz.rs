//! Runs a target under libFuzzer. `FUZZ_TARGET` names the target; the arguments go to libFuzzer.
//! See `cargo lab fuzz`.
#![no_main]
#![allow(clippy::panic, reason = "libFuzzer calls this code, and no caller can take an error")]

use std::env;
use std::sync::OnceLock;

use fuzz::Target;

/// The target of this process.
fn target() -> &'static Target {
    static TARGET: OnceLock<&'static Target> = OnceLock::new();
    TARGET.get_or_init(|| {
        let name = env::var("FUZZ_TARGET").unwrap_or_default();
        fuzz::find(&name).unwrap_or_else(|| {
            panic!("FUZZ_TARGET is {name:?}; set it to one of {:?}", fuzz::TARGETS)
        })
    })
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| (target().run)(bytes));
