//! What can go wrong does: links cut or silent at every message, cancels, strangers, wrong ports, time limits.
//!
//! After each the same must hold: the guest runs on exactly one side or, where the source says `Unknown`, the
//! source's is paused; never on both (the sims watch that all the time); and it finds its memory as it left it.

mod sim;

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use migrate::channel::memory::Place;
use migrate::channel::tcp::{TcpDial, TcpListen};
use migrate::channel::{Deadlines, Dial, Link, Listen};
use migrate::journal::Journals;
use migrate::options::{Mode, Options};
use migrate::progress::{Event, Observer, Silent};
use migrate::report::{Outcome, Phase, Report};
use migrate::source::Route;
use migrate::wire::Role;
use migrate::{Arrival, Cancel, Receiver, TooLate};
use sim::attempt::{attempt, attempt_with, short};
use sim::link::{Blow, Fuse, Fusing};
use sim::{At, Habit, MODES, Runners, Sim, SimHost, options, reported};

/// More operations than any of these migrations has.
const MANY: i64 = 2000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Source,
    Destination,
}

/// Migrates again and again with a fuse one operation longer, until it does not burn through.
/// Returns how often it ended how: moved, kept, unknown, and how often the destination's guest was orphaned.
fn burn(mode: Mode, side: Side, blow: Blow, deadlines: Deadlines, step: usize) -> [u32; 4] {
    let mut ends = [0; 4];
    for operations in (0..MANY).step_by(step) {
        let (place, fuse) = (Place::new(), Fuse::new(operations, blow));
        let fused = Fusing { inner: place.clone(), fuse: fuse.clone() };
        let plain = place;
        let attempt = match side {
            Side::Source => attempt(&options(mode), deadlines, &fused, Box::new(plain)),
            Side::Destination => attempt(&options(mode), deadlines, &plain, Box::new(fused)),
        };
        attempt.check(&format!("{mode:?}, {blow:?} after {operations} operations of the {side:?}"));
        ends[attempt.report.outcome as usize] += 1;
        ends[3] += u32::from(matches!(&attempt.arrival, Arrival::Waits(waiting) if waiting.is_orphaned()));
        if !fuse.has_blown() {
            return ends;
        }
    }
    panic!("{mode:?} still not over after {MANY} operations");
}

fn cut_at_every_message(side: Side) {
    let mut in_doubt = 0;
    for mode in MODES {
        let [moved, kept, unknown, orphaned] =
            burn(mode, side, Blow::Cut, short(Duration::from_millis(500)), 1);
        assert!(moved > 0 && kept > 10, "{mode:?}: {moved} {kept} {unknown}");
        assert!(orphaned > 0 || mode != Mode::Postcopy, "no cut fell into post-copy");
        in_doubt += unknown;
    }
    // How many operations come before commit differs from one time to the next, so a mode may miss the one behind it.
    assert!(in_doubt > 0, "no cut fell between commit and its answer");
}

#[test]
fn cut_at_every_message_of_the_source() {
    cut_at_every_message(Side::Source);
}

#[test]
fn cut_at_every_message_of_the_destination() {
    cut_at_every_message(Side::Destination);
}

#[test]
fn silence_on_either_side_is_noticed_in_every_phase() {
    for (mode, side) in [
        (Mode::Precopy, Side::Source),
        (Mode::Precopy, Side::Destination),
        (Mode::Postcopy, Side::Source),
        (Mode::Hybrid, Side::Destination),
    ] {
        burn(mode, side, Blow::Silence, short(Duration::from_millis(60)), 3);
    }
}

/// Cancels when an event is told.
struct CancelAt {
    when: fn(&Event) -> bool,
    cancel: Cancel,
    said: Mutex<Option<(Result<(), TooLate>, Instant)>>,
}

impl Observer for CancelAt {
    fn tell(&self, event: Event) {
        let mut said = self.said.lock().expect("no panic");
        if said.is_none() && (self.when)(&event) {
            *said = Some((self.cancel.cancel("the operator asked"), Instant::now()));
        }
    }
}

#[test]
fn a_cancel_acts_at_once_before_commit_and_is_refused_after_it() {
    type When = fn(&Event) -> bool;
    let too_late = TooLate::HandedOver { to: "memory".to_owned() };
    let phases: [(When, Result<(), TooLate>); 4] = [
        (|event| matches!(event, Event::Phase { phase: Phase::Connect }), Ok(())),
        (|event| matches!(event, Event::Phase { phase: Phase::Precopy }), Ok(())),
        (|event| matches!(event, Event::Round { .. }), Ok(())),
        (|event| matches!(event, Event::Switched { .. }), Err(too_late)),
    ];
    for mode in [Mode::Precopy, Mode::Hybrid] {
        for (when, expected) in phases.clone() {
            let cancel = Cancel::new();
            let observer = CancelAt { when, cancel: cancel.clone(), said: Mutex::default() };
            let place = Place::new();
            let deadlines = short(Duration::from_millis(500));
            let attempt =
                attempt_with(&options(mode), deadlines, &place.clone(), Box::new(place), &cancel, &observer);
            attempt.check("cancelled");
            let said = observer.said.lock().expect("no panic").take();
            assert_eq!(said.map(|(answer, _)| answer), Some(expected.clone()));
            assert_eq!(attempt.report.outcome == Outcome::Kept, expected.is_ok());
            if let Some(reason) = &attempt.report.reason {
                assert!(reason.contains("cancelled: the operator asked"), "{reason}");
            }
        }
    }
}

#[test]
fn a_cancel_reaches_a_paused_guest_whose_destination_is_silent() {
    // Stop-and-copy at 1 MiB/s would pause the guest for half a second; the cancel ends that at once.
    let (place, cancel) = (Place::new(), Cancel::new());
    let slow = Options { bandwidth: Some(1 << 20), ..options(Mode::Stopcopy) };
    let (runners, habit) = (Runners::default(), Habit::default());
    let guest = Sim::booted(habit, runners.clone());
    let host = SimHost::new(habit, &runners);
    let receiver = Receiver::over(Box::new(place.clone()), Deadlines::default());
    let route = Route { dial: &place, deadlines: Deadlines::default(), journals: Journals::nowhere() };
    std::thread::scope(|scope| {
        let receiving = scope.spawn(|| receiver.receive(&host, &Silent));
        let migrating = scope.spawn(|| reported(&*guest, &slow, route, &cancel, &Silent));
        while guest.is_running() {
            std::thread::yield_now();
        }
        let asked = Instant::now();
        cancel.cancel("enough").expect("before commit");
        let report = migrating.join().expect("no panic");
        assert!(asked.elapsed() < Duration::from_millis(100), "{:?}", asked.elapsed());
        assert_eq!(report.outcome, Outcome::Kept);
        let arrival = receiving.join().expect("no panic");
        let Arrival::Failed { reason } = arrival else { panic!("{arrival:?}") };
        assert!(reason.contains("cancelled: enough"), "{reason}");
    });
    assert!(guest.is_running());
    guest.shut_down();
    host.shut_down();
}

#[test]
fn the_time_limit_keeps_the_guest() {
    let place = Place::new();
    let slow = Options {
        timeout: Some(Duration::from_millis(80)),
        bandwidth: Some(1 << 20),
        ..options(Mode::Precopy)
    };
    let attempt = attempt(&slow, Deadlines::default(), &place.clone(), Box::new(place));
    attempt.check("timed out");
    let reason = attempt.report.reason.expect("a reason");
    assert!(reason.contains("not done within 0.1 s"), "{reason}");
}

#[test]
fn a_comparison_that_was_cut_off_is_reported_as_not_done() {
    for mode in [Mode::Postcopy, Mode::Hybrid] {
        let (place, fuse) = (Place::new(), Fuse::new(MANY, Blow::Cut));
        let fused = Fusing { inner: place.clone(), fuse: fuse.clone() };
        let cut = At(|event: &Event| {
            if matches!(event, Event::Phase { phase: Phase::Finish }) {
                fuse.blow();
            }
        });
        let verified = Options { verify: true, ..options(mode) };
        let deadlines = short(Duration::from_millis(500));
        let attempt = attempt_with(&verified, deadlines, &fused, Box::new(place), &Cancel::new(), &cut);
        attempt.check("cut before the comparison");
        let Report { outcome, verification, unverified, .. } = attempt.report;
        assert_eq!((outcome, verification), (Outcome::Moved, None));
        let why = unverified.expect("it was asked for");
        assert!(why.contains("the other side"), "{why}");
    }
}

/// Says hello only when it is told to.
struct Late<'a> {
    dial: &'a dyn Dial,
    dialled: mpsc::Sender<()>,
    go: Mutex<mpsc::Receiver<()>>,
}

impl Dial for Late<'_> {
    fn dial(&self, role: Role, limit: Duration, made: &dyn Fn(&Arc<dyn Link>)) -> io::Result<Arc<dyn Link>> {
        let link = self.dial.dial(role, limit, made)?;
        self.dialled.send(()).expect("the test waits");
        let _ = self.go.lock().expect("no panic").recv();
        Ok(link)
    }

    fn to(&self) -> &str {
        self.dial.to()
    }
}

/// A guest whose source says hello when another has just arrived: why it was kept.
fn too_late(dial: &dyn Dial, listen: Box<dyn Listen>) -> String {
    let (dialled, has_dialled) = mpsc::channel();
    let (say, go) = mpsc::channel();
    let late = Late { dial, dialled, go: Mutex::new(go) };
    let guest = Sim::booted(Habit::default(), Runners::default());
    let report = std::thread::scope(|scope| {
        let route = Route { dial: &late, deadlines: Deadlines::default(), journals: Journals::nowhere() };
        let (guest, asked) = (&guest, options(Mode::Precopy));
        let migrating = scope.spawn(move || reported(&**guest, &asked, route, &Cancel::new(), &Silent));
        has_dialled.recv().expect("it dials");
        let patient = Deadlines { connect: Duration::from_secs(60), ..Deadlines::default() };
        let began = Instant::now();
        // It has dialled first, so it is accepted first, and its hello awaited until the other has arrived.
        attempt(&options(Mode::Precopy), patient, dial, listen).check("with another at the door");
        assert!(began.elapsed() < patient.connect, "who is silent keeps nobody waiting");
        say.send(()).expect("it waits");
        migrating.join().expect("no panic")
    });
    assert!(report.outcome == Outcome::Kept && guest.is_running());
    guest.shut_down();
    report.reason.expect("a reason")
}

#[test]
fn a_hello_that_comes_when_reception_has_just_ended_is_refused_by_name() {
    let place = Place::new();
    let listen = TcpListen::bind("127.0.0.1:0").expect("a free port");
    let tcp = TcpDial::new(&listen.address().expect("bound").to_string());
    for reason in [too_late(&place.clone(), Box::new(place)), too_late(&tcp, Box::new(listen))] {
        assert!(reason.contains("refused: another guest is arriving here"), "{reason}");
    }
}

fn try_port(to: SocketAddr, options: &Options, deadlines: Deadlines) -> Report {
    let guest = Sim::booted(Habit::default(), Runners::default());
    let dial = TcpDial::new(&to.to_string());
    let route = Route { dial: &dial, deadlines, journals: Journals::nowhere() };
    let report = reported(&*guest, options, route, &Cancel::new(), &Silent);
    assert!(report.outcome == Outcome::Kept && guest.is_running());
    guest.shut_down();
    report
}

#[test]
fn a_port_where_nobody_waits_is_named() {
    let free = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let to = free.local_addr().expect("bound");
    drop(free);
    let reason = try_port(to, &options(Mode::Precopy), Deadlines::default()).reason.expect("a reason");
    let expected =
        format!("connecting: cannot connect to {to}: connection refused; is `vmm receive` waiting there?");
    assert_eq!(reason, expected);
}

#[test]
fn a_port_that_does_not_answer_within_the_time_limit_is_named() {
    let mute = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let to = mute.local_addr().expect("bound");
    let hasty = Options { timeout: Some(Duration::from_millis(100)), ..options(Mode::Precopy) };
    let reason = try_port(to, &hasty, Deadlines::default()).reason.expect("a reason");
    let expected = format!("connecting: the move to {to} was not done within 0.1 s; --timeout allows more");
    assert_eq!(reason, expected);
}

#[test]
fn a_port_of_something_else_is_named() {
    for answer in [&b"SSH-2.0-OpenSSH_9.2p1 Debian\r\n"[..], b""] {
        let other = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let to = other.local_addr().expect("bound");
        let answering = std::thread::spawn(move || {
            let (mut stream, _) = other.accept().expect("the source dials");
            let mut hello = [0; 16];
            let _ = stream.read_exact(&mut hello);
            let _ = stream.write_all(answer);
        });
        let deadlines = short(Duration::from_millis(300));
        let reason = try_port(to, &options(Mode::Precopy), deadlines).reason.expect("a reason");
        assert!(reason.contains(&format!("cannot connect to {to}: ")), "{reason}");
        answering.join().expect("no panic");
    }
}

#[test]
fn strangers_on_the_port_disturb_nobody() {
    let listen = TcpListen::bind("127.0.0.1:0").expect("a free port");
    let to = listen.address().expect("bound");
    // Silent ones, talking ones, and one that speaks our frames but belongs to no session.
    let mut strangers: Vec<_> = (0..5).map(|_| TcpStream::connect(to).expect("it listens")).collect();
    strangers[0].write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").expect("open");
    strangers[1].write_all(&[0xff; 4096]).expect("open");
    strangers[2].write_all(&[0x56, 0x4d, 1, 1, 0xff, 0xff, 0xff, 0xff]).expect("open");
    let session = "00000000-0000-0000-0000-000000000001";
    let hello =
        format!(r#"{{"versions":{{"min":1,"max":1}},"role":"data","session":"{session}","index":0}}"#);
    let mut frame = vec![0x56, 0x4d, 1, 1];
    frame.extend_from_slice(&(hello.len() as u32).to_le_bytes());
    frame.extend_from_slice(&[0; 8]);
    frame.extend_from_slice(hello.as_bytes());
    strangers[3].write_all(&frame).expect("open");
    let dial = TcpDial::new(&to.to_string());
    let attempt = attempt(&options(Mode::Hybrid), Deadlines::default(), &dial, Box::new(listen));
    attempt.check("with strangers");
    assert_eq!(attempt.report.outcome, Outcome::Moved, "{:?}", attempt.report.reason);
}

#[test]
fn a_second_guest_is_refused_while_one_arrives_and_a_failed_attempt_does_not_close_the_port() {
    let place = Place::new();
    let (runners, habit) = (Runners::default(), Habit::default());
    let host = SimHost::new(habit, &runners);
    let receiver = Receiver::over(Box::new(place.clone()), Deadlines::default());
    let route = Route { dial: &place, deadlines: Deadlines::default(), journals: Journals::nowhere() };
    let (first, second) = (Sim::booted(habit, runners.clone()), Sim::booted(habit, Runners::default()));
    let (cancel, slow) = (Cancel::new(), Options { bandwidth: Some(1 << 20), ..options(Mode::Precopy) });
    std::thread::scope(|scope| {
        let receiving = scope.spawn(|| receiver.receive(&host, &Silent));
        let (sender, begun) = mpsc::channel();
        let observer = At(move |event: &Event| {
            if matches!(event, Event::Phase { phase: Phase::Precopy }) {
                let _ = sender.send(());
            }
        });
        let (guest, slow, cancelled) = (&first, &slow, &cancel);
        let migrating = scope.spawn(move || reported(&**guest, slow, route, cancelled, &observer));
        begun.recv().expect("pre-copy begins");
        let refused = reported(&*second, &options(Mode::Precopy), route, &Cancel::new(), &Silent);
        let reason = refused.reason.expect("a reason");
        assert!(reason.contains("another guest is arriving here"), "{reason}");
        cancel.cancel("make room").expect("before commit");
        assert_eq!(migrating.join().expect("no panic").outcome, Outcome::Kept);
        assert!(matches!(receiving.join().expect("no panic"), Arrival::Failed { .. }));
        let receiving = scope.spawn(|| receiver.receive(&host, &Silent));
        let report = reported(&*first, &options(Mode::Precopy), route, &Cancel::new(), &Silent);
        assert_eq!(report.outcome, Outcome::Moved, "{:?}", report.reason);
        assert!(matches!(receiving.join().expect("no panic"), Arrival::Arrived { .. }));
    });
    host.guest().expect("built").check_all();
    for sim in [Some(first), Some(second), host.guest()].into_iter().flatten() {
        sim.shut_down();
    }
}
