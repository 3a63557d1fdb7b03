//! Proves that a guest never runs twice, and is never resumed on a guess, when the link or a host is lost from `commit` on.
//!
//! `docs/handover.md` has the table; each test is a row of it.

use migrate::client::types::Life;
use migrate::progress::Event;
use migrate::report::Phase;
use tests::{Cut, Guest, Journey, Kind, Proxy, Vm, World, kvm_or_skip, until};

/// Post-copy of the busy guest takes ten seconds.
const SLOW: &str = "--mode postcopy --bandwidth 10M";

fn busy_guest(world: &World) -> Journey<'_> {
    Journey::begin(world, Guest::BUSY.cpus(2))
}

fn following(event: &Event) -> bool {
    matches!(event, Event::Phase { phase: Phase::Postcopy })
}

/// The guest is paused there, the VMM says that it is in doubt, and nothing makes it run by itself.
fn is_in_doubt(vm: &Vm) {
    vm.wait_until(Life::Unknown);
    let refused = vm.refused(async |client| client.resume().await);
    assert!(refused.contains("doubt"), "{refused}");
    assert!(vm.stands_still(), "{} runs a guest in doubt", vm.name());
    assert_eq!(vm.life(), Some(Life::Unknown));
}

#[test]
fn commit_is_lost() {
    kvm_or_skip!();
    let world = World::alone();
    let journey = busy_guest(&world);
    let next = world.receive("far");
    let proxy = Proxy::new(&next.address(), Cut::Before(Kind::Commit));
    let reason = journey.attempt(proxy.address(), "--mode precopy").unknown();
    assert!(reason.contains(proxy.address()), "{reason}");
    is_in_doubt(journey.here());
    next.wait_until(Life::Waiting);
    assert_eq!(next.console(), b"", "without commit the guest must not run there");
    let resolve = world.ask("migrate", ["resolve", "--run-here", "--vm", journey.here().name()]);
    assert_eq!(resolve.code, Some(0), "{}", resolve.err);
    let mut journey = journey;
    journey.goes_on();
    let _ = journey.attempt(&next.address(), "--mode hybrid --verify").moved();
    journey.arrive(next);
}

#[test]
fn the_answer_to_commit_is_lost() {
    kvm_or_skip!();
    let world = World::alone();
    let mut journey = busy_guest(&world);
    let next = world.receive("far");
    let proxy = Proxy::new(&next.address(), Cut::Before(Kind::Running));
    let _ = journey.attempt(proxy.address(), "--mode precopy").unknown();
    is_in_doubt(journey.here());
    next.wait_until(Life::Running);
    let resolve = world.ask("migrate", ["resolve", "--discard", "--vm", journey.here().name()]);
    assert_eq!(resolve.code, Some(0), "{}", resolve.err);
    journey.arrive(next);
}

#[test]
fn the_destination_dies_with_commit() {
    kvm_or_skip!();
    let world = World::alone();
    let journey = busy_guest(&world);
    let mut next = world.receive("dies");
    let proxy = Proxy::new(&next.address(), Cut::After(Kind::Commit));
    let migration = world.migrate(journey.here(), proxy.address(), "--mode stopcopy");
    until("the link to break", || proxy.is_cut().then_some(()));
    next.process().kill();
    let _ = migration.end().unknown();
    is_in_doubt(journey.here());
}

#[test]
fn the_destination_dies_in_postcopy() {
    kvm_or_skip!();
    let world = World::alone();
    let journey = busy_guest(&world);
    let mut next = world.receive("dies");
    let mut migration = world.migrate(journey.here(), &next.address(), SLOW);
    migration.wait_for("post-copy", following);
    next.process().kill();
    let _ = migration.end().unknown();
    is_in_doubt(journey.here());
}

#[test]
fn the_source_dies_in_postcopy() {
    kvm_or_skip!();
    let world = World::alone();
    let mut journey = busy_guest(&world);
    let mut next = world.receive("bereft");
    let mut migration = world.migrate(journey.here(), &next.address(), SLOW);
    migration.wait_for("post-copy", following);
    journey.here_mut().process().kill();
    assert_eq!(migration.process().end().code, Some(3), "the command cannot know how it ended");
    is_in_doubt(&next);
    let resolve = world.ask("migrate", ["resolve", "--run-here", "--vm", "bereft"]);
    assert_eq!(resolve.code, Some(1), "half a guest cannot run: {}", resolve.err);
    assert!(!next.process().err().is_empty(), "the VMM says that half of its guest is lost");
}

#[test]
fn the_link_breaks_in_postcopy() {
    kvm_or_skip!();
    let world = World::alone();
    let journey = busy_guest(&world);
    let next = world.receive("far");
    let proxy = Proxy::new(&next.address(), Cut::Never);
    let mut migration = world.migrate(journey.here(), proxy.address(), SLOW);
    migration.wait_for("post-copy", following);
    proxy.cut();
    let _ = migration.end().unknown();
    is_in_doubt(journey.here());
    is_in_doubt(&next);
}

#[test]
fn a_goodbye_that_is_lost_changes_nothing() {
    kvm_or_skip!();
    let world = World::alone();
    let mut journey = busy_guest(&world);
    let next = world.receive("far");
    let proxy = Proxy::new(&next.address(), Cut::Before(Kind::Finish));
    let report = journey.attempt(proxy.address(), "--mode hybrid").moved();
    assert_eq!(report.residual_bytes, 0);
    journey.arrive(next);
}
