//! Slow links: packed pages and differences bring a guest over as whole as plain ones do, whatever breaks, and only where both
//! sides want them.

mod sim;

use std::time::Duration;

use migrate::channel::memory::Place;
use migrate::channel::tcp::{TcpDial, TcpListen};
use migrate::channel::tls::{TlsDial, TlsListen};
use migrate::channel::{Deadlines, Dial, Listen};
use migrate::options::{Compression, Mode, Options};
use migrate::protection::{Admission, Protection, authority};
use migrate::report::{Outcome, Report, Traffic};
use sim::attempt::{attempt, short};
use sim::link::{Blow, Fuse, Fusing};
use sim::{MODES, options};

/// More operations than any of these migrations has.
const MANY: i64 = 2000;

fn packing(mode: Mode) -> Options {
    Options { compression: Compression::Zstd, ..options(mode) }
}

/// Moves a guest and checks all of it.
fn moved(options: &Options, dial: &dyn Dial, listen: Box<dyn Listen>) -> Report {
    let deadlines = Deadlines { settle: Duration::from_millis(20), ..Deadlines::default() };
    let attempt = attempt(options, deadlines, dial, listen);
    let what = format!("{options:?}");
    attempt.check(&what);
    assert_eq!(attempt.report.outcome, Outcome::Moved, "{what}: {:?}", attempt.report.reason);
    let verified = attempt.report.verification.as_ref().map(|verified| verified.mismatched);
    assert_eq!(verified, options.verify.then_some(0), "{what}");
    attempt.report
}

fn in_memory(options: &Options) -> Report {
    let place = Place::new();
    moved(options, &place.clone(), Box::new(place))
}

#[test]
fn every_mode_moves_a_busy_guest_packed() {
    for mode in MODES {
        for verify in [false, true] {
            let options = Options { verify, streams: 3, ..packing(mode) };
            let listen = TcpListen::bind("127.0.0.1:0").expect("a free port");
            let dial = TcpDial::new(&listen.address().expect("bound").to_string());
            let Traffic { pages, packed_pages, saved_bytes, .. } =
                moved(&options, &dial, Box::new(listen)).traffic;
            // All pages of a sim are of one word.
            assert!(
                packed_pages == pages && saved_bytes > 4000 * pages,
                "{packed_pages} of {pages}, {saved_bytes}"
            );
        }
    }
}

#[test]
fn every_mode_moves_a_busy_guest_packed_inside_tls() {
    let files = tempfile::TempDir::new().expect("a folder");
    let key = files.path().join("key");
    authority::shared_key(&key).expect("a key");
    for mode in MODES {
        let options = Options { verify: true, streams: 2, ..packing(mode) };
        let listen = TcpListen::bind("127.0.0.1:0").expect("a free port");
        let to = listen.address().expect("bound").to_string();
        let identity = Admission::SharedKey { file: key.clone() }.identity().expect("a key");
        let shown = Protection::SharedKey { file: key.clone() }.identity(&to).expect("a key");
        let dial = TlsDial::new(TcpDial::new(&to), shown.expect("it protects"));
        let traffic = moved(&options, &dial, Box::new(TlsListen::new(listen, identity))).traffic;
        assert!(traffic.packed_pages == traffic.pages && traffic.pages > 0, "{mode:?} {traffic:?}");
    }
}

#[test]
fn a_page_that_is_sent_again_is_sent_as_a_difference() {
    for mode in [Mode::Precopy, Mode::Hybrid] {
        // So slow that rounds leave something to the next.
        let slow = Options { verify: true, bandwidth: Some(20 << 10), ..packing(mode) };
        let traffic = in_memory(&slow).traffic;
        assert!(
            traffic.delta_pages > 0 && traffic.delta_pages < traffic.packed_pages,
            "{mode:?} {traffic:?}"
        );
        let without = in_memory(&Options { delta_cache: 0, ..slow }).traffic;
        assert_eq!(without.delta_pages, 0);
        assert!(without.packed_pages > 0);
    }
}

#[test]
fn a_cache_that_is_too_small_for_the_guest_is_as_right() {
    for pages in [1, 7, 50] {
        let slow = Options { verify: true, bandwidth: Some(100 << 10), ..packing(Mode::Precopy) };
        in_memory(&Options { delta_cache: pages * 4096, ..slow });
    }
}

#[test]
fn a_slow_link_is_noticed_without_being_told() {
    let slow = Options {
        compression: Compression::Auto,
        verify: true,
        bandwidth: Some(4 << 20),
        ..options(Mode::Precopy)
    };
    let habit = sim::Habit { pages: 4096, working_set: 500, ..sim::Habit::default() };
    let runners = sim::Runners::default();
    let (guest, host) = (sim::Sim::booted(habit, runners.clone()), sim::SimHost::new(habit, &runners));
    let place = Place::new();
    let receiver = migrate::Receiver::over(Box::new(place.clone()), Deadlines::default());
    let report = std::thread::scope(|scope| {
        let receiving = scope.spawn(|| receiver.receive(&host, &migrate::progress::Silent));
        let route = migrate::source::Route {
            dial: &place,
            deadlines: Deadlines::default(),
            journals: migrate::journal::Journals::nowhere(),
        };
        let cancel = migrate::Cancel::new();
        let report = sim::reported(&*guest, &slow, route, &cancel, &migrate::progress::Silent);
        receiving.join().expect("no panic");
        report
    });
    assert_eq!(report.outcome, Outcome::Moved, "{:?}", report.reason);
    let Traffic { packed_pages, pages, .. } = report.traffic;
    assert!(packed_pages > pages / 4, "{packed_pages} of {pages}");
    host.guest().expect("built").check_all();
    guest.shut_down();
    host.shut_down();
}

#[test]
fn who_does_not_want_it_gets_none() {
    let slow = Options { bandwidth: Some(1 << 20), ..options(Mode::Precopy) };
    let traffic = in_memory(&slow).traffic;
    assert_eq!((traffic.packed_pages, traffic.delta_pages, traffic.saved_bytes), (0, 0, 0));
}

#[test]
fn post_copy_has_a_limit_of_its_own() {
    let after = |bandwidth_postcopy| {
        let options = Options { bandwidth: Some(50 << 20), bandwidth_postcopy, ..options(Mode::Postcopy) };
        in_memory(&options).postcopy.expect("pages were missing").last_page_us
    };
    // A block of pages is pushed at once, and the next when that is paid for: a second.
    assert!(after(Some(50 << 10)) > 300_000);
}

/// Cuts the link after every number of operations, until a migration has fewer.
#[test]
fn a_link_that_breaks_at_any_moment_leaves_the_guest_in_one_place() {
    for mode in MODES {
        let fuse_after = |operations| {
            let fuse = Fuse::new(operations, Blow::Cut);
            let fused = Fusing { inner: Place::new(), fuse: fuse.clone() };
            let listen = Box::new(fused.inner.clone());
            let slow = Options { bandwidth: Some(400 << 10), ..packing(mode) };
            let attempt = attempt(&slow, short(Duration::from_millis(500)), &fused, listen);
            attempt.check(&format!("{mode:?}, cut after {operations} operations"));
            fuse.has_blown()
        };
        assert!((0..MANY).any(|operations| !fuse_after(operations)), "{mode:?} never ends");
    }
}
