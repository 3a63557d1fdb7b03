//! Proves that a move waits for its operator where it is asked to, does what was said for the time when time is up, and
//! after a cancel at any such point can go elsewhere at once.

use migrate::client::types::Life;
use migrate::options::OnTimeout;
use migrate::progress::Event;
use migrate::report::{Phase, Report};
use tests::{Guest, Journey, Vm, World, until};

/// Writes all the time, in 32 MiB.
fn busy() -> Guest {
    Guest::BUSY.words("dirty ws=32 rate=10000 fill=32")
}

fn waiting(event: &Event) -> bool {
    matches!(event, Event::Progress(progress) if progress.phase == Phase::Waiting)
}

fn phases(report: &Report) -> Vec<Phase> {
    report.phases.iter().map(|it| it.phase).collect()
}

/// A word of the operator's, and what came of it.
fn say(world: &World, vm: &Vm, word: &str) -> (Option<i32>, String) {
    let output = world.ask("migrate", [word, "--vm", vm.name()]);
    (output.code, output.out + &output.err)
}

#[test]
#[cfg_attr(no_kvm, ignore = "needs /dev/kvm")]
#[cfg_attr(no_userfaultfd, ignore = "needs userfaultfd")]
fn a_guest_runs_on_until_its_operator_lets_it_switch_over() {
    let world = World::alone();
    let mut journey = Journey::begin(&world, busy());
    let refused = say(&world, journey.here(), "continue");
    assert!(refused.0 == Some(1) && refused.1.contains("no migration is leaving"), "{refused:?}");
    for (station, mode) in ["precopy", "stopcopy", "postcopy", "hybrid"].into_iter().enumerate() {
        let next = world.receive(&format!("next{station}"));
        let words = format!("--mode {mode} --pause-before-switchover");
        let mut migration = world.migrate(journey.here(), &next.address(), &words);
        migration.wait_for("the move to wait", waiting);
        let (code, said) = say(&world, journey.here(), "status");
        assert!(code == Some(0) && said.starts_with("waiting for `migrate continue`: "), "{mode}: {said}");
        assert!(journey.here().works_on().work_per_s > 0, "{mode}: it runs on");
        let (code, said) = say(&world, journey.here(), "continue");
        assert_eq!(code, Some(0), "{mode}: {said}");
        let report = migration.end().moved();
        assert!(phases(&report).contains(&Phase::Waiting), "{mode}: {:?}", report.phases);
        journey.arrive(next);
    }
}

#[test]
#[cfg_attr(no_kvm, ignore = "needs /dev/kvm")]
#[cfg_attr(no_userfaultfd, ignore = "needs userfaultfd")]
fn a_move_cancelled_while_it_waits_can_go_elsewhere_at_once() {
    let world = World::alone();
    let mut journey = Journey::begin(&world, busy());
    let first = world.receive("first");
    for (attempt, mode) in ["precopy", "postcopy"].into_iter().enumerate() {
        let words = format!("--mode {mode} --pause-before-switchover");
        // The destination may still be clearing away the attempt before.
        until("the destination to wait", || first.life().filter(|life| *life == Life::Waiting));
        let mut migration = world.migrate(journey.here(), &first.address(), &words);
        migration.wait_for("the move to wait", waiting);
        assert_eq!(say(&world, journey.here(), "cancel").0, Some(0));
        let reason = migration.end().kept();
        assert!(reason.contains("waiting for `migrate continue`: cancelled"), "{reason}");
        let next = world.receive(&format!("second{attempt}"));
        let report = journey.attempt(&next.address(), &format!("--mode {mode} --verify")).moved();
        assert_eq!(report.verification.expect("compared").mismatched, 0);
        journey.arrive(next);
    }
}

#[test]
#[cfg_attr(no_kvm, ignore = "needs /dev/kvm")]
fn a_guest_that_writes_faster_than_it_is_sent_moves_by_pre_copy_if_it_may_be_held_back() {
    let world = World::alone();
    let mut journey = Journey::begin(&world, Guest::BUSY.words("dirty ws=32 rate=40000 fill=32"));
    let words = "--mode precopy --bandwidth 40M --compression none --max-downtime 400ms --verify";
    let next = world.receive("next");
    let reason = journey.attempt(&next.address(), &format!("{words} --throttle 15")).kept();
    assert!(reason.contains("by more than 15 % with --throttle"), "{reason}");
    until("the destination to wait", || next.life().filter(|life| *life == Life::Waiting));
    let report = journey.attempt(&next.address(), &format!("{words} --throttle 99")).moved();
    let held_back: Vec<_> = report.rounds.iter().map(|round| round.throttle).collect();
    assert!(held_back[0] == 0 && held_back.last() > Some(&50), "{held_back:?}");
    assert_eq!(report.verification.expect("compared").mismatched, 0);
    journey.arrive(next);
    let words = "--mode hybrid --throttle 50";
    let refused = world.ask(
        "migrate",
        [&["--vm", journey.here().name(), "--to", "h:1"][..], &words.split(' ').collect::<Vec<_>>()].concat(),
    );
    assert!(refused.code == Some(2) && refused.err.contains("choose --mode precopy"), "{refused:?}");
}

#[test]
#[cfg_attr(no_kvm, ignore = "needs /dev/kvm")]
#[cfg_attr(no_userfaultfd, ignore = "needs userfaultfd")]
fn when_time_is_up_in_a_round_the_guest_moves_as_its_operator_has_said() {
    let world = World::alone();
    let mut journey = Journey::begin(&world, busy());
    for (station, (words, done)) in [
        ("--mode precopy --on-timeout postcopy", OnTimeout::Postcopy),
        ("--mode hybrid --on-timeout postcopy", OnTimeout::Postcopy),
        ("--mode precopy --on-timeout force", OnTimeout::Force),
    ]
    .into_iter()
    .enumerate()
    {
        let next = world.receive(&format!("next{station}"));
        // Round 0 alone would take three seconds.
        let words =
            format!("{words} --timeout 1s --bandwidth 10M --compression none --max-downtime 1ms --verify");
        let report = journey.attempt(&next.address(), &words).moved();
        assert_eq!(report.on_timeout, Some(done), "{words}");
        assert_eq!(report.postcopy.is_some(), done == OnTimeout::Postcopy, "{words}");
        assert_eq!(report.rounds.len(), 1, "{words}: cut short");
        assert_eq!(report.verification.expect("compared").mismatched, 0, "{words}");
        journey.arrive(next);
    }
}
