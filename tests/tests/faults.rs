//! Proves that faults injected into migrations of real guests leave them where docs/handover.md says: a short pass of what
//! `cargo run -p tests --bin faults` does at length.

use tests::faults::Run;

#[test]
#[cfg_attr(any(no_kvm, no_userfaultfd), ignore = "needs /dev/kvm and /dev/userfaultfd")]
fn no_fault_loses_a_guest_or_runs_it_twice() {
    let run = Run { seed: 1, faults: 30, sort: None, only: None, lanes: 6, protected: false };
    let tally = run.run();
    println!("{tally}");
    assert!(tally.violations.is_empty(), "seed {}: {:#?}", run.seed, tally.violations);
}
