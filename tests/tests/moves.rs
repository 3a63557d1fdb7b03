//! Proves that a guest under load arrives whole in every mode, again and again, and that the report says what happened.
//!
//! "Whole" is the guest's own word: it checks its pages, its clock and its ticks while it works, numbers what it says, and
//! measures how long it stood still.

use std::io::Write;
use std::net::TcpStream;

use migrate::options::Mode;
use migrate::progress::Event;
use migrate::report::{Phase, Report};
use tests::{Guest, Journey, World, until};

/// No guest may stand still for longer on any machine these tests run on, in µs. Programs that are not optimized take
/// seconds to compare memory during the pause.
const TOO_LONG: f64 = if cfg!(debug_assertions) { 10e6 } else { 2e6 };

fn name(mode: Mode) -> &'static str {
    match mode {
        Mode::Precopy => "precopy",
        Mode::Stopcopy => "stopcopy",
        Mode::Postcopy => "postcopy",
        // Something follows, however little that is.
        Mode::Hybrid => "hybrid --max-downtime 1us",
    }
}

/// What must be true of the report of any guest that has moved.
fn check(report: &Report, mode: Mode, verify: bool) {
    assert_eq!((report.mode, report.residual_bytes, &report.reason), (mode, 0, &None));
    check_phases(report);
    check_rounds(report);
    let pause = report.switchover.expect("a pause");
    assert!(pause.downtime_us > 0 && (pause.downtime_us as f64) < TOO_LONG, "{pause:?}");
    assert!(pause.state_bytes > 0, "{pause:?}");
    let guest =
        report.guest_measured.unwrap_or_else(|| panic!("without the guest's own figures: {report:?}"));
    assert!(guest.downtime_us > 0.0 && guest.downtime_us < TOO_LONG, "{guest:?}");
    assert!(guest.work_after_per_s > 0.0 && guest.corruptions == 0, "{guest:?}");
    let postcopy = report.postcopy.unwrap_or_default();
    assert_eq!(report.postcopy.is_some(), matches!(mode, Mode::Postcopy | Mode::Hybrid));
    assert!(postcopy.duplicate_pages <= postcopy.faults, "{postcopy:?}");
    assert_eq!(report.verification.is_some(), verify);
    if let Some(verification) = &report.verification {
        assert!(verification.pages > 0 && verification.mismatched == 0, "{verification:?}");
    }
}

fn check_phases(report: &Report) {
    let phases: Vec<_> = report.phases.iter().map(|it| it.phase).collect();
    let expected: &[_] = match report.mode {
        Mode::Precopy => &[Phase::Connect, Phase::Precopy, Phase::Switchover, Phase::Finish],
        Mode::Stopcopy => &[Phase::Connect, Phase::Switchover, Phase::Finish],
        Mode::Postcopy => &[Phase::Connect, Phase::Switchover, Phase::Postcopy, Phase::Finish],
        Mode::Hybrid => &[Phase::Connect, Phase::Precopy, Phase::Switchover, Phase::Postcopy, Phase::Finish],
    };
    assert_eq!(phases, expected);
    // The total ends when nothing is left on the source; saying goodbye comes after it.
    let sum: u64 = report.phases.iter().filter(|it| it.phase != Phase::Finish).map(|it| it.us).sum();
    assert!(sum > 0 && sum <= report.total_us + 1000, "phases of {sum} µs in {} µs", report.total_us);
}

fn check_rounds(report: &Report) {
    let numbers: Vec<_> = report.rounds.iter().map(|it| it.number).collect();
    let expected: Vec<_> = (0..).take(numbers.len()).collect();
    assert_eq!(numbers, expected, "rounds are numbered from 0");
    assert_eq!(report.rounds.is_empty(), report.mode == Mode::Postcopy, "{:?}", report.rounds);
    let pages: u64 = report.rounds.iter().map(|it| it.pages).sum();
    assert!(pages <= report.traffic.pages, "{:?}", report.traffic);
    // 96 MiB of the busy guest cannot be compressed or left out.
    assert!(report.traffic.bytes > 96 << 20, "{:?}", report.traffic);
}

/// Hybrid of a guest that leaves rounds little to do.
#[test]
#[cfg_attr(any(no_kvm, no_userfaultfd), ignore = "needs /dev/kvm and /dev/userfaultfd")]
fn hybrid_of_a_guest_at_rest_leaves_nothing_behind_the_pause() {
    let world = World::alone();
    let mut journey = Journey::begin(&world, Guest::IDLE);
    let report = journey.hop("--mode hybrid --max-downtime 10s");
    assert_eq!(report.postcopy, None, "{report:?}");
    let phases: Vec<_> = report.phases.iter().map(|it| it.phase).collect();
    assert_eq!(phases, [Phase::Connect, Phase::Precopy, Phase::Switchover, Phase::Finish]);
}

/// Two hops: the first verified, the second not.
fn moves(mode: Mode, cpus: u32) {
    let world = World::alone();
    let mut journey = Journey::begin(&world, Guest::BUSY.cpus(cpus));
    let report = journey.hop(&format!("--mode {} --verify", name(mode)));
    check(&report, mode, true);
    let report = journey.hop(&format!("--mode {} --streams 4", name(mode)));
    check(&report, mode, false);
    assert_eq!(report.streams, 4);
}

#[test]
#[cfg_attr(no_kvm, ignore = "needs /dev/kvm")]
fn precopy() {
    moves(Mode::Precopy, 1);
}

#[test]
#[cfg_attr(no_kvm, ignore = "needs /dev/kvm")]
fn precopy_of_two_vcpus() {
    moves(Mode::Precopy, 2);
}

#[test]
#[cfg_attr(no_kvm, ignore = "needs /dev/kvm")]
fn stopcopy() {
    moves(Mode::Stopcopy, 1);
}

#[test]
#[cfg_attr(no_kvm, ignore = "needs /dev/kvm")]
fn stopcopy_of_two_vcpus() {
    moves(Mode::Stopcopy, 2);
}

#[test]
#[cfg_attr(any(no_kvm, no_userfaultfd), ignore = "needs /dev/kvm and /dev/userfaultfd")]
fn postcopy() {
    moves(Mode::Postcopy, 1);
}

#[test]
#[cfg_attr(any(no_kvm, no_userfaultfd), ignore = "needs /dev/kvm and /dev/userfaultfd")]
fn postcopy_of_two_vcpus() {
    moves(Mode::Postcopy, 2);
}

#[test]
#[cfg_attr(any(no_kvm, no_userfaultfd), ignore = "needs /dev/kvm and /dev/userfaultfd")]
fn hybrid() {
    moves(Mode::Hybrid, 1);
}

#[test]
#[cfg_attr(any(no_kvm, no_userfaultfd), ignore = "needs /dev/kvm and /dev/userfaultfd")]
fn hybrid_of_two_vcpus() {
    moves(Mode::Hybrid, 2);
}

#[test]
#[cfg_attr(any(no_kvm, no_userfaultfd), ignore = "needs /dev/kvm and /dev/userfaultfd")]
fn there_and_back_three_times_in_all_modes() {
    let world = World::alone();
    let mut journey = Journey::begin(&world, Guest::BUSY.cpus(2));
    for mode in [Mode::Precopy, Mode::Postcopy, Mode::Hybrid, Mode::Stopcopy, Mode::Postcopy, Mode::Hybrid] {
        let report = journey.hop(&format!("--mode {}", name(mode)));
        check(&report, mode, false);
    }
}

#[test]
#[cfg_attr(any(no_kvm, no_userfaultfd), ignore = "needs /dev/kvm and /dev/userfaultfd")]
fn memory_on_both_sides_of_the_hole_below_4_gib() {
    let world = World::alone();
    let guest = Guest { words: "dirty ws=256 rate=5000 fill=128", memory: "6G", cpus: 2, ..Guest::IDLE };
    let mut journey = Journey::begin(&world, guest);
    check(&journey.hop("--mode precopy"), Mode::Precopy, false);
    check(&journey.hop("--mode hybrid --max-downtime 1us"), Mode::Hybrid, false);
}

#[test]
#[cfg_attr(any(no_kvm, no_userfaultfd), ignore = "needs /dev/kvm and /dev/userfaultfd")]
fn computing_guests_and_guests_at_full_speed() {
    let world = World::alone();
    for words in ["compute fill=96", "dirty ws=32 rate=max fill=96 pattern=hot"] {
        let world = &world;
        let mut journey = Journey::begin(world, Guest::BUSY.words(words).cpus(2));
        check(&journey.hop("--mode hybrid --verify"), Mode::Hybrid, true);
        drop(journey);
    }
}

#[test]
#[cfg_attr(no_kvm, ignore = "needs /dev/kvm")]
fn empty_and_repetitive_memory() {
    let world = World::alone();
    for (words, pages) in
        [("idle fill=96 content=zero", 0..4096), ("idle fill=96 content=text", 24_576..28_672)]
    {
        let mut journey = Journey::begin(&world, Guest::BUSY.words(words));
        let report = journey.hop("--mode precopy --verify");
        assert!(report.traffic.zero_pages > 0, "{:?}", report.traffic);
        assert!(pages.contains(&report.traffic.pages), "{:?}", report.traffic);
        assert_eq!(report.verification.expect("asked for").mismatched, 0);
    }
}

#[test]
#[cfg_attr(any(no_kvm, no_userfaultfd), ignore = "needs /dev/kvm and /dev/userfaultfd")]
fn guests_that_have_only_begun_to_boot() {
    let world = World::alone();
    for mode in [Mode::Precopy, Mode::Postcopy] {
        let mut journey = Journey::early(&world, Guest::BUSY.cpus(2));
        let _ = journey.hop(&format!("--mode {}", name(mode)));
        let _ = journey.hop("--mode hybrid --verify");
    }
}

#[test]
#[cfg_attr(any(no_kvm, no_userfaultfd), ignore = "needs /dev/kvm and /dev/userfaultfd")]
fn strangers_at_the_destination_disturb_nobody() {
    let world = World::alone();
    let mut journey = Journey::begin(&world, Guest::BUSY);
    let next = world.receive("popular");
    let address = next.address();
    let call = |words: &[u8]| {
        let mut stranger = TcpStream::connect(&address)?;
        stranger.write_all(words).map(|()| stranger)
    };
    drop(call(b"").expect("it listens"));
    drop(call(b"GET / HTTP/1.1\r\n\r\n").expect("it listens"));
    let _stay = [call(b""), call(b"VM\x01\x01\xff\xff\xff\xff"), call(&[0xff; 4096])];
    let mut migration =
        world.migrate(journey.here(), &address, "--mode hybrid --verify --bandwidth 50M --compression none");
    migration.wait_for("the first pages", |event| matches!(event, Event::Progress(_)));
    // Nobody listens any more once the guest is there.
    let _late = [call(b"VM\x01\x10"), call(b"")];
    let report = migration.end().moved();
    check(&report, Mode::Hybrid, true);
    journey.arrive(next);
}

#[test]
#[cfg_attr(no_kvm, ignore = "needs /dev/kvm")]
fn the_witness_is_not_blind() {
    let world = World::alone();
    let ways = ["stamp", "generation", "content", "ticks", "tsc", "fault"];
    let guests = ways.map(|way| {
        let words = format!("dirty ws=8 rate=5000 fill=16 sabotage={way}");
        world.run(way, Guest { words: words.leak(), memory: "64M", cpus: 1, ..Guest::IDLE })
    });
    for guest in guests {
        let told = until("the damage to be told", || guest.transcript().check().err());
        assert!(told.contains("damage"), "{}: {told}", guest.name());
    }
}
