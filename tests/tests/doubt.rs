//! Proves that a guest never runs twice, and is never resumed on a guess, when the link or a host is lost from `commit` on.
//!
//! `docs/handover.md` has the table; each test is a row of it.

use migrate::client::types::{Life, Salvage};
use migrate::progress::Event;
use migrate::report::{Outcome, Phase};
use tests::{Cut, Guest, Journey, Kind, Proxy, Vm, World, until};

/// Post-copy of the busy guest takes ten seconds.
const SLOW: &str = "--mode postcopy --bandwidth 10M --compression none";

fn busy_guest(world: &World) -> Journey<'_> {
    Journey::begin(world, Guest::BUSY)
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
#[cfg_attr(no_kvm, ignore = "needs /dev/kvm")]
fn commit_is_lost_and_said_again() {
    let world = World::quiet();
    let mut journey = busy_guest(&world);
    let next = world.receive("far");
    let proxy = Proxy::new(&next.address(), Cut::Before(Kind::Commit));
    let reason = journey.attempt(proxy.address(), "--mode precopy").unknown();
    assert!(reason.contains(proxy.address()), "{reason}");
    is_in_doubt(journey.here());
    is_in_doubt(&next);
    assert_eq!(next.console(), b"", "without commit the guest must not run there");
    recovers(&world, &journey, &next.address());
    journey.arrive(next);
}

/// The operator has the destination called again, and the guest moves.
fn recovers(world: &World, journey: &Journey<'_>, to: &str) {
    let words = ["recover", "--to", to, "--recovery-timeout", "20s", "--vm", journey.here().name()];
    let recover = world.ask("migrate", words);
    assert_eq!(recover.code, Some(0), "{}{}", recover.out, recover.err);
}

#[test]
#[cfg_attr(no_kvm, ignore = "needs /dev/kvm")]
fn a_host_that_is_gone_for_good_is_decided_about_when_its_commit_has_lapsed() {
    let world = World::quiet();
    let journey = busy_guest(&world);
    let mut next = world.receive("dies");
    let proxy = Proxy::new(&next.address(), Cut::Before(Kind::Commit));
    let _ = journey.attempt(proxy.address(), "--mode precopy").unknown();
    next.process().kill();
    let force = || world.ask("migrate", ["resolve", "--force-source", "--vm", journey.here().name()]);
    let early = force();
    assert_eq!(early.code, Some(1), "{}", early.err);
    assert!(early.err.contains("may still obey the last commit"), "{}", early.err);
    is_in_doubt(journey.here());
    until("the commit to lapse", || (force().code == Some(0)).then_some(()));
    journey.goes_on();
}

#[test]
#[cfg_attr(no_kvm, ignore = "needs /dev/kvm")]
fn a_whole_guest_outlives_its_source() {
    let world = World::quiet();
    let mut journey = busy_guest(&world);
    let next = world.receive("heir");
    let proxy = Proxy::new(&next.address(), Cut::Before(Kind::Commit));
    let _ = journey.attempt(proxy.address(), "--mode precopy").unknown();
    is_in_doubt(&next);
    journey.here_mut().process().kill();
    let wrong = world.ask("migrate", ["resolve", "--force-source", "--vm", "heir"]);
    assert_eq!(wrong.code, Some(1), "{}", wrong.err);
    let force = world.ask("migrate", ["resolve", "--force-destination", "--vm", "heir"]);
    assert_eq!(force.code, Some(0), "{}", force.err);
    assert!(force.err.contains("warning"), "{}", force.err);
    next.wait_until(Life::Running);
    until("the guest to work there", || (!next.console().is_empty()).then_some(()));
}

#[test]
#[cfg_attr(no_kvm, ignore = "needs /dev/kvm")]
fn a_destination_that_is_started_again_knows_from_its_journal_that_it_never_ran_the_guest() {
    let world = World::quiet();
    let journey = busy_guest(&world);
    let mut next = world.receive("forgetful");
    let proxy = Proxy::new(&next.address(), Cut::Before(Kind::Commit));
    let _ = journey.attempt(proxy.address(), "--mode precopy").unknown();
    next.process().kill();
    let again = world.receive("forgetful");
    let words =
        ["recover", "--to", &again.address(), "--recovery-timeout", "20s", "--vm", journey.here().name()];
    let recover = world.ask("migrate", words);
    assert_eq!(recover.code, Some(1), "kept: {}{}", recover.out, recover.err);
    journey.goes_on();
    again.wait_until(Life::Waiting);
}

#[test]
#[cfg_attr(any(no_kvm, no_userfaultfd), ignore = "needs /dev/kvm and /dev/userfaultfd")]
fn a_link_lost_for_a_second_in_postcopy_is_got_over_by_itself() {
    let world = World::quiet();
    let mut journey = busy_guest(&world);
    let next = world.receive("far");
    let proxy = Proxy::new(&next.address(), Cut::Never);
    let words = format!("{SLOW} --recovery-timeout 30s");
    let mut migration = world.migrate(journey.here(), proxy.address(), &words);
    migration.wait_for("post-copy", following);
    proxy.cut();
    migration.wait_for("the loss", |event| matches!(event, Event::Lost { .. }));
    let name = journey.here().name();
    let told = [
        ("migrate", vec!["status", "--vm", name], "the link was lost: "),
        ("migrate", vec!["cancel", "--vm", name], "has been handed to "),
        ("migrate", vec!["resolve", "--force-destination", "--vm", name], "was to leave from here"),
        ("vmm", vec!["stop", name], "unless it has been handed over"),
    ];
    for (program, words, says) in told {
        let answer = world.ask(program, words);
        assert!(format!("{}{}", answer.out, answer.err).contains(says), "{answer:?}");
    }
    proxy.heal();
    let report = migration.end().moved();
    assert!(report.outages.len() == 1 && report.outages[0].over, "{:?}", report.outages);
    assert_eq!(report.residual_bytes, 0);
    journey.arrive(next);
}

#[test]
#[cfg_attr(any(no_kvm, no_userfaultfd), ignore = "needs /dev/kvm and /dev/userfaultfd")]
fn an_operator_need_not_wait_until_the_time_for_recovery_is_over() {
    let world = World::quiet();
    let journey = busy_guest(&world);
    let mut next = world.receive("gone");
    let words = format!("{SLOW} --recovery-timeout 1h");
    let mut migration = world.migrate(journey.here(), &next.address(), &words);
    migration.wait_for("post-copy", following);
    let resolve = |name: &str, word| world.ask("migrate", ["resolve", word, "--vm", name]);
    let early = resolve("gone", "--discard");
    assert_eq!(early.code, Some(1), "{}", early.err);
    assert!(early.err.contains("the migration is not over"), "{}", early.err);
    next.process().kill();
    migration.wait_for("the loss", |event| matches!(event, Event::Lost { .. }));
    let here = journey.here();
    until("the commit to lapse", || (resolve(here.name(), "--force-source").code == Some(0)).then_some(()));
    let _ = migration.end().unknown();
    here.wait_until(Life::Running);
}

#[test]
#[cfg_attr(any(no_kvm, no_userfaultfd), ignore = "needs /dev/kvm and /dev/userfaultfd")]
fn a_torn_guest_is_made_whole_by_another_way() {
    let world = World::quiet();
    let mut journey = busy_guest(&world);
    let next = world.receive("far");
    let proxy = Proxy::new(&next.address(), Cut::Never);
    let mut migration = world.migrate(journey.here(), proxy.address(), SLOW);
    migration.wait_for("post-copy", following);
    proxy.cut();
    let reason = migration.end().unknown();
    assert!(reason.contains("has run on the destination since"), "{reason}");
    is_in_doubt(&next);
    recovers(&world, &journey, &next.address());
    journey.arrive(next);
}

#[test]
#[cfg_attr(no_kvm, ignore = "needs /dev/kvm")]
fn the_answer_to_commit_is_lost() {
    let world = World::quiet();
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
#[cfg_attr(no_kvm, ignore = "needs /dev/kvm")]
fn the_destination_dies_with_commit() {
    let world = World::quiet();
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
#[cfg_attr(any(no_kvm, no_userfaultfd), ignore = "needs /dev/kvm and /dev/userfaultfd")]
fn the_destination_dies_in_postcopy() {
    let world = World::quiet();
    let journey = busy_guest(&world);
    let mut next = world.receive("dies");
    let mut migration = world.migrate(journey.here(), &next.address(), SLOW);
    migration.wait_for("post-copy", following);
    next.process().kill();
    let _ = migration.end().unknown();
    is_in_doubt(journey.here());
}

#[test]
#[cfg_attr(any(no_kvm, no_userfaultfd), ignore = "needs /dev/kvm and /dev/userfaultfd")]
fn the_source_dies_in_postcopy() {
    let world = World::quiet();
    let mut journey = busy_guest(&world);
    let mut next = world.receive("bereft");
    let mut migration = world.migrate(journey.here(), &next.address(), SLOW);
    migration.wait_for("post-copy", following);
    journey.here_mut().process().kill();
    assert_eq!(migration.process().end().code, Some(3), "the command cannot know how it ended");
    is_in_doubt(&next);
    let resolve = world.ask("migrate", ["resolve", "--force-destination", "--vm", "bereft"]);
    assert_eq!(resolve.code, Some(1), "half a guest cannot run: {}", resolve.err);
    assert!(!next.process().err().is_empty(), "the VMM says that half of its guest is lost");
    let salvage = world.ask("migrate", ["salvage", "--json", "--vm", "bereft"]);
    assert_eq!(salvage.code, Some(0), "{}", salvage.err);
    let kept: Salvage = serde_json::from_str(&salvage.out).expect("what was kept");
    assert!(kept.pages > 0 && kept.missing_pages > 0, "{kept:?}");
    let list = std::fs::read_to_string(kept.list).expect("a list");
    assert!(list.contains("\"missing\""), "{list}");
    assert_eq!(std::fs::metadata(kept.memory).expect("an image").len(), 256 << 20);
}

#[test]
#[cfg_attr(any(no_kvm, no_userfaultfd), ignore = "needs /dev/kvm and /dev/userfaultfd")]
fn the_link_breaks_in_postcopy() {
    let world = World::quiet();
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
#[cfg_attr(any(no_kvm, no_userfaultfd), ignore = "needs /dev/kvm and /dev/userfaultfd")]
fn a_goodbye_that_is_lost_changes_nothing() {
    let world = World::quiet();
    let mut journey = busy_guest(&world);
    let next = world.receive("far");
    let proxy = Proxy::new(&next.address(), Cut::Before(Kind::Finish));
    let report = journey.attempt(proxy.address(), "--mode hybrid").moved();
    assert_eq!(report.residual_bytes, 0);
    journey.arrive(next);
}

/// How a migration ends when the link breaks there.
fn expected(cut: Cut) -> &'static [Outcome] {
    use Outcome::{Kept, Moved, Unknown};
    match cut {
        Cut::Before(Kind::Missing | Kind::State | Kind::Ready) | Cut::After(Kind::Missing | Kind::State) => {
            &[Kept]
        }
        // The source may see the link break before it has anything to lose.
        Cut::After(Kind::Ready) => &[Kept, Unknown],
        // The first pages go with the state: on their way the guest is still the source's, or already handed over.
        Cut::Before(Kind::Push) | Cut::After(Kind::Push) => &[Kept, Unknown],
        Cut::Before(Kind::Commit | Kind::Running | Kind::Complete) => &[Unknown],
        Cut::After(Kind::Commit | Kind::Running) => &[Unknown],
        _ => &[Moved],
    }
}

#[test]
#[cfg_attr(any(no_kvm, no_userfaultfd), ignore = "needs /dev/kvm and /dev/userfaultfd")]
fn whichever_message_is_the_last_the_guest_runs_once_at_most() {
    let world = World::quiet();
    let kinds =
        [Kind::Missing, Kind::State, Kind::Ready, Kind::Commit, Kind::Running, Kind::Push, Kind::Complete];
    let goodbye = [Kind::Hashes, Kind::Verified, Kind::Finish, Kind::Figures, Kind::Settled, Kind::Bye];
    let kinds = kinds.into_iter().chain(goodbye);
    for cut in kinds.flat_map(|kind| [Cut::Before(kind), Cut::After(kind)]) {
        let guest = Guest { words: "dirty ws=8 rate=2000 fill=16", memory: "64M", ..Guest::IDLE };
        let [mut source, next] = [world.run("from", guest), world.receive("to")];
        until("the guest to work", || source.transcript().has_begun().then_some(()));
        let proxy = Proxy::new(&next.address(), cut);
        let words = "--mode postcopy --verify";
        let outcome = world.migrate(&source, proxy.address(), words).end().report().outcome;
        assert!(proxy.is_cut() && expected(cut).contains(&outcome), "{cut:?}: {outcome:?}");
        if outcome == Outcome::Moved {
            assert_eq!(source.end().code, Some(0), "{cut:?}");
        }
        let there = until(&format!("the destination to know, {cut:?}"), || {
            next.life().filter(|life| *life != Life::Arriving)
        });
        match (outcome, source.life(), there) {
            // Held, if it had said ready: over a link that stays broken the source cannot tell it to let go.
            (Outcome::Kept, Some(Life::Running), Life::Waiting | Life::Unknown) => {}
            (Outcome::Unknown, Some(Life::Unknown), Life::Waiting | Life::Running | Life::Unknown) => {}
            (Outcome::Moved, None, Life::Running) => {}
            (_, here, there) => panic!("{cut:?}: {outcome:?}, but {here:?} here and {there:?} there"),
        }
    }
}
