//! Where there are few cores, a guest's vCPUs have theirs during a move, and bulk data the others.

mod sim;

use std::time::Duration;

use migrate::channel::memory::Place;
use migrate::channel::tcp::{TcpDial, TcpListen};
use migrate::channel::{Dial, Listen};
use migrate::options::{Mode, Options};
use migrate::report::Outcome;
use rustix::thread::CpuSet;
use sim::attempt::{attempt, short};
use sim::seam::first_core;
use sim::{MODES, has_few_cores, options};

/// Moves a guest. To which cores its vCPU was sent on the source, and was kept to on the destination.
fn vcpu_cores(options: &Options, dial: &dyn Dial, listen: Box<dyn Listen>) -> [Option<CpuSet>; 2] {
    let attempt = attempt(options, short(Duration::from_secs(5)), dial, listen);
    attempt.check(&format!("{options:?}"));
    assert_eq!(attempt.report.outcome, Outcome::Moved, "{:?}", attempt.report.reason);
    let there = attempt.host.guest().expect("a machine");
    [&attempt.guest.was_sent, &there.was_kept].map(|cores| cores.get().copied())
}

fn within_host(options: &Options) -> [Option<CpuSet>; 2] {
    let listen = TcpListen::bind("127.0.0.1:0").expect("a free port");
    let dial = TcpDial::new(&listen.address().expect("bound").to_string());
    vcpu_cores(options, &dial, Box::new(listen))
}

/// As if to another host.
fn to_another_host(options: &Options) -> [Option<CpuSet>; 2] {
    let place = Place::new();
    vcpu_cores(options, &place.clone(), Box::new(place))
}

#[test]
fn vcpus_are_sent_where_they_are_within_one_host_unless_the_guest_stands_still() {
    for mode in MODES {
        let options = options(mode);
        let expected = (mode != Mode::Stopcopy && has_few_cores()).then(first_core);
        assert_eq!(within_host(&options)[0], expected, "{mode:?}");
        assert_eq!(to_another_host(&options)[0], None, "{mode:?}");
    }
}

#[test]
fn the_destination_keeps_them_where_they_were_within_one_host() {
    let options = options(Mode::Postcopy);
    assert_eq!(within_host(&options)[1], has_few_cores().then(first_core));
    let [_, elsewhere] = to_another_host(&options);
    assert_eq!(elsewhere.is_some(), has_few_cores());
    assert_ne!(elsewhere, Some(first_core()), "which core they had on another host is not told");
}
