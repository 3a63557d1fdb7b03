//! A cancel acts at once wherever the source is before commit; after it the same guest moves to another destination.

mod sim;

use std::io;
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use migrate::channel::memory::Place;
use migrate::channel::{Deadlines, Dial, Link};
use migrate::journal::Journals;
use migrate::options::{Mode, Options};
use migrate::progress::{Event, Silent};
use migrate::report::{Outcome, Phase, Report};
use migrate::source::Route;
use migrate::wire::Role;
use migrate::{Cancel, Receiver};
use sim::attempt::Attempt;
use sim::{At, DiskUse, Habit, Runners, Sim, SimHost, options, reported};

/// Slow enough to be caught in any round.
fn slow(mode: Mode) -> Options {
    Options { bandwidth: Some(1 << 20), ..options(mode) }
}

/// Where the source is when it is cancelled: what was told last, and what must be so besides.
struct Moment {
    what: &'static str,
    options: Options,
    phase: Phase,
    disk: Option<DiskUse>,
    there: There,
}

/// What the destination is like.
#[derive(Clone, Copy, PartialEq, Eq)]
enum There {
    Waits,
    /// Its machine takes long to be built.
    Builds,
    /// Accepts connections and says nothing.
    IsMute,
    /// Its name cannot be looked up.
    HasNoName,
}

/// A name server that does not answer.
struct Nameless {
    place: Place,
    answer: Mutex<Option<mpsc::Receiver<()>>>,
}

impl Dial for Nameless {
    fn dial(&self, role: Role, limit: Duration, made: &dyn Fn(&Arc<dyn Link>)) -> io::Result<Arc<dyn Link>> {
        self.place.dial(role, limit, made)
    }

    fn to(&self) -> &str {
        "nowhere:7000"
    }

    fn look_up(&self) -> Option<Box<dyn FnOnce() -> io::Result<()> + Send>> {
        let answer = self.answer.lock().expect("no panic").take()?;
        Some(Box::new(move || answer.recv().map_err(io::Error::other)))
    }
}

/// Starts to move the guest and cancels a little after the moment has come.
fn cancelled_at(moment: &Moment, guest: &Arc<Sim>, runners: &Runners) -> Report {
    let (place, cancel) = (Place::new(), Cancel::new());
    let mut host = SimHost::new(Habit::default(), runners);
    if moment.there == There::Builds {
        host.prepare = |_| std::thread::sleep(Duration::from_millis(300));
    }
    *guest.broken.disk.lock().expect("no panic") = moment.disk;
    let (_never, answer) = mpsc::channel();
    let nameless = Nameless { place: place.clone(), answer: Mutex::new(Some(answer)) };
    let dial: &dyn Dial = if moment.there == There::HasNoName { &nameless } else { &place };
    let receiver = Receiver::over(Box::new(place.clone()), Deadlines::default());
    let (begun, has_begun) = mpsc::channel();
    let observer = At(move |event: &Event| {
        if matches!(event, Event::Phase { phase } if *phase == moment.phase) {
            let _ = begun.send(());
        }
    });
    let report = std::thread::scope(|scope| {
        let receiving =
            (moment.there != There::IsMute).then(|| scope.spawn(|| receiver.receive(&host, &Silent)));
        let (guest, cancelled) = (guest, &cancel);
        let migrating = scope.spawn(move || {
            let route = Route { dial, deadlines: Deadlines::default(), journals: Journals::nowhere() };
            reported(&**guest, &moment.options, route, cancelled, &observer)
        });
        if moment.phase == Phase::Switchover {
            // Nothing is told in the pause.
            while guest.is_running() {
                std::thread::yield_now();
            }
        } else {
            has_begun.recv().expect(moment.what);
        }
        std::thread::sleep(Duration::from_millis(30));
        let asked = Instant::now();
        cancel.cancel("enough").expect(moment.what);
        let report = migrating.join().expect("no panic");
        let (took, first_deadline) = (asked.elapsed(), Deadlines::default().pause);
        assert!(took < first_deadline, "{}: {took:?}", moment.what);
        receiver.stop();
        drop(receiving);
        report
    });
    *guest.broken.disk.lock().expect("no panic") = None;
    host.shut_down();
    report
}

/// Moves the guest to a destination that has nothing to do with what was before.
fn moves_elsewhere(what: &str, guest: Arc<Sim>, runners: Runners) {
    let place = Place::new();
    let host = SimHost::new(Habit::default(), &runners);
    let receiver = Receiver::over(Box::new(place.clone()), Deadlines::default());
    let (report, arrival) = std::thread::scope(|scope| {
        let receiving = scope.spawn(|| receiver.receive(&host, &Silent));
        let route = Route { dial: &place, deadlines: Deadlines::default(), journals: Journals::nowhere() };
        let report = reported(&*guest, &options(Mode::Precopy), route, &Cancel::new(), &Silent);
        (report, receiving.join().expect("no panic"))
    });
    assert_eq!(report.outcome, Outcome::Moved, "{what}: {:?}", report.reason);
    Attempt { report, arrival, runners, guest, host }.check(what);
}

#[test]
fn a_guest_whose_move_was_cancelled_anywhere_moves_elsewhere_at_once() {
    let moment = |what, options, phase, disk, there| Moment { what, options, phase, disk, there };
    let settling = |running| Some(DiskUse::Settle { running });
    let moments = [
        moment("looking up", options(Mode::Precopy), Phase::Connect, None, There::HasNoName),
        moment("hello", options(Mode::Precopy), Phase::Connect, None, There::IsMute),
        moment("pre-flight", options(Mode::Precopy), Phase::Connect, None, There::Builds),
        moment("rounds", slow(Mode::Precopy), Phase::Precopy, None, There::Waits),
        moment("rounds of hybrid", slow(Mode::Hybrid), Phase::Precopy, None, There::Waits),
        moment("settling", options(Mode::Hybrid), Phase::Precopy, settling(true), There::Waits),
        moment("copying in the pause", slow(Mode::Stopcopy), Phase::Switchover, None, There::Waits),
        moment(
            "settling in the pause",
            options(Mode::Precopy),
            Phase::Switchover,
            settling(false),
            There::Waits,
        ),
        moment(
            "handing over",
            options(Mode::Postcopy),
            Phase::Switchover,
            Some(DiskUse::HandOver),
            There::Waits,
        ),
    ];
    for moment in moments {
        let runners = Runners::default();
        let guest = Sim::booted(Habit::default(), runners.clone());
        let report = cancelled_at(&moment, &guest, &runners);
        let what = moment.what;
        assert_eq!(report.outcome, Outcome::Kept, "{what}: {:?}", report.reason);
        assert!(report.reason.is_some_and(|reason| reason.contains("cancelled: enough")), "{what}");
        assert!(guest.is_running() && !guest.ram.is_logging(), "{what}");
        moves_elsewhere(what, guest, runners);
    }
}

#[test]
fn a_name_that_is_not_found_in_time_is_named() {
    let guest = Sim::booted(Habit::default(), Runners::default());
    let quick = Deadlines { connect: Duration::from_millis(50), ..Deadlines::default() };
    let cases = [
        (Duration::from_secs(9), "cannot connect to nowhere:7000: its name was not found within 0.05 s"),
        (Duration::from_millis(20), "the move to nowhere:7000 was not done within 0 s"),
    ];
    for (timeout, expected) in cases {
        let (_never, answer) = mpsc::channel();
        let dial = Nameless { place: Place::new(), answer: Mutex::new(Some(answer)) };
        let route = Route { dial: &dial, deadlines: quick, journals: Journals::nowhere() };
        let hasty = Options { timeout: Some(timeout), ..options(Mode::Precopy) };
        let report = reported(&*guest, &hasty, route, &Cancel::new(), &Silent);
        let reason = report.reason.expect("a reason");
        assert!(reason.contains(expected), "{reason}");
    }
    guest.shut_down();
}
