//! A migration that waits for its operator before it switches over, and one whose time is up while it copies.

mod sim;

use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::time::Duration;

use migrate::channel::Deadlines;
use migrate::channel::memory::Place;
use migrate::journal::Journals;
use migrate::options::{Mode, OnTimeout, Options};
use migrate::progress::{Event, Silent};
use migrate::report::{Outcome, Phase, Report};
use migrate::source::Route;
use migrate::{Arrival, Cancel, NotWaiting, Receiver};
use sim::attempt::{Attempt, attempt, attempt_of, attempt_with, short};
use sim::link::{Blow, Fuse, Fusing};
use sim::{At, Habit, MODES, Runners, Sim, SimHost, options, reported};

fn waits(event: &Event) -> bool {
    matches!(event, Event::Phase { phase: Phase::Waiting })
}

fn pausing(mode: Mode) -> Options {
    Options { pause_before_switchover: true, ..options(mode) }
}

/// Moves a guest; `while_it_waits` is called when the source waits for its operator.
fn go(options: &Options, cancel: &Cancel, while_it_waits: impl FnOnce() + Send) -> Attempt {
    let (told, hears) = mpsc::channel();
    let observer = At(move |event: &Event| {
        if waits(event) {
            let _ = told.send(());
        }
    });
    let place = Place::new();
    std::thread::scope(|scope| {
        scope.spawn(move || hears.recv().map(|()| while_it_waits()));
        let deadlines = short(Duration::from_millis(500));
        attempt_with(options, deadlines, &place.clone(), Box::new(place), cancel, &observer)
    })
}

fn phases(report: &Report) -> Vec<Phase> {
    report.phases.iter().map(|it| it.phase).collect()
}

#[test]
fn every_mode_waits_with_the_guest_running_until_it_is_told_to_go_on() {
    for mode in MODES {
        let cancel = Cancel::new();
        assert_eq!(cancel.go_on(), Err(NotWaiting), "nothing has begun");
        // Longer than the time limit, which stands meanwhile, and than any silence that is borne.
        let limited = Options { timeout: Some(Duration::from_secs(3)), ..pausing(mode) };
        let attempt = go(&limited, &cancel, || {
            std::thread::sleep(Duration::from_millis(3300));
            // The word can be given from shortly after the phase is told.
            while cancel.go_on().is_err() {
                std::thread::yield_now();
            }
        });
        attempt.check("told to go on");
        let report = &attempt.report;
        assert_eq!(report.outcome, Outcome::Moved, "{mode:?}: {:?}", report.reason);
        assert_eq!(attempt.guest.pauses.load(Ordering::SeqCst), 1, "{mode:?}");
        let expected: &[Phase] = match mode {
            Mode::Precopy | Mode::Hybrid => {
                &[Phase::Connect, Phase::Precopy, Phase::Waiting, Phase::Precopy, Phase::Switchover]
            }
            Mode::Stopcopy | Mode::Postcopy => &[Phase::Connect, Phase::Waiting, Phase::Switchover],
        };
        assert_eq!(phases(report)[..expected.len()], *expected, "{mode:?}");
        let waited = report.phases.iter().find(|it| it.phase == Phase::Waiting).expect("it waited");
        assert!(waited.us >= 3_000_000, "{mode:?}: {waited:?}");
        // Rounds are numbered from 0, the wait's as well, which has a few at least.
        if let Some(last) = report.rounds.last() {
            let listed = report.rounds.len() as u32;
            assert!(listed + 3 <= last.number, "{mode:?}: the wait's rounds are listed one by one: {listed}");
        }
        assert_eq!(cancel.go_on(), Err(NotWaiting), "over");
    }
}

#[test]
fn a_cancel_ends_the_wait_for_the_operator() {
    for mode in MODES {
        let cancel = Cancel::new();
        let attempt = go(&pausing(mode), &cancel, || cancel.cancel("enough").expect("it waits"));
        attempt.check("cancelled");
        assert_eq!(attempt.report.outcome, Outcome::Kept);
        let reason = attempt.report.reason.expect("a reason");
        assert_eq!(reason, "waiting for `migrate continue`: cancelled: enough", "{mode:?}");
        assert_eq!(attempt.guest.pauses.load(Ordering::SeqCst), 0);
    }
}

#[test]
fn a_link_that_is_lost_while_the_operator_is_waited_for_keeps_the_guest() {
    for (mode, blow) in MODES.into_iter().flat_map(|mode| [(mode, Blow::Cut), (mode, Blow::Silence)]) {
        let (place, fuse) = (Place::new(), Fuse::new(i64::MAX, blow));
        let fused = Fusing { inner: place.clone(), fuse: fuse.clone() };
        let cut = At(|event: &Event| {
            if waits(event) {
                fuse.blow();
            }
        });
        let deadlines = short(Duration::from_millis(300));
        let attempt = attempt_with(&pausing(mode), deadlines, &fused, Box::new(place), &Cancel::new(), &cut);
        attempt.check("lost while waiting");
        let reason = attempt.report.reason.expect("a reason");
        assert!(reason.starts_with("waiting for `migrate continue`: "), "{mode:?}, {blow:?}: {reason}");
    }
}

/// Time is up in round 0, which takes a second or so.
fn hasty(mode: Mode, on_timeout: OnTimeout) -> Options {
    let timeout = Duration::from_millis(150);
    Options { on_timeout, timeout: Some(timeout), bandwidth: Some(400 << 10), streams: 1, ..options(mode) }
}

fn in_memory(options: &Options) -> Attempt {
    let place = Place::new();
    attempt(options, Deadlines::default(), &place.clone(), Box::new(place))
}

#[test]
fn when_time_is_up_in_a_round_what_the_operator_has_said_is_done() {
    for (mode, on_timeout) in [
        (Mode::Precopy, OnTimeout::Postcopy),
        (Mode::Hybrid, OnTimeout::Postcopy),
        (Mode::Precopy, OnTimeout::Force),
    ] {
        // Far more than is allowed is left.
        let asked = Options { max_downtime: Duration::from_millis(1), ..hasty(mode, on_timeout) };
        let attempt = in_memory(&asked);
        attempt.check("time is up");
        let report = &attempt.report;
        assert_eq!(report.outcome, Outcome::Moved, "{mode:?}, {on_timeout:?}: {:?}", report.reason);
        assert_eq!(report.on_timeout, Some(on_timeout));
        assert_eq!(report.postcopy.is_some(), on_timeout == OnTimeout::Postcopy, "{mode:?}");
        let switchover = report.switchover.expect("paused");
        assert_eq!(switchover.pages > 0, on_timeout == OnTimeout::Force, "{switchover:?}");
        assert!(matches!(attempt.arrival, Arrival::Arrived { .. }));
    }
    let kept = in_memory(&hasty(Mode::Precopy, OnTimeout::Cancel));
    kept.check("time is up");
    let reason = kept.report.reason.expect("a reason");
    assert!(reason.contains("not done within 0.2 s; --timeout allows more"), "{reason}");
    assert_eq!(kept.report.on_timeout, None);
}

#[test]
fn rounds_that_do_not_converge_end_as_if_time_were_up() {
    for on_timeout in [OnTimeout::Postcopy, OnTimeout::Force] {
        // No pause is that short.
        let impossible =
            Options { on_timeout, max_downtime: Duration::from_nanos(1), ..options(Mode::Precopy) };
        let attempt = in_memory(&impossible);
        attempt.check("not converging");
        let report = &attempt.report;
        assert_eq!(report.outcome, Outcome::Moved, "{on_timeout:?}: {:?}", report.reason);
        assert_eq!(report.on_timeout, Some(on_timeout));
        assert_eq!(report.postcopy.is_some(), on_timeout == OnTimeout::Postcopy);
    }
}

/// Writes some 20,000 pages a second to 1024, of which the network takes 4096 a second.
fn restless(throttle: u8) -> Attempt {
    let habit = Habit { pages: 2048, working_set: 1024, burst: 8, ..Habit::default() };
    let asked = Options {
        throttle,
        bandwidth: Some(16 << 20),
        max_downtime: Duration::from_millis(50),
        streams: 1,
        ..options(Mode::Precopy)
    };
    let place = Place::new();
    let (deadlines, cancel) = (Deadlines::default(), Cancel::new());
    attempt_of(habit, &asked, deadlines, &place.clone(), Box::new(place), &cancel, &Silent)
}

#[test]
fn a_guest_that_writes_faster_than_the_network_is_caught_by_being_held_back() {
    let attempt = restless(99);
    attempt.check("held back");
    let report = &attempt.report;
    assert_eq!(report.outcome, Outcome::Moved, "{:?}", report.reason);
    let held_back: Vec<_> = report.rounds.iter().map(|round| round.throttle).collect();
    assert!(held_back[0] == 0 && held_back.is_sorted() && *held_back.last().unwrap() >= 50, "{held_back:?}");
    let switchover = report.switchover.expect("paused");
    assert!(switchover.estimated_us < 50_000 && switchover.pages < 250, "{switchover:?}");
}

#[test]
fn a_guest_that_was_held_back_in_vain_runs_on_as_before() {
    for throttle in [0, 20] {
        let attempt = restless(throttle);
        // That nobody is held back any more is checked there.
        attempt.check("does not converge");
        let report = &attempt.report;
        assert_eq!(report.outcome, Outcome::Kept);
        assert!(
            report.reason.as_ref().is_some_and(|why| why.contains("with --throttle")),
            "{:?}",
            report.reason
        );
        assert_eq!(report.rounds.iter().map(|round| round.throttle).max(), Some(throttle));
    }
}

#[test]
fn a_move_that_could_have_become_post_copy_and_need_not_is_plain_pre_copy() {
    for verify in [false, true] {
        let ready = Options { on_timeout: OnTimeout::Postcopy, verify, ..options(Mode::Precopy) };
        let attempt = in_memory(&ready);
        attempt.check("in time");
        let report = &attempt.report;
        assert_eq!(report.outcome, Outcome::Moved, "{:?}", report.reason);
        assert_eq!((report.on_timeout, report.postcopy), (None, None));
        assert_eq!(report.verification.is_some(), verify);
        assert_eq!(report.verification.as_ref().map_or(0, |found| found.mismatched), 0);
    }
}

#[test]
fn a_destination_that_cannot_do_what_time_may_call_for_refuses_at_the_start() {
    let runners = Runners::default();
    let guest = Sim::booted(Habit::default(), runners.clone());
    for (on_timeout, outcome) in [(OnTimeout::Postcopy, Outcome::Kept), (OnTimeout::Force, Outcome::Moved)] {
        let place = Place::new();
        let mut host = SimHost::new(Habit::default(), &runners);
        host.no_postcopy = Some("no userfaultfd here".to_owned());
        let receiver = Receiver::over(Box::new(place.clone()), Deadlines::default());
        let report = std::thread::scope(|scope| {
            let receiving = scope.spawn(|| receiver.receive(&host, &Silent));
            let route =
                Route { dial: &place, deadlines: Deadlines::default(), journals: Journals::nowhere() };
            let asked = Options { on_timeout, ..options(Mode::Precopy) };
            let report = reported(&*guest, &asked, route, &Cancel::new(), &Silent);
            receiver.stop();
            drop(receiving.join().expect("no panic"));
            report
        });
        assert_eq!(report.outcome, outcome, "{:?}", report.reason);
        assert_eq!(
            report.reason.is_some_and(|reason| reason.contains("no userfaultfd here")),
            outcome == Outcome::Kept
        );
        host.shut_down();
    }
    guest.shut_down();
}

#[test]
fn what_time_cut_short_and_post_copy_brought_is_the_same_as_here() {
    let verified = Options { verify: true, ..hasty(Mode::Precopy, OnTimeout::Postcopy) };
    let attempt = in_memory(&verified);
    attempt.check("compared");
    let report = &attempt.report;
    assert_eq!(report.outcome, Outcome::Moved, "{:?}", report.reason);
    let found = report.verification.as_ref().expect("compared");
    assert_eq!(found.mismatched, 0, "{found:?}");
}
