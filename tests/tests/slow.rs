//! Proves that a guest that moves over a slow link is noticed to, travels packed, and arrives whole.
//!
//! How much faster that is is measured by hand (`--bin slow`), not here.

use tests::{Guest, Journey, World};
use vmm::lab::slow::{Network, SlowLink};

/// What the guest dirties takes half of it, if it is sent as it is. So slow that to pack a page takes less than to send it, be
/// programs not optimized and the host busy.
const NETWORK: Network = Network { bytes_per_s: 12_000_000, round_trip_us: 10_000 };

/// Moves a busy guest there, with all its memory compared.
fn moves(mode: &str) -> migrate::report::Report {
    let world = World::alone();
    // Of what it is filled with, which is text, a fourth of the bytes say all.
    let mut journey = Journey::begin(&world, Guest::BUSY.words("dirty ws=32 rate=1500 fill=96 content=text"));
    let next = world.receive("there");
    let link = SlowLink::to(next.address().parse().expect("an address"), NETWORK).expect("a port");
    let report = journey.attempt(&link.address().to_string(), &format!("--mode {mode} --verify")).moved();
    journey.arrive(next);
    let verified = report.verification.clone().expect("it was asked for");
    assert!(verified.mismatched == 0 && verified.pages > 0, "{verified:?}");
    let traffic = report.traffic;
    assert!(traffic.packed_pages > traffic.pages / 2, "{traffic:?}");
    assert!(traffic.bytes + traffic.saved_bytes > 96 << 20, "{traffic:?}");
    assert!(link.bytes() >= traffic.bytes && traffic.bytes < 96 << 20, "{traffic:?} {}", link.bytes());
    report
}

#[test]
#[cfg_attr(no_kvm, ignore = "needs /dev/kvm")]
fn a_slow_link_is_packed_for_by_precopy() {
    let report = moves("precopy");
    assert!(report.traffic.delta_pages > 0, "{report:?}");
}

#[test]
#[cfg_attr(any(no_kvm, no_userfaultfd), ignore = "needs /dev/kvm and /dev/userfaultfd")]
fn a_slow_link_is_packed_for_by_postcopy() {
    let report = moves("postcopy");
    assert_eq!(report.traffic.delta_pages, 0);
}

#[test]
#[cfg_attr(any(no_kvm, no_userfaultfd), ignore = "needs /dev/kvm and /dev/userfaultfd")]
fn a_slow_link_is_packed_for_by_hybrid() {
    let report = moves("hybrid");
    assert!(report.postcopy.is_some());
}
