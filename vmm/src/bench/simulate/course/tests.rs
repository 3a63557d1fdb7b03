//! What must be true of any course, whatever things cost.

use proptest::prelude::*;

use super::super::guest::Writes;
use super::super::link::Bandwidth;
use super::*;

const MS: f64 = 1e-3;

/// 16 GiB, all of it there, on hosts with cores enough.
fn case(mode: Mode, gbit: f64, per_s: f64) -> Case {
    let writes = if per_s > 0.0 { vec![Writes { per_s, over: 2_097_152.0 }] } else { Vec::new() };
    Case {
        guest: Guest { ram: 16 << 30, populated: 4_194_304.0, vcpus: 4, writes },
        mode,
        streams: 4,
        max_downtime: Duration::from_millis(300),
        link: Link {
            bandwidth: format!("{gbit}Gbit").parse().unwrap(),
            round_trip: Duration::from_micros(20),
            windows: true,
        },
        hosts: Hosts::Two { cores: 64 },
    }
}

fn run(case: &Case) -> Course {
    case.run(&Constants::default())
}

fn downtime_s(course: &Course) -> f64 {
    course.pause.expect("it ended with a pause").downtime_s
}

#[test]
fn a_guest_that_writes_nothing_takes_one_round_and_a_pause() {
    let course = run(&case(Mode::Precopy, 10.0, 0.0));
    assert_eq!(
        (course.rounds.len(), course.rounds[0].0.pages, course.rounds[0].0.dirtied),
        (1, 4_194_304, 0)
    );
    assert_eq!(course.rounds[0].1, "switch over: 0 pages left");
    assert!(downtime_s(&course) < 3.0 * MS, "{course:?}");
    // 16 GiB by 10 Gbit/s, of which 94 % are bytes of pages.
    assert!((course.total_s / (17.18e9 / 1.175e9) - 1.0).abs() < 0.02, "{}", course.total_s);
    assert!(course.bytes >= 16.0 * f64::from(1 << 30) && course.bytes < 17.3e9);
}

#[test]
fn a_link_faster_than_the_guest_writes_converges() {
    // 10 Gbit/s are 287,000 pages a second.
    let course = run(&case(Mode::Precopy, 10.0, 50_000.0));
    assert!((3..12).contains(&course.rounds.len()), "{:?}", course.rounds);
    let left: Vec<_> = course.rounds.iter().map(|(round, _)| round.dirtied).collect();
    assert!(left.is_sorted_by(|before, after| after < before), "{left:?}");
    assert!(downtime_s(&course) < 5.0 * MS, "{course:?}");
    let expected = course.pause.unwrap().expected_s.unwrap();
    assert!(expected < 5.0 * MS, "{expected}");
}

#[test]
fn a_link_slower_than_the_guest_writes_gives_up_in_the_policys_words() {
    let course = run(&case(Mode::Precopy, 10.0, 2_000_000.0));
    assert!(course.pause.is_none(), "{course:?}");
    let why = course.given_up.unwrap();
    assert!(why.starts_with("it does not converge: after") && why.contains("--mode hybrid"), "{why}");
    assert_eq!(course.rounds.last().unwrap().1, "give up");
}

#[test]
fn what_is_allowed_decides() {
    let patient = Case { max_downtime: Duration::from_secs(20), ..case(Mode::Precopy, 10.0, 2_000_000.0) };
    assert!(downtime_s(&run(&patient)) > 1.0);
    let strict = Case { max_downtime: Duration::from_micros(500), ..case(Mode::Precopy, 10.0, 0.0) };
    assert!(run(&strict).given_up.unwrap().starts_with("the pause cannot be as short as asked for"));
}

#[test]
fn stop_and_copy_is_one_long_pause_and_post_copy_a_short_one() {
    let (stop, post) = (run(&case(Mode::Stopcopy, 10.0, 1e5)), run(&case(Mode::Postcopy, 10.0, 1e5)));
    assert!(downtime_s(&stop) > 14.0 && downtime_s(&post) < 3.0 * MS, "{stop:?} {post:?}");
    assert!(post.rounds.is_empty() && post.total_s > 14.0 && post.commit_s < 0.2, "{post:?}");
    assert_eq!(post.pause.unwrap().missing, 4_194_304.0);
}

/// Hybrid that may send nothing in the pause.
fn following(gbit: f64, per_s: f64) -> Case {
    Case { max_downtime: Duration::from_micros(1), ..case(Mode::Hybrid, gbit, per_s) }
}

#[test]
fn hybrid_ends_as_pre_copy_where_little_is_left() {
    let [hybrid, precopy] = [Mode::Hybrid, Mode::Precopy].map(|mode| run(&case(mode, 10.0, 1e4)));
    let pause = hybrid.pause.as_ref().unwrap();
    assert!(pause.missing == 0.0 && hybrid.total_s <= precopy.total_s, "{hybrid:?} {precopy:?}");
}

#[test]
fn hybrids_downtime_does_not_depend_on_how_much_is_left() {
    let rates = [0.0, 1e3, 1e4, 5e4];
    let by_rate = rates.map(|per_s| downtime_s(&run(&following(10.0, per_s))));
    // What is written while the last ones are told is told in the pause, and discarded in it: it is not much.
    let told_in_the_pause = MANY as f64 * Constants::default().discard_us / 1e6;
    let within = |downtimes: &[f64]| downtimes.iter().all(|one| one - by_rate[0] < told_in_the_pause * 1.2);
    assert!(within(&by_rate), "{by_rate:?}");
    let by_link = [1.0, 10.0, 100.0].map(|gbit| downtime_s(&run(&following(gbit, 5e4))));
    assert!(within(&by_link), "{by_link:?}");
}

#[test]
fn pages_written_faster_than_they_are_discarded_are_told_with_their_neighbours_before_the_pause() {
    // At 2 µs a run half a million a second could be discarded. Slower guests leave rounds so little that it comes in the pause.
    let free = Constants { discard_us: 0.0, discard_us_per_page: 0.0, ..Constants::default() };
    for per_s in [3e6, 4e6, 5e6] {
        // Fewer vCPUs cannot write so fast: each page that is written after it was sent catches one of them.
        let few = case(Mode::Hybrid, 100.0, per_s);
        let many =
            Case { guest: Guest { vcpus: 64, ..few.guest.clone() }, hosts: Hosts::Two { cores: 256 }, ..few };
        let course = run(&many);
        assert!(course.pause.as_ref().unwrap().missing > 0.0, "{per_s} writes/s: {course:?}");
        let downtime = downtime_s(&course);
        let none = downtime_s(&many.run(&free));
        assert!(downtime - none < 5.0 * MS, "{per_s} writes/s: {downtime} and {none} s");
    }
}

#[test]
fn distance_costs_a_pause_two_round_trips() {
    let far = |ms| {
        let case = case(Mode::Hybrid, 10.0, 1e4);
        downtime_s(&run(&Case { link: Link { round_trip: Duration::from_millis(ms), ..case.link }, ..case }))
    };
    assert!((far(50) - far(0) - 0.1).abs() < 3.0 * MS, "{} {}", far(50), far(0));
}

#[test]
fn a_round_of_the_bench_takes_what_was_measured() {
    // 1 GiB, 920 MiB of it there, one vCPU, both sides on two cores: 246 to 301 ms.
    let guest = Guest { ram: 1 << 30, populated: 235_557.0, vcpus: 1, writes: Vec::new() };
    let link = Link { bandwidth: Bandwidth::UNLIMITED, round_trip: Duration::from_micros(12), windows: true };
    let case =
        Case { guest, streams: 1, link, hosts: Hosts::One { cores: 2 }, ..case(Mode::Precopy, 1.0, 0.0) };
    let ms = run(&case).rounds[0].0.us / 1000;
    assert!((245..302).contains(&ms), "{ms}");
}

proptest! {
    #[test]
    fn a_course_is_finite_and_ends(
        mode in prop::sample::select(vec![Mode::Precopy, Mode::Hybrid, Mode::Postcopy, Mode::Stopcopy]),
        gbit in 0.1..1000.0_f64, per_s in 0.0..1e9_f64, streams in 1..=16_u32, cores in 1..256_u32, ms in 0..200_u64,
    ) {
        let like = case(mode, gbit, per_s);
        let link = Link { round_trip: Duration::from_millis(ms), ..like.link };
        let course = run(&Case { streams, link, hosts: Hosts::Two { cores }, ..like });
        prop_assert!(course.total_s.is_finite() && course.total_s > 0.0 && course.bytes.is_finite());
        prop_assert!(course.rounds.len() <= 30);
        prop_assert!(course.pause.is_some() != course.given_up.is_some());
        prop_assert!(mode == Mode::Precopy || course.given_up.is_none(), "only pre-copy may not end");
        if let Some(pause) = course.pause {
            prop_assert!(pause.downtime_s < course.total_s && course.commit_s <= course.total_s);
        }
    }

    #[test]
    fn more_bandwidth_never_makes_it_longer(
        // Not of hybrid: what little a fast link leaves is scattered, and discarded page by page.
        mode in prop::sample::select(vec![Mode::Precopy, Mode::Postcopy, Mode::Stopcopy]),
        gbit in 0.5..400.0_f64, more in 1.0..10.0_f64, per_s in 0.0..1e6_f64,
    ) {
        let (slow, fast) = (run(&case(mode, gbit, per_s)), run(&case(mode, gbit * more, per_s)));
        // What is given up ends early.
        if slow.pause.is_some() {
            prop_assert!(fast.pause.is_some(), "{slow:?} {fast:?}");
            prop_assert!(fast.total_s <= slow.total_s * (1.0 + 1e-6), "{} {}", fast.total_s, slow.total_s);
        }
    }

    #[test]
    fn what_writes_nothing_is_moved_once(gbit in 0.5..400.0_f64, streams in 1..=16_u32) {
        let course = run(&Case { streams, ..case(Mode::Precopy, gbit, 0.0) });
        prop_assert_eq!(course.rounds.len(), 1);
        prop_assert!(course.bytes < 4_194_304.0 * 4096.0 * 1.01);
    }
}
