//! libFuzzer's way into a target, which the environment names: one program for all of them. `tests/fuzz/run` builds it
//! with the instrumentation that libFuzzer is guided by.

#![no_main]

use std::sync::OnceLock;

use fuzz::Target;
use fuzz::limits::Counting;

#[global_allocator]
static COUNTING: Counting = Counting;

static TARGET: OnceLock<&Target> = OnceLock::new();

libfuzzer_sys::fuzz_target!(init: {
    let name = std::env::var("FUZZ_TARGET").unwrap_or_default();
    let target = Target::named(&name).unwrap_or_else(|| panic!("FUZZ_TARGET={name} names no target"));
    TARGET.get_or_init(|| target);
}, |data: &[u8]| {
    if let Some(target) = TARGET.get() {
        (target.run)(data);
    }
});
