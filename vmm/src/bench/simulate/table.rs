//! What was computed, for people.

use std::fmt::Write;
use std::time::Duration;

use migrate::cli::words::{count, mode as word};
use migrate::options::default_timeout;

use super::SimulateArgs;
use super::constants::Constants;
use super::course::{Case, Course};
use crate::lab::guest::Load;
use crate::lab::table::{Table, ms, or_dash, short};

const GIB: f64 = (1_u64 << 30) as f64;

const NOTE: &str = "\
Predicted, not measured. Downtime: from stopping the guest until it runs there. Expected: what the policy expects of it,\n\
which decides. Requests: how long a vCPU waits for a page that is missing (post-copy).";

/// Each case round by round, then all of them.
pub(super) fn words(args: &SimulateArgs, cases: &[(Load, Case)], constants: &Constants) -> String {
    let mut text = format!("{}\n", setting(args, cases));
    let head = [
        "load",
        "mode",
        "rounds",
        "total s",
        "downtime ms",
        "expected ms",
        "GB",
        "in pause",
        "after it",
        "request µs",
    ];
    let mut table = Table::new(2, &head);
    for (load, case) in cases {
        let course = case.run(constants);
        let _ = write!(text, "\n{}\n{}{}", heading(*load, case), rounds(&course), ending(case, &course));
        table.row(row(*load, case, &course, constants));
    }
    let _ = write!(text, "\n{table}\n{NOTE}\n");
    text
}

fn setting(args: &SimulateArgs, cases: &[(Load, Case)]) -> String {
    let exists = cases.first().map_or(0.0, |(_, case)| case.guest.populated);
    let cores =
        args.cores.map_or_else(|| "a core for every thread".to_owned(), |cores| format!("{cores} cores"));
    format!(
        "{:.0} GiB of RAM, {:.0} GiB of it there, {} vCPUs, written over {:.0} GiB; {}, round trip {} µs, {} connections; {cores}",
        args.memory as f64 / GIB,
        exists / 262_144.0,
        args.cpus,
        args.working_set.unwrap_or(args.memory / 2) as f64 / GIB,
        args.bandwidth,
        short(args.rtt.as_secs_f64() * 1e6),
        args.streams,
    )
}

fn heading(load: Load, case: &Case) -> String {
    let work = match load {
        Load::Idle => "idle".to_owned(),
        Load::Rate(rate) => format!("{} pages/s", count(rate)),
        Load::Max => {
            let rate = case.guest.writes.first().map_or(0.0, |writes| writes.per_s);
            format!("as fast as it can ({} pages/s)", count(rate as u64))
        }
    };
    format!("{}, {work}", word(case.mode))
}

fn rounds(course: &Course) -> String {
    if course.rounds.is_empty() {
        return String::new();
    }
    let mut table = Table::new(0, &["round", "pages", "ms", "GB/s", "dirtied", "dirtied/s", "then"]);
    for (round, said) in &course.rounds {
        let bytes = (round.pages * migrate::pages::PAGE_SIZE as u64) as f64;
        table.row(vec![
            round.number.to_string(),
            count(round.pages),
            ms(round.us as f64),
            short(bytes / 1e3 / (round.us as f64).max(1.0)),
            count(round.dirtied),
            count(round.dirty_rate as u64),
            said.clone(),
        ]);
    }
    table.to_string()
}

/// How it ends, in a line or two.
fn ending(case: &Case, course: &Course) -> String {
    let (total, gb) = (short(course.total_s), short(course.bytes / 1e9));
    let mut text = match (&course.given_up, course.pause) {
        (Some(why), _) => format!("given up after {total} s and {gb} GB: {why}\n"),
        (None, Some(pause)) => {
            format!("moved in {total} s and {gb} GB, downtime {} ms\n", ms(pause.downtime_s * 1e6))
        }
        (None, None) => String::new(),
    };
    let default = default_timeout(case.guest.ram);
    if Duration::from_secs_f64(course.commit_s) > default {
        let default = default.as_secs();
        let _ =
            writeln!(text, "longer than migrate waits by default ({default} s): give more with --timeout");
    }
    text
}

fn row(load: Load, case: &Case, course: &Course, constants: &Constants) -> Vec<String> {
    let pause = course.pause;
    let fault_us = constants.fault_us + case.link.round_trip_s() * 1e6;
    let missing = pause.filter(|pause| pause.missing > 0.0);
    vec![
        load.to_string(),
        word(case.mode).to_owned(),
        course.rounds.len().to_string(),
        short(course.total_s),
        pause.map_or_else(|| "gives up".to_owned(), |pause| ms(pause.downtime_s * 1e6)),
        or_dash(pause.and_then(|pause| pause.expected_s), |seconds| ms(seconds * 1e6)),
        short(course.bytes / 1e9),
        or_dash(pause, |pause| count(pause.pages.round() as u64)),
        or_dash(pause, |pause| count(pause.missing.round() as u64)),
        or_dash(missing, |_| short(fault_us)),
    ]
}
