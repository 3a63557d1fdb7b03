//! Every mode moves a guest that goes on writing, with contents equal, over memory links and TCP.

mod sim;

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use migrate::channel::memory::Place;
use migrate::channel::tcp::{TcpDial, TcpListen};
use migrate::channel::{Deadlines, Dial, Listen};
use migrate::guest::Packet;
use migrate::journal::Journals;
use migrate::options::{InFlightPolicy, Mode, Options};
use migrate::pages::{PageRun, PageSet};
use migrate::progress::{Event, Silent};
use migrate::report::{Outcome, Phase, Report};
use migrate::source::Route;
use migrate::{Arrival, Cancel, Receiver};
use sim::{At, Habit, MODES, Runners, Sim, SimHost, has_few_cores, options, reported};

fn deadlines() -> Deadlines {
    Deadlines { settle: Duration::from_millis(20), ..Deadlines::default() }
}

/// Moves a guest and says how it went on both sides. The guest has gone on and been checked wherever it is, and nothing
/// was told while it stood still and shortly after.
fn go(
    options: &Options,
    habit: Habit,
    dial: &dyn Dial,
    listen: Box<dyn Listen>,
    upset: impl FnOnce(&Sim, &mut SimHost),
) -> (Report, Arrival) {
    let runners = Runners::default();
    let guest = Sim::booted(habit, runners.clone());
    let mut host = SimHost::new(habit, &runners);
    upset(&guest, &mut host);
    let waiting = guest.packets().clone();
    let receiver = Receiver::over(listen, deadlines());
    let route = Route { dial, deadlines: deadlines(), journals: Journals::nowhere() };
    let told = Mutex::new(Vec::new());
    let observer = At(|event: &Event| {
        // A beat of progress may be under way when the pause begins.
        let undisturbed = matches!(event, Event::Progress(_)) || runners.count() == 1;
        assert!(
            undisturbed,
            "told while no machine runs the guest: {event:?} {options:?} {:?}",
            std::backtrace::Backtrace::force_capture()
        );
        told.lock().unwrap().push(event.clone());
    });
    let (report, arrival) = std::thread::scope(|scope| {
        let receiving = scope.spawn(|| receiver.receive(&host, &Silent));
        let report = reported(&*guest, options, route, &Cancel::new(), &observer);
        (report, receiving.join().expect("no panic"))
    });
    let holder =
        if report.outcome == Outcome::Moved { host.guest().expect("built") } else { Arc::clone(&guest) };
    assert_told_in_order(&told.into_inner().unwrap(), &report);
    assert_eq!(runners.count(), 1, "{report:?}");
    assert!(holder.is_running());
    assert!(!guest.ram.is_logging() || report.outcome == Outcome::Moved, "a kept guest is as fast as before");
    if report.outcome == Outcome::Kept {
        assert_eq!(*guest.packets(), waiting, "a guest that stays has its packets");
    }
    holder.wait_steps(50);
    holder.check_all();
    guest.shut_down();
    host.shut_down();
    (report, arrival)
}

/// The switchover is told as a whole, when it is over.
fn assert_told_in_order(told: &[Event], report: &Report) {
    let at = |wanted: Event| told.iter().position(|event| *event == wanted);
    assert!(matches!(told.last(), Some(Event::Ended { .. })), "{told:?}");
    let Some(switchover) = report.switchover else { return };
    let after = if report.postcopy.is_some() { Phase::Postcopy } else { Phase::Finish };
    let switched = at(Event::Switched { switchover }).expect("told");
    let all = [
        Event::Phase { phase: Phase::Switchover },
        Event::Switched { switchover },
        Event::Phase { phase: after },
    ];
    assert_eq!(told[switched - 1..][..3], all, "{told:?}");
    assert_eq!(told.iter().filter(|event| matches!(event, Event::Switched { .. })).count(), 1);
}

fn over_tcp(options: &Options, habit: Habit, upset: impl FnOnce(&Sim, &mut SimHost)) -> (Report, Arrival) {
    let listen = TcpListen::bind("127.0.0.1:0").expect("a free port");
    let dial = TcpDial::new(&listen.address().expect("bound").to_string());
    go(options, habit, &dial, Box::new(listen), upset)
}

fn in_memory(options: &Options, habit: Habit, upset: impl FnOnce(&Sim, &mut SimHost)) -> (Report, Arrival) {
    let place = Place::new();
    go(options, habit, &place.clone(), Box::new(place), upset)
}

fn assert_moved(report: &Report, arrival: &Arrival) {
    assert_eq!(report.outcome, Outcome::Moved, "{report:#?} {arrival:?}");
    assert_eq!(report.reason, None);
    assert_eq!(report.residual_bytes, 0);
    assert!(matches!(arrival, Arrival::Arrived { .. }), "{arrival:?}");
    let switchover = report.switchover.expect("it was paused");
    assert!(switchover.downtime_us > 0 && switchover.state_bytes > 0);
    // By one clock: steps that follow each other, whoever did them, are no longer than the whole.
    let takeover = report.takeover.expect("the destination tells of it");
    assert!(switchover.commit_us + takeover.start_us <= switchover.resume_us, "{report:#?}");
    let there = takeover.missing_us + switchover.restore_us + takeover.last_pages_us;
    let here = switchover.pause_us + switchover.save_us + switchover.harvest_us + switchover.resume_us;
    assert!(here + there <= switchover.downtime_us, "{report:#?}");
}

#[test]
fn hybrid_ends_as_precopy_where_little_is_left() {
    let allowed = Options { max_downtime: Duration::from_secs(5), ..options(Mode::Hybrid) };
    let at_rest = Habit { burst: 1, rest: Some(Duration::from_millis(50)), ..Habit::default() };
    let (report, arrival) = in_memory(&allowed, at_rest, |_, _| {});
    assert_moved(&report, &arrival);
    assert_eq!(report.postcopy, None, "{report:#?}");
}

#[test]
fn every_mode_moves_a_busy_guest_in_memory() {
    for mode in MODES {
        let (report, arrival) = in_memory(&options(mode), Habit::default(), |_, _| {});
        assert_moved(&report, &arrival);
        assert_eq!(report.postcopy.is_some(), matches!(mode, Mode::Postcopy | Mode::Hybrid));
        assert!(report.postcopy.is_none_or(|figures| figures.duplicate_pages <= figures.faults));
    }
}

#[test]
fn every_mode_moves_a_larger_guest_over_tcp() {
    let habit = Habit {
        pages: 4096 + 64,
        working_set: 2000,
        burst: 20,
        rest: Some(Duration::from_micros(100)),
        ..Habit::default()
    };
    for mode in MODES {
        for verify in [false, true] {
            let options = Options { verify, streams: 3, ..options(mode) };
            let (report, arrival) = over_tcp(&options, habit, |_, _| {});
            assert_moved(&report, &arrival);
            let sent = report.traffic.pages + report.traffic.zero_pages;
            assert!(sent >= 4096 * 3 / 4, "{:?}", report.traffic);
            let verification = report.verification.filter(|verification| verification.mismatched == 0);
            assert_eq!(verification.is_some(), verify);
            assert_eq!(report.unverified, None);
        }
    }
}

#[test]
fn a_page_that_no_log_saw_is_found_by_verification_and_the_guest_is_kept() {
    for mode in [Mode::Precopy, Mode::Stopcopy] {
        let options = Options { verify: true, ..options(mode) };
        let corrupt = |_: &Sim, host: &mut SimHost| {
            // The destination's memory is wrong before anything lands: a page that is never sent.
            host.prepare = |sim| sim.ram.write(190, 0xbad);
        };
        let (report, arrival) = in_memory(&options, Habit::default(), corrupt);
        assert_eq!(report.outcome, Outcome::Kept, "{report:#?}");
        let reason = report.reason.expect("a reason");
        assert!(reason.contains("1 of 192 pages differ, first at frame 0xbe"), "{reason}");
        assert!(matches!(arrival, Arrival::Failed { .. }));
    }
}

#[test]
fn a_guest_that_never_settles_is_kept_and_hybrid_moves_it() {
    let wild = Habit { pages: 2048, working_set: 1500, burst: 5000, rest: None, ..Habit::default() };
    // 1500 pages take 300 ms: far more than is allowed, which is far more than the pause costs otherwise.
    let strict = |mode| Options {
        max_downtime: Duration::from_millis(100),
        bandwidth: Some(20 << 20),
        ..options(mode)
    };
    let (report, _) = in_memory(&strict(Mode::Precopy), wild, |_, _| {});
    assert_eq!(report.outcome, Outcome::Kept);
    let reason = report.reason.expect("a reason");
    assert!(reason.contains("does not converge") && reason.contains("hybrid"), "{reason}");
    let (report, arrival) = in_memory(&strict(Mode::Hybrid), wild, |_, _| {});
    assert_moved(&report, &arrival);
}

#[test]
fn a_refusal_brings_every_reason() {
    let reasons = vec!["CPU feature avx2 is missing".to_owned(), "device rng is unknown".to_owned()];
    let refuse = |_: &Sim, host: &mut SimHost| host.reasons = reasons.clone();
    let (report, arrival) = in_memory(&options(Mode::Precopy), Habit::default(), refuse);
    assert_eq!(report.outcome, Outcome::Kept);
    let reason = report.reason.expect("a reason");
    assert!(reason.contains(&reasons.join("; ")), "{reason}");
    let Arrival::Failed { reason } = arrival else { panic!("{arrival:?}") };
    assert!(reason.contains(&reasons[0]) && reason.contains(&reasons[1]), "{reason}");
}

#[test]
fn whatever_breaks_on_either_side_before_commit_keeps_the_guest() {
    type Upset = fn(&Sim, &mut SimHost);
    let cases: [(&str, Upset); 6] = [
        ("pause is broken", |guest, _| guest.broken.pause.store(true, Ordering::SeqCst)),
        ("save is broken", |guest, _| guest.broken.save.store(true, Ordering::SeqCst)),
        ("harvest is broken", |guest, _| guest.broken.harvest.store(true, Ordering::SeqCst)),
        ("hand-over is broken", |guest, _| guest.broken.hand_over.store(true, Ordering::SeqCst)),
        ("restore is broken", |_, host| {
            host.prepare = |sim| sim.broken.restore.store(true, Ordering::SeqCst);
        }),
        // After commit, but the destination says that it does not run the guest.
        ("resume is broken", |_, host| {
            host.prepare = |sim| sim.broken.resume.store(true, Ordering::SeqCst);
        }),
    ];
    for mode in MODES {
        for (words, upset) in cases {
            if mode == Mode::Stopcopy && words.starts_with("harvest") {
                continue;
            }
            let (report, arrival) = in_memory(&options(mode), Habit::default(), upset);
            assert_eq!(report.outcome, Outcome::Kept, "{mode:?} {report:#?}");
            let reason = report.reason.expect("a reason");
            assert!(reason.contains(words), "{mode:?}: {reason}");
            assert!(matches!(arrival, Arrival::Failed { .. }), "{arrival:?}");
        }
    }
}

#[test]
fn a_guest_with_telemetry_measures_its_own_move() {
    let habit = Habit { telemetry: true, ..Habit::default() };
    let (report, arrival) = in_memory(&options(Mode::Precopy), habit, |_, _| {});
    assert_moved(&report, &arrival);
    let measured = report.guest_measured.expect("it has telemetry");
    assert!((measured.downtime_us - 100.0).abs() < 1e-6, "{measured:?}");
    let busy = Habit { acknowledges_after: Duration::from_millis(800), ..habit };
    let late = in_memory(&options(Mode::Precopy), busy, |_, _| {}).0;
    assert!(late.guest_measured.is_some(), "a busy host's guest was not waited for");
    let without = in_memory(&options(Mode::Precopy), Habit::default(), |_, _| {}).0;
    assert_eq!(without.guest_measured, None);
}

/// A packet that says where and when it came.
fn packet(nic: u32, text: &str) -> Packet {
    Packet { nic, bytes: text.as_bytes().to_vec() }
}

#[test]
fn packets_that_come_late_are_sent_after_the_guest() {
    for mode in MODES {
        let habit = Habit { nics: 2, ..Habit::default() };
        let runners = Runners::default();
        let (guest, host) = (Sim::booted(habit, runners.clone()), SimHost::new(habit, &runners));
        *guest.packets() = vec![packet(0, "in the pause"), packet(1, "on the other interface")];
        // One comes when the guest runs there and those of the pause are on their way.
        let observer = At(|event: &Event| {
            if matches!(event, Event::Switched { .. }) {
                let limit = Instant::now() + Duration::from_secs(5);
                while !guest.packets().is_empty() && Instant::now() < limit {
                    std::thread::yield_now();
                }
                guest.packets().push(packet(1, "late"));
            }
        });
        let place = Place::new();
        let receiver = Receiver::over(Box::new(place.clone()), deadlines());
        let (report, arrival) = std::thread::scope(|scope| {
            let receiving = scope.spawn(|| receiver.receive(&host, &Silent));
            let route = Route { dial: &place, deadlines: deadlines(), journals: Journals::nowhere() };
            let report = reported(&*guest, &options(mode), route, &Cancel::new(), &observer);
            (report, receiving.join().expect("no panic"))
        });
        assert_moved(&report, &arrival);
        let there = host.guest().expect("a machine");
        let texts = [packet(0, "in the pause"), packet(1, "on the other interface"), packet(1, "late")];
        assert_eq!(*there.packets(), texts, "{mode:?}");
        let counted = report.in_flight.expect("it has a network");
        let bytes = texts.iter().map(|packet| packet.bytes.len() as u64).sum();
        assert_eq!((counted.packets, counted.bytes), (3, bytes), "{mode:?} {counted:?}");
        assert!(counted.last_us > 0);
        guest.shut_down();
        host.shut_down();
    }
}

#[test]
fn packets_are_dropped_where_that_is_asked_for_and_kept_where_the_guest_stays() {
    let networked = Habit { nics: 1, ..Habit::default() };
    let dropping = Options { in_flight: InFlightPolicy::Drop, ..options(Mode::Precopy) };
    let mut built = None;
    let (report, arrival) = in_memory(&dropping, networked, |guest, host| {
        guest.packets().push(packet(0, "lost"));
        built = Some(Arc::clone(&host.built));
    });
    assert_moved(&report, &arrival);
    let counted = report.in_flight.expect("it has a network");
    assert_eq!((counted.policy, counted.packets), (InFlightPolicy::Drop, 0));
    let there = built.expect("a host").lock().expect("no panic").clone().expect("a machine");
    assert_eq!(*there.packets(), []);

    let (report, _) = in_memory(&options(Mode::Precopy), networked, |guest, host| {
        guest.packets().push(packet(0, "its own"));
        host.prepare = |sim| sim.broken.resume.store(true, Ordering::SeqCst);
    });
    assert_eq!((report.outcome, report.in_flight), (Outcome::Kept, None));
    let (report, _) = in_memory(&options(Mode::Precopy), Habit::default(), |_, _| {});
    assert_eq!((report.outcome, report.in_flight), (Outcome::Moved, None), "no network");
}

#[test]
fn the_rate_limit_is_kept() {
    let habit = Habit { pages: 1024, working_set: 1, ..Habit::default() };
    let slow = Options { bandwidth: Some(10 << 20), ..options(Mode::Stopcopy) };
    let (report, arrival) = in_memory(&slow, habit, |_, _| {});
    assert_moved(&report, &arrival);
    // About 660 pages with content: 2.6 MiB, a quarter of a second.
    assert!(report.total_us > 150_000, "{} us", report.total_us);
}

#[test]
fn a_touched_zero_page_that_is_being_pushed_is_not_held_back() {
    // The guest touches zero pages only; what the rate limit holds up are others.
    let habit = Habit { pages: 1024, working_set: 256, zeros: 256, burst: 1, ..Habit::default() };
    let slow = Options { bandwidth: Some(2 << 20), ..options(Mode::Postcopy) };
    let (report, arrival) = in_memory(&slow, habit, |_, _| {});
    assert_moved(&report, &arrival);
    let figures = report.postcopy.expect("pages were missing");
    assert!(figures.faults > 0 && figures.last_page_us > 500_000, "{figures:?}");
    assert!(figures.fault_max_us < figures.last_page_us / 3, "{figures:?}");
}

#[test]
fn whole_blocks_are_moved_while_the_guest_touches_others() {
    for (mode, streams) in [(Mode::Postcopy, 1), (Mode::Postcopy, 3), (Mode::Hybrid, 1)] {
        let habit = Habit { pages: 16 * 512, working_set: 3000, solid_from: 1024, ..Habit::default() };
        let options = Options { streams, ..options(mode) };
        let mut built = None;
        let note = |_: &Sim, host: &mut SimHost| built = Some(Arc::clone(&host.built));
        // Within one host a push is of several parts.
        let over = if streams == 1 { over_tcp } else { in_memory };
        let (report, arrival) = over(&options, habit, note);
        assert_moved(&report, &arrival);
        let there = built.expect("a host").lock().expect("no panic").clone().expect("a machine");
        let moved = there.ram.moved_blocks.load(Ordering::Relaxed);
        assert!(moved > 0 || mode == Mode::Hybrid, "{streams} streams");
    }
}

#[test]
fn what_will_be_missing_is_told_before_the_pause() {
    for mode in [Mode::Postcopy, Mode::Hybrid] {
        let wild = Habit { pages: 8192, working_set: 6000, burst: 5000, rest: None, ..Habit::default() };
        let slow = Options { bandwidth: Some(50 << 20), ..options(mode) };
        let mut built = None;
        let (report, arrival) = in_memory(&slow, wild, |_, host| built = Some(Arc::clone(&host.built)));
        assert_moved(&report, &arrival);
        let there = built.expect("a host").lock().expect("no panic").clone().expect("a machine");
        let (told, missing) = (there.told_first.load(Ordering::SeqCst), report.postcopy.expect("figures"));
        assert_eq!(there.was_kept.get().is_some(), has_few_cores());
        assert!(told > 1024 && told > missing.missing_pages / 2, "{told} of {missing:?}");
    }
}

#[test]
fn what_the_guest_writes_all_the_time_is_sent_last_and_nothing_is_lost() {
    // In the first of three areas of 64 MiB it writes all that is looked at, as soon as that is watched. Then a device writes pages of
    // which one never existed.
    const AREA: u64 = 64 << 8;
    let habit = Habit { pages: 3 * AREA, blocks: 2, ..Habit::default() };
    let options = Options { streams: 1, ..options(Mode::Precopy) };
    let is_last = || {
        let calls = Arc::new(Mutex::new(Vec::new()));
        let (report, arrival) = in_memory(&options, habit, |sim, _| {
            let calls = Arc::clone(&calls);
            let watched = move |sim: &Sim, set: &PageSet, window: PageRun| {
                let mut calls = calls.lock().expect("no panic");
                let has = |gfn| set.contains(gfn) && (window.first..window.end()).contains(&gfn);
                if calls.is_empty() && has(AREA / 2) {
                    let looked_at = set.runs_within(PageRun { first: 0, count: AREA });
                    assert!(looked_at.flat_map(|run| run.first..run.end()).all(|gfn| sim.step(gfn)));
                    [3 * AREA - 2, 2 * AREA].into_iter().for_each(|gfn| sim.receive(gfn, gfn << 32 | 5));
                }
                if !calls.is_empty() || has(AREA / 2) {
                    calls.push([0, 2 * AREA].map(has));
                }
            };
            assert!(sim.watched.set(Box::new(watched)).is_ok());
        });
        assert_moved(&report, &arrival);
        let calls = calls.lock().expect("no panic");
        let order = |nth: usize| calls.iter().position(|has| has[nth]).expect("in round 0");
        order(1) < order(0)
    };
    // Writing that takes as long as the round would makes nothing hot: the host stood still.
    assert!((0..20).any(|_| is_last()));
}
