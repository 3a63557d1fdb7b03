//! Whether this machine can run guests at all.
//!
//! libtest cannot skip a test once it runs. So a test without KVM passes, but says so where libtest does not capture it,
//! with a running number: the last one is how many were not proven. `VMM_REQUIRE_KVM=1` makes each of them fail instead.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::sync::atomic::{AtomicU32, Ordering};

static SKIPPED: AtomicU32 = AtomicU32::new(0);

/// Leaves the test, loudly, on a machine without a usable `/dev/kvm`.
#[macro_export]
macro_rules! kvm_or_skip {
    () => {
        if !$crate::kvm_is_usable(::std::any::type_name_of_val(&|| ())) {
            return;
        }
    };
}

/// Whether guests can run here; otherwise the skip has been announced. `test` is the path of something within the test.
///
/// # Panics
/// When they cannot, and `VMM_REQUIRE_KVM` is set.
pub fn kvm_is_usable(test: &str) -> bool {
    let Err(error) = OpenOptions::new().read(true).write(true).open("/dev/kvm") else { return true };
    let required = std::env::var_os("VMM_REQUIRE_KVM").is_some_and(|value| value != "0" && !value.is_empty());
    assert!(!required, "VMM_REQUIRE_KVM is set, but /dev/kvm cannot be opened: {error}");
    let test = test.trim_end_matches("::{{closure}}");
    let number = SKIPPED.fetch_add(1, Ordering::Relaxed) + 1;
    let words =
        format!("SKIPPED: {test}: /dev/kvm cannot be opened: {error} ({number} skipped here so far)\n");
    // print! would be captured.
    let _ = io::stderr().write_all(words.as_bytes());
    false
}
