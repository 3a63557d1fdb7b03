//! Proves that a migration which cannot be finished leaves the guest where it is: running, whole, as fast as before, and
//! free to move elsewhere.
//!
//! Everything here happens before the source has said `commit`. What may happen after it is in `doubt.rs`.

use std::io::{self, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;

use migrate::client::types::Life;
use migrate::progress::Event;
use migrate::report::Phase;
use rustix::process::{Pid, Resource, Rlimit, Signal, prlimit};
use tests::{Cut, Guest, Journey, Kind, Proxy, World, until};

/// Slow enough that pre-copy of the busy guest takes ten seconds.
const SLOW: &str = "--mode precopy --bandwidth 10M --compression none";

fn busy_guest(world: &World) -> Journey<'_> {
    Journey::begin(world, Guest::BUSY.cpus(2))
}

/// The last thing of every test here: it works on, it can still move, and it has lost nothing on all that way.
fn survived(mut journey: Journey) {
    journey.goes_on();
    journey.hop("--mode precopy --verify");
}

/// Pages cross the link while the guest runs.
fn copying(event: &Event) -> bool {
    matches!(event, Event::Progress(progress) if progress.phase == Phase::Precopy && progress.bytes > 0)
}

/// Something listens that is no VMM.
fn stranger(greet: impl Fn(TcpStream) + Send + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address").to_string();
    thread::spawn(move || listener.incoming().flatten().for_each(greet));
    address
}

#[test]
#[cfg_attr(no_kvm, ignore = "needs /dev/kvm")]
fn nobody_there_or_a_stranger() {
    let world = World::alone();
    let journey = busy_guest(&world);
    let nobody =
        TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address").to_string();
    let hangs_up = stranger(drop);
    let babbles =
        stranger(|mut stream| drop(stream.write_all(b"SSH-2.0-OpenSSH_9.7\r\n and a good deal more\r\n")));
    let listens = stranger(|mut stream| drop(io::copy(&mut stream, &mut io::sink())));
    for (to, words) in
        [(&nobody, "--mode precopy"), (&hangs_up, "--mode hybrid"), (&babbles, "--mode stopcopy")]
    {
        let reason = journey.attempt(to, words).kept();
        assert!(reason.contains(to.as_str()), "the reason names the address {to}: {reason}");
    }
    let reason = journey.attempt(&listens, "--mode postcopy --timeout 1s").kept();
    assert!(reason.contains("1 s"), "the reason names the limit: {reason}");
    survived(journey);
}

#[test]
#[cfg_attr(no_kvm, ignore = "needs /dev/kvm")]
fn the_destination_dies_in_precopy() {
    let world = World::alone();
    let journey = busy_guest(&world);
    let mut next = world.receive("dies");
    let mut migration = world.migrate(journey.here(), &next.address(), SLOW);
    migration.wait_for("pages to be copied", copying);
    next.process().kill();
    let _ = migration.end().kept();
    survived(journey);
}

#[test]
#[cfg_attr(no_kvm, ignore = "needs /dev/kvm")]
fn the_source_dies_in_precopy() {
    let world = World::alone();
    let mut journey = busy_guest(&world);
    let mut next = world.receive("bereft");
    let mut migration = world.migrate(journey.here(), &next.address(), SLOW);
    migration.wait_for("pages to be copied", copying);
    journey.here_mut().process().kill();
    assert_eq!(migration.process().end().code, Some(3), "the command cannot know how it ended");
    until("the destination to give up what has arrived", || {
        let ended = next.process().has_ended().is_some();
        (ended || next.life() == Some(Life::Waiting)).then_some(())
    });
    assert_eq!(next.console(), b"", "half a guest must not run");
}

#[test]
#[cfg_attr(no_kvm, ignore = "needs /dev/kvm")]
fn the_link_breaks_anywhere_before_commit() {
    let world = World::alone();
    let journey = busy_guest(&world);
    let next = world.receive("far");
    // Each message in turn is for the simulated migrations; here are those after which another thing happens.
    let bytes = [0, 16, 5000, 50 << 20].map(Cut::AfterBytes);
    let frames = [
        Cut::Before(Kind::Preflight),
        Cut::After(Kind::Accept),
        Cut::After(Kind::RoundDone),
        Cut::After(Kind::State),
        Cut::Before(Kind::Ready),
    ];
    for cut in bytes.into_iter().chain(frames) {
        let proxy = Proxy::new(&next.address(), cut);
        // Refused for as long as the attempt before is being cleared away there.
        let reason = until(&format!("the link to break {cut:?}"), || {
            let reason = journey.attempt(proxy.address(), "--mode precopy").kept();
            proxy.is_cut().then_some(reason)
        });
        assert!(reason.contains(proxy.address()), "{cut:?}: {reason}");
        assert_eq!(next.console(), b"", "{cut:?}: the guest must not run there");
    }
    // The destination that all this happened to is as good as a fresh one.
    let mut journey = journey;
    journey.goes_on();
    // It may hold the guest of the last one, until the next one's source says that the guest runs there.
    until("the guest to move", || {
        let ending = journey.attempt(&next.address(), "--mode precopy --verify");
        (ending.code == 0).then_some(())
    });
    journey.arrive(next);
}

#[test]
#[cfg_attr(no_kvm, ignore = "needs /dev/kvm")]
fn the_link_falls_silent() {
    let world = World::alone();
    let journey = busy_guest(&world);
    let next = world.receive("far");
    let proxy = Proxy::new(&next.address(), Cut::Never);
    let mut migration = world.migrate(journey.here(), proxy.address(), SLOW);
    migration.wait_for("pages to be copied", copying);
    proxy.fall_silent();
    let _ = migration.end().kept();
    next.wait_until(Life::Waiting);
    survived(journey);
}

#[test]
#[cfg_attr(no_kvm, ignore = "needs /dev/kvm")]
fn one_at_a_time_and_it_can_be_cancelled() {
    let world = World::alone();
    let journey = busy_guest(&world);
    let [next, other] = ["next", "other"].map(|name| world.receive(name));
    let name = journey.here().name();
    let mut migration = world.migrate(journey.here(), &next.address(), SLOW);
    migration.wait_for("pages to be copied", copying);
    let second = world.ask("migrate", ["--vm", name, "--to", &other.address()]);
    assert_eq!(second.code, Some(1), "{}", second.err);
    assert!(second.err.lines().count() == 1, "one line: {}", second.err);
    let mut watch = world.start(world.command("migrate", ["watch", "--vm", name]), "watch");
    until("watch to watch", || watch.err().contains("round").then_some(()));
    let cancel = world.ask("migrate", ["cancel", "--vm", name]);
    assert_eq!(cancel.code, Some(0), "{}", cancel.err);
    let reason = migration.end().kept();
    assert!(reason.contains("cancel"), "{reason}");
    for told in [watch.end(), world.ask("migrate", ["status", "--vm", name])] {
        assert!(told.code == Some(1) && told.out.contains(&reason), "{}", told.out);
    }
    next.wait_until(Life::Waiting);
    assert_eq!(other.life(), Some(Life::Waiting));
    survived(journey);
}

#[test]
#[cfg_attr(no_kvm, ignore = "needs /dev/kvm")]
fn ctrl_c_cancels() {
    let world = World::alone();
    let journey = busy_guest(&world);
    let next = world.receive("next");
    let mut migration = world.migrate(journey.here(), &next.address(), SLOW);
    migration.wait_for("pages to be copied", copying);
    migration.process().signal(Signal::INT);
    let ending = migration.end();
    assert!(ending.kept().contains("cancel") && ending.words.contains("cancel"), "{}", ending.words);
    next.wait_until(Life::Waiting);
    survived(journey);
}

#[test]
#[cfg_attr(no_kvm, ignore = "needs /dev/kvm")]
fn the_destination_has_no_room() {
    let world = World::alone();
    // More than any machine has; the guest touches little of it.
    let journey = Journey::begin(&world, Guest::IDLE.memory("512G"));
    let next = world.receive("small");
    let ending = journey.attempt(&next.address(), "--mode precopy");
    let reason = ending.kept();
    assert!(reason.contains("memory"), "{reason}");
    assert_eq!(ending.report().traffic.pages, 0, "refused before a page was sent");
    next.wait_until(Life::Waiting);
    journey.goes_on();
}

#[test]
#[cfg_attr(no_kvm, ignore = "needs /dev/kvm")]
fn a_guest_that_writes_faster_than_the_link_stays_and_is_as_fast_as_before() {
    let world = World::alone();
    let journey = Journey::begin(&world, Guest::BUSY.words("dirty ws=32 rate=max fill=32"));
    let before = journey.here().works_on().work_per_s;
    let next = world.receive("far");
    let words = "--mode precopy --bandwidth 40M --compression none --max-downtime 100ms --timeout 20s";
    let reason = journey.attempt(&next.address(), words).kept();
    assert!(
        ["hybrid", "postcopy", "post-copy"].iter().any(|way| reason.contains(way)),
        "no way out: {reason}"
    );
    let after = journey.here().works_on().work_per_s;
    assert!(after * 2 > before, "{before} pages/s before, {after} after: is the dirty log still on?");
    next.wait_until(Life::Waiting);
    survived(journey);
}

#[test]
#[cfg_attr(no_kvm, ignore = "needs /dev/kvm")]
fn a_console_that_may_not_grow_is_lost_and_the_guest_goes_on() {
    let world = World::quiet();
    let journey = Journey::begin(&world, Guest::IDLE);
    let pid = i32::try_from(journey.here().pid()).ok().and_then(Pid::from_raw);
    // What the VMM says of it goes to a file as well, which is shorter.
    let most = journey.here().console().len() as u64 + 300;
    prlimit(pid, Resource::Fsize, Rlimit { current: Some(most), maximum: None }).expect("a limit");
    let mut journey = journey;
    until("the VMM to say so", || journey.here_mut().process().err().contains("console").then_some(()));
    let here = journey.here();
    assert_eq!((here.life(), here.info().corruptions), (Some(Life::Running), Some(0)));
}
