//! Where there are few cores, vCPUs make room for bulk data within one host as copying begins, and nowhere else.

mod sim;

use std::sync::atomic::Ordering;
use std::time::Duration;

use migrate::channel::memory::Place;
use migrate::channel::tcp::{TcpDial, TcpListen};
use migrate::channel::{Dial, Listen};
use migrate::options::{Mode, Options};
use migrate::report::Outcome;
use sim::attempt::{attempt, short};
use sim::{MODES, has_few_cores, options};

/// Moves a guest. Whether its vCPU was sent to another core.
fn is_sent(options: &Options, dial: &dyn Dial, listen: Box<dyn Listen>) -> bool {
    let attempt = attempt(options, short(Duration::from_secs(5)), dial, listen);
    attempt.check(&format!("{options:?}"));
    assert_eq!(attempt.report.outcome, Outcome::Moved, "{:?}", attempt.report.reason);
    attempt.guest.was_sent.load(Ordering::SeqCst)
}

#[test]
fn vcpus_make_room_within_one_host_unless_the_guest_stands_still() {
    for mode in MODES {
        let options = options(mode);
        let listen = TcpListen::bind("127.0.0.1:0").expect("a free port");
        let dial = TcpDial::new(&listen.address().expect("bound").to_string());
        let within_host = is_sent(&options, &dial, Box::new(listen));
        assert_eq!(within_host, mode != Mode::Stopcopy && has_few_cores(), "{mode:?}");
        // As if to another host.
        let place = Place::new();
        assert!(!is_sent(&options, &place.clone(), Box::new(place)), "{mode:?}");
    }
}
