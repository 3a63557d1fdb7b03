//! A lost link from commit on is got over: both sides find each other again and the guest ends where it belongs, by itself.
//!
//! Whatever message is the last before the loss, and whichever way it went: moved, or kept where the destination never ran it.
//! The sims watch all the time that never two machines run the guest, and it finds its memory as it left it.

mod sim;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use migrate::channel::Deadlines;
use migrate::channel::memory::Place;
use migrate::journal::Journals;
use migrate::options::{Compression, Mode, Options};
use migrate::progress::{Event, Silent};
use migrate::report::{Outcome, Phase};
use migrate::source::{Departure, Disowned, Parted, Route, migrate_over};
use migrate::{Arrival, Cancel, Receiver};
use sim::attempt::{Attempt, short};
use sim::link::{Blow, Fuse, Fusing};
use sim::{At, Habit, Runners, Sim, SimHost, options};

/// A destination that is busy is told again, so often.
const TRIES: u32 = 5;

/// More operations than any of these migrations has.
const MANY: i64 = 2000;

/// Migrations in a row without a loss after which no longer one is waited for: a migration has now more and now fewer operations.
const UNHURT: u32 = 8;

/// Times that a moment in the middle of a migration is looked for.
const SWEEPS: u32 = 5;

/// A source that has kept its guest says so, again where the destination is busy.
fn tell_kept(mut parted: Option<Parted>, guest: &Sim, options: &Options, route: Route<'_>) {
    for _ in 0..TRIES {
        parted = match parted.map(|parted| parted.disown(guest, options, route)) {
            Some(Disowned::Unreached(parted)) => Some(*parted),
            Some(Disowned::RunsThere) => panic!("two runners"),
            Some(Disowned::Heard) | None => None,
        };
    }
}

/// Both sides as two VMMs have them: the destination goes on waiting, for its source too when the guest has arrived, and a
/// source that has kept its guest says so.
fn attempt_to_the_end(
    options: &Options,
    habit: Habit,
    deadlines: Deadlines,
    fused: &Fusing<Place>,
    on_source: bool,
    paused: impl Fn() + Send + Sync + 'static,
) -> Attempt {
    let runners = Runners::default();
    let guest = Sim::booted(habit, runners.clone());
    assert!(guest.paused.set(Box::new(paused)).is_ok(), "set once");
    let host = SimHost::new(habit, &runners);
    let sound = Fusing { inner: fused.inner.clone(), fuse: fused.fuse.sound() };
    let (near, far) = if on_source { (fused, &sound) } else { (&sound, fused) };
    let receiver = Receiver::over(Box::new(far.clone()), deadlines);
    let over = AtomicBool::new(false);
    let (report, arrival) = std::thread::scope(|scope| {
        let receiving = scope.spawn(|| {
            loop {
                let arrival = receiver.receive(&host, &Silent);
                if let Arrival::Arrived { unheard: Some(waiting), .. } = arrival {
                    return receiver.await_source(waiting, Duration::from_secs(20), &Silent);
                }
                if !matches!(arrival, Arrival::Failed { .. }) || over.load(Ordering::SeqCst) {
                    return arrival;
                }
            }
        });
        let route = Route { dial: near, deadlines, journals: Journals::nowhere() };
        let Departure { report, parted } = migrate_over(&*guest, options, route, &Cancel::new(), &Silent);
        tell_kept(parted.filter(|parted| !parted.is_in_doubt()), &guest, options, route);
        over.store(true, Ordering::SeqCst);
        receiver.stop();
        (report, receiving.join().expect("no panic"))
    });
    Attempt { report, arrival, runners, guest, host }
}

/// From when operations are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Since {
    /// The first connection.
    Start,
    /// The pause. How many operations come before it differs from one migration to the next, so counting from the start may
    /// miss the few after it.
    Pause,
}

/// Whether nothing follows the guest.
fn ends_in_the_pause(options: &Options) -> bool {
    let allows = options.max_downtime > Duration::from_secs(1);
    matches!(options.mode, Mode::Precopy | Mode::Stopcopy) || options.mode == Mode::Hybrid && allows
}

/// Cuts the link after every number of operations of one side.
fn every_loss_is_got_over(options: &Options) {
    for on_source in [true, false] {
        let mut recovered = losses_got_over(options, on_source, Since::Start);
        // Most of post-copy comes after the pause and is found from the start.
        if ends_in_the_pause(options) {
            recovered = losses_got_over(options, on_source, Since::Pause);
        }
        for _ in 1..SWEEPS {
            if recovered <= 1 {
                recovered = recovered.max(losses_got_over(options, on_source, Since::Pause));
            }
        }
        assert!(
            recovered > 1,
            "{:?}, of the source: {on_source}: only {recovered} losses were got over",
            options.mode
        );
    }
}

/// Losses after which the guest has moved: one after each number of operations, until migrations have fewer.
fn losses_got_over(options: &Options, on_source: bool, since: Since) -> usize {
    let mode = options.mode;
    let (mut recovered, mut unhurt) = (0, 0);
    for operations in 0..MANY {
        let fuse = Fuse::new(if since == Since::Start { operations } else { i64::MAX }, Blow::Blip);
        let fused = Fusing { inner: Place::new(), fuse: fuse.clone() };
        let lit = fuse.clone();
        let paused = move || {
            if since == Since::Pause {
                lit.light(operations);
            }
        };
        let options = Options { recovery: Duration::from_secs(20), ..options.clone() };
        let deadlines = short(Duration::from_secs(2));
        let attempt = attempt_to_the_end(&options, Habit::default(), deadlines, &fused, on_source, paused);
        let what = format!(
            "{mode:?}, lost after {operations} operations since the {since:?}, of the source: {on_source}"
        );
        assert_ne!(attempt.report.outcome, Outcome::Unknown, "{what}: {:?}", attempt.report.reason);
        let outages = &attempt.report.outages;
        assert!(outages.iter().all(|outage| outage.over || attempt.report.outcome == Outcome::Kept));
        let as_meant = attempt.report.postcopy.is_none() == ends_in_the_pause(&options);
        recovered += usize::from(!outages.is_empty() && attempt.report.outcome == Outcome::Moved && as_meant);
        attempt.check(&what);
        unhurt = if fuse.has_blown() { 0 } else { unhurt + 1 };
        if unhurt == UNHURT {
            break;
        }
    }
    recovered
}

#[test]
fn a_loss_at_any_message_of_precopy_is_got_over() {
    every_loss_is_got_over(&options(Mode::Precopy));
}

#[test]
fn a_loss_at_any_message_of_stopcopy_is_got_over() {
    every_loss_is_got_over(&options(Mode::Stopcopy));
}

#[test]
fn a_loss_at_any_message_of_postcopy_is_got_over() {
    every_loss_is_got_over(&options(Mode::Postcopy));
}

#[test]
fn a_loss_at_any_message_of_hybrid_is_got_over() {
    every_loss_is_got_over(&options(Mode::Hybrid));
}

/// As far as it ends as pre-copy: a guest that has just written much may leave too much for that.
#[test]
fn a_loss_at_any_message_of_hybrid_that_leaves_little_is_got_over() {
    let allowed = Options { max_downtime: Duration::from_secs(5), ..options(Mode::Hybrid) };
    every_loss_is_got_over(&allowed);
}

#[test]
fn a_loss_at_any_message_of_postcopy_is_got_over_with_packed_pages() {
    every_loss_is_got_over(&Options { compression: Compression::Zstd, ..options(Mode::Postcopy) });
}

#[test]
fn a_loss_at_any_message_of_hybrid_is_got_over_with_packed_pages() {
    every_loss_is_got_over(&Options { compression: Compression::Zstd, ..options(Mode::Hybrid) });
}

/// Within one host a push is of several parts, each of which is received and placed by itself.
#[test]
fn a_loss_in_the_middle_of_a_large_push_is_got_over() {
    let habit = Habit { pages: 2048, ..Habit::default() };
    let options = Options { streams: 1, recovery: Duration::from_secs(20), ..options(Mode::Postcopy) };
    let (mut recovered, mut largest) = (0, 0);
    for operations in 0..60 {
        let fuse = Fuse::near(i64::MAX, Blow::Blip);
        let fused = Fusing { inner: Place::new(), fuse: Arc::clone(&fuse) };
        let lit = Arc::clone(&fuse);
        let paused = move || lit.light(operations);
        let attempt =
            attempt_to_the_end(&options, habit, short(Duration::from_secs(2)), &fused, false, paused);
        attempt.check(&format!("lost after {operations} operations of the destination since the pause"));
        assert_ne!(attempt.report.outcome, Outcome::Unknown, "{:?}", attempt.report.reason);
        recovered +=
            usize::from(!attempt.report.outages.is_empty() && attempt.report.outcome == Outcome::Moved);
        largest = largest.max(fuse.largest());
    }
    assert!(recovered > 10 && largest > 128, "{recovered} losses, {largest} pages in the largest frame");
}

/// A guest whose link is cut for good, on both sides.
struct Torn {
    guest: Arc<Sim>,
    host: SimHost,
    receiver: Receiver,
    place: Place,
    departure: Departure,
    arrival: Arrival,
}

fn torn(cut_at: fn(&Event) -> bool, mode: Mode) -> Torn {
    let (runners, habit) = (Runners::default(), Habit { pages: 2048, ..Habit::default() });
    let guest = Sim::booted(habit, runners.clone());
    let host = SimHost::new(habit, &runners);
    let (place, fuse) = (Place::new(), Fuse::new(i64::MAX, Blow::Cut));
    let fused = Fusing { inner: place.clone(), fuse: fuse.clone() };
    let receiver = Receiver::over(Box::new(place.clone()), short(Duration::from_secs(2)));
    let options = Options { bandwidth: Some(4 << 20), ..options(mode) };
    let cut = At(move |event: &Event| {
        if cut_at(event) {
            fuse.blow();
        }
    });
    let (departure, arrival) = std::thread::scope(|scope| {
        let receiving = scope.spawn(|| receiver.receive(&host, &Silent));
        let deadlines = short(Duration::from_secs(2));
        let route = Route { dial: &fused, deadlines, journals: Journals::nowhere() };
        let departure = migrate_over(&*guest, &options, route, &Cancel::new(), &cut);
        (departure, receiving.join().expect("no panic"))
    });
    Torn { guest, host, receiver, place, departure, arrival }
}

fn in_postcopy(event: &Event) -> bool {
    matches!(event, Event::Phase { phase: Phase::Postcopy })
}

#[test]
fn the_operator_has_a_torn_guest_made_whole() {
    let Torn { guest, host, receiver, place, departure, arrival } = torn(in_postcopy, Mode::Postcopy);
    let there = host.guest().expect("built");
    assert_eq!(departure.report.outcome, Outcome::Unknown);
    let parted = departure.parted.expect("in doubt");
    assert!(parted.is_in_doubt() && parted.has_left());
    let Arrival::Waits(waiting) = arrival else { panic!("{arrival:?}") };
    assert!(waiting.is_orphaned() && !there.is_running() && !guest.is_running());
    let named: u64 = waiting.missing().iter().map(|run| run.count).sum();
    assert!(named > 0 && named == waiting.missing_pages());
    let options = Options { recovery: Duration::from_secs(20), ..options(Mode::Postcopy) };
    std::thread::scope(|scope| {
        let receiving = scope.spawn(|| receiver.await_source(waiting, Duration::MAX, &Silent));
        let route =
            Route { dial: &place, deadlines: short(Duration::from_secs(2)), journals: Journals::nowhere() };
        let departure = parted.recover(&*guest, &options, route, &Cancel::new(), &Silent);
        assert_eq!(departure.report.outcome, Outcome::Moved, "{:?}", departure.report.reason);
        assert!(departure.parted.is_none());
        assert!(matches!(receiving.join().expect("no panic"), Arrival::Arrived { unheard: None, .. }));
    });
    there.wait_steps(20);
    end(&guest, &host);
}

/// A pre-copy whose link is cut for good after the first operation since the pause that leaves its guest in a state that is
/// looked for. How many operations come before another differs from one time to the next, so one that was missed is looked for
/// again.
fn broken_off(at: impl Fn(&Departure, &Arrival) -> bool) -> Torn {
    (0..SWEEPS).find_map(|_| broken_off_once(&at)).expect("no cut had that effect")
}

fn broken_off_once(at: impl Fn(&Departure, &Arrival) -> bool) -> Option<Torn> {
    for operations in 0..MANY {
        let (runners, habit) = (Runners::default(), Habit::default());
        let guest = Sim::booted(habit, runners.clone());
        let host = SimHost::new(habit, &runners);
        let (place, fuse) = (Place::new(), Fuse::new(i64::MAX, Blow::Cut));
        let lit = fuse.clone();
        assert!(guest.paused.set(Box::new(move || lit.light(operations))).is_ok(), "set once");
        let fused = Fusing { inner: place.clone(), fuse: fuse.clone() };
        let deadlines = short(Duration::from_secs(2));
        let receiver = Receiver::over(Box::new(place.clone()), deadlines);
        let (departure, arrival) = std::thread::scope(|scope| {
            let receiving = scope.spawn(|| receiver.receive(&host, &Silent));
            let route = Route { dial: &fused, deadlines, journals: Journals::nowhere() };
            let departure = migrate_over(&*guest, &options(Mode::Precopy), route, &Cancel::new(), &Silent);
            receiver.stop();
            (departure, receiving.join().expect("no panic"))
        });
        receiver.go_on();
        if at(&departure, &arrival) {
            return Some(Torn { guest, host, receiver, place, departure, arrival });
        }
        guest.shut_down();
        host.shut_down();
        if !fuse.has_blown() {
            break;
        }
    }
    None
}

fn held(arrival: &Arrival) -> bool {
    matches!(arrival, Arrival::Waits(waiting) if waiting.is_held())
}

#[test]
fn a_commit_that_was_lost_is_said_again() {
    let torn = broken_off(|departure, arrival| departure.report.outcome == Outcome::Unknown && held(arrival));
    let Torn { guest, host, receiver, place, departure, arrival } = torn;
    let mut parted = departure.parted.expect("in doubt");
    let early = parted.force(&*guest).expect_err("a commit that was sent may still be obeyed");
    assert!(early.to_string().contains("try again in"), "{early}");
    assert!(parted.is_in_doubt() && !parted.has_left() && !guest.is_running());
    let Arrival::Waits(waiting) = arrival else { panic!("{arrival:?}") };
    std::thread::scope(|scope| {
        let receiving = scope.spawn(|| receiver.await_source(waiting, Duration::MAX, &Silent));
        let options = Options { recovery: Duration::from_secs(20), ..options(Mode::Precopy) };
        let route =
            Route { dial: &place, deadlines: short(Duration::from_secs(2)), journals: Journals::nowhere() };
        let departure = parted.recover(&*guest, &options, route, &Cancel::new(), &Silent);
        assert_eq!(departure.report.outcome, Outcome::Moved, "{:?}", departure.report.reason);
        assert!(matches!(receiving.join().expect("no panic"), Arrival::Arrived { unheard: None, .. }));
    });
    end(&guest, &host);
}

#[test]
fn a_source_that_kept_its_guest_has_it_let_go_of() {
    let torn = broken_off(|departure, arrival| departure.report.outcome == Outcome::Kept && held(arrival));
    let Torn { guest, host, receiver, place, departure, arrival } = torn;
    let parted = departure.parted.expect("the destination does not know");
    assert!(!parted.is_in_doubt() && guest.is_running());
    let Arrival::Waits(waiting) = arrival else { panic!("{arrival:?}") };
    std::thread::scope(|scope| {
        let receiving = scope.spawn(|| receiver.await_source(waiting, Duration::MAX, &Silent));
        let options = Options { recovery: Duration::from_secs(20), ..options(Mode::Precopy) };
        let route =
            Route { dial: &place, deadlines: short(Duration::from_secs(2)), journals: Journals::nowhere() };
        tell_kept(Some(parted), &guest, &options, route);
        let arrival = receiving.join().expect("no panic");
        let Arrival::Failed { reason } = arrival else { panic!("{arrival:?}") };
        assert!(reason.contains("runs there"), "{reason}");
    });
    guest.wait_steps(20);
    end(&guest, &host);
}

#[test]
fn a_whole_guest_whose_source_is_gone_can_be_run() {
    let torn = broken_off(|departure, arrival| departure.report.outcome == Outcome::Unknown && held(arrival));
    let Torn { guest, host, receiver, arrival, .. } = torn;
    guest.shut_down();
    let Arrival::Waits(waiting) = arrival else { panic!("{arrival:?}") };
    let forced = receiver.force(waiting).expect("all of it is there");
    assert!(matches!(forced, Arrival::Arrived { unheard: Some(_), .. }), "{forced:?}");
    host.guest().expect("built").wait_steps(20);
    end(&guest, &host);
}

#[test]
fn part_of_a_guest_cannot_be_run() {
    let Torn { guest, host, receiver, arrival, .. } = torn(in_postcopy, Mode::Hybrid);
    let Arrival::Waits(waiting) = arrival else { panic!("{arrival:?}") };
    let Err((waiting, why)) = receiver.force(waiting) else { panic!("half a guest runs") };
    assert!(why.contains("never arrived") && waiting.is_orphaned(), "{why}");
    guest.shut_down();
    host.shut_down();
}

/// The guest is as it should be, wherever it runs.
fn end(guest: &Sim, host: &SimHost) {
    let there = host.guest().expect("built");
    for sim in [guest, &*there] {
        if sim.is_running() {
            sim.check_all();
        }
        sim.shut_down();
    }
}
