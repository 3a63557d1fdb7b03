//! Proves that a few dozen faults of all sorts do no harm: a short run of what `cargo run -p tests --bin faults` does for long.
//!
//! The seed is fixed, so that a change that breaks it is found where it is made.

use tests::faults::Run;

#[test]
#[cfg_attr(any(no_kvm, no_userfaultfd), ignore = "needs /dev/kvm and /dev/userfaultfd")]
fn nothing_that_goes_wrong_loses_a_guest_or_runs_it_twice() {
    let run = Run { seed: 1, faults: 40, sort: None, only: None, lanes: 6, protected: false };
    let tally = run.run();
    println!("{tally}");
    assert!(tally.violations.is_empty(), "{}", tally.violations.join("\n"));
    assert!(tally.injected() >= run.faults, "{tally}");
}
