//! The model held against what was measured here: fitted on two figures of one cell, it predicts all others.
//!
//! The two: how long round 0 of an idle guest took, which says how fast this host was in that hour (all work on pages is
//! taken to be slower or faster by one factor), and that guest's own downtime, which says what a pause costs that moves
//! next to nothing. A guest that writes as fast as it can does so at the pace that it had before the move.

use std::fmt::Write;
use std::time::Duration;

use migrate::cli::words::mode as word;
use migrate::options::{DEFAULT_MAX_DOWNTIME, Mode};

use super::constants::Constants;
use super::course::{Case, Course};
use super::guest::{Guest, Writes, pages};
use super::link::{Bandwidth, Hosts, Link};
use super::measured::{Cell, Cells, Figures};
use crate::config::MemorySize;
use crate::lab::LabError;
use crate::lab::guest::Load;
use crate::lab::stats::Spread;
use crate::lab::table::{Table, ms, short};

const NOTE: &str = "\
Measured: medians with (min-max) of the good runs. Its downtime is the guest's own, the longest standstill in all of the\n\
migration: the host's noise is in it, and by post-copy the first page requests; the predicted one is the pause alone.\n\
Ratio: predicted by measured; * is fitted (of the total only round 0 is). Nothing else of these documents went into the\n\
predictions but what was asked for (sizes, modes, rates, connections; --max-downtime as vmm bench has it by default),\n\
cores and round trip of the host, the network between both sides, and the pace of guests that write as fast as they can.";

/// Constants that fit a host.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Fit {
    pub(super) constants: Constants,
    /// The cell it was fitted on.
    at: usize,
    /// Work on pages takes so many times as long as the constants had it.
    slower: f64,
    /// The fixed part of the pause is longer by so much, µs.
    longer_us: f64,
}

/// Fits the constants.
///
/// # Errors
/// When there is no cell to fit them on.
pub(super) fn fit(cells: &Cells, constants: &Constants) -> Result<Fit, LabError> {
    let all = &cells.cells;
    let fits = |cell: &&Cell| {
        cell.mode == Mode::Precopy && cell.network.is_none() && cell.figures.first_round_us.is_some()
    };
    let idle = all.iter().position(|cell| fits(&cell) && cell.load == Load::Idle);
    let at = idle.ok_or_else(|| {
        let none = "there is no idle guest moved by pre-copy to fit the model on: measure it over loopback, with --modes precopy --rates 0 and without --rtt";
        LabError::Arguments(none.to_owned())
    })?;
    let cell = &all[at];
    let beside_us = constants.round_us + cell.round_trip_us;
    let predicted_us = case(cell, constants).run(constants).rounds[0].0.us as f64;
    let measured_us = cell.figures.first_round_us.map_or(predicted_us, |spread| spread.median);
    let slower = ((measured_us - beside_us) / (predicted_us - beside_us).max(1.0)).max(0.01);
    let mut fitted = constants.slower(slower);
    let predicted = case(cell, &fitted).run(&fitted).pause.map_or(0.0, |pause| pause.downtime_s * 1e6);
    let longer_us = (cell.figures.downtime_us.median - predicted).max(-fitted.pause_us);
    fitted.pause_us += longer_us;
    Ok(Fit { constants: fitted, at, slower, longer_us })
}

/// A cell on paper.
fn case(cell: &Cell, constants: &Constants) -> Case {
    let (guest, mib) = (&cell.guest, |mib: u64| pages(mib << 20));
    let vcpus = f64::from(guest.cpus);
    let per_s = match cell.load {
        Load::Idle => 0.0,
        Load::Rate(rate) => rate as f64,
        Load::Max => cell.figures.pace.median,
    };
    let (filled, over) = (mib(guest.fill_mib), mib(guest.working_set_mib));
    let populated = if per_s > 0.0 { filled.max(over) } else { filled };
    let work = Writes { per_s, over };
    let checks = Writes { per_s: constants.checks_per_s * vcpus, over: filled };
    let writes = [work, checks].into_iter().filter(|writes| writes.per_s > 0.0 && writes.over > 0.0);
    Case {
        guest: Guest { ram: guest.memory, populated, vcpus: guest.cpus, writes: writes.collect() },
        mode: cell.mode,
        streams: cell.streams,
        max_downtime: DEFAULT_MAX_DOWNTIME,
        link: Link {
            bandwidth: cell.network.map_or(Bandwidth::UNLIMITED, |network| Bandwidth::of(network, constants)),
            round_trip: Duration::from_secs_f64(cell.round_trip_us / 1e6),
            windows: cell.network.is_none(),
        },
        hosts: Hosts::One { cores: cell.cores },
    }
}

/// Every cell beside what is predicted of it.
pub(super) fn words(cells: &Cells, fit: &Fit) -> String {
    let fitted_on = &cells.cells[fit.at];
    let mut text = format!(
        "fitted on: {}, {}, {} connections: work on pages takes {:.2} times as long as the constants say (from its round 0), \
         the fixed part of the pause {:+.2} ms (from its downtime)\n\n",
        guest(fitted_on),
        word(fitted_on.mode),
        fitted_on.streams,
        fit.slower,
        fit.longer_us / 1e3,
    );
    let head = [
        "guest",
        "mode",
        "streams",
        "total ms",
        "predicted",
        "ratio",
        "downtime ms",
        "predicted",
        "ratio",
        "rounds",
        "predicted",
        "MB",
        "predicted",
    ];
    let (mut table, mut totals, mut downtimes) = (Table::new(2, &head), Vec::new(), Vec::new());
    for (at, cell) in cells.cells.iter().enumerate() {
        let course = case(cell, &fit.constants).run(&fit.constants);
        let (total, downtime) = ratios(cell, &course);
        if at != fit.at {
            totals.push(total);
            downtimes.extend(downtime);
        }
        table.row(row(cell, &course, at == fit.at));
    }
    let _ = write!(text, "{table}\n{NOTE}\n");
    for (what, ratios) in [("total", totals), ("downtime", downtimes)] {
        let within = ratios.iter().filter(|ratio| (0.8..=1.25).contains(*ratio)).count();
        let all = ratios.len();
        if let Some(Spread { min, median, max, .. }) = Spread::of(ratios) {
            let _ = writeln!(
                text,
                "{what}, predicted by measured, where not fitted: {median:.2} ({min:.2}-{max:.2}); from 0.8 to 1.25 in {within} of {all}"
            );
        }
    }
    cells.left_out.iter().for_each(|line| text += &format!("{line}\n"));
    text
}

/// Of the total and of the downtime: predicted by measured.
fn ratios(cell: &Cell, course: &Course) -> (f64, Option<f64>) {
    let Figures { total_us, downtime_us, .. } = &cell.figures;
    let downtime = course.pause.map(|pause| pause.downtime_s * 1e6 / downtime_us.median);
    (course.total_s * 1e6 / total_us.median, downtime)
}

fn row(cell: &Cell, course: &Course, fitted: bool) -> Vec<String> {
    let Figures { total_us, downtime_us, rounds, bytes, .. } = &cell.figures;
    let (total, downtime) = ratios(cell, course);
    let ratio = |ratio: f64| format!("{ratio:.2}{}", if fitted { "*" } else { "" });
    let gave_up = || "gives up".to_owned();
    vec![
        guest(cell),
        word(cell.mode).to_owned(),
        cell.streams.to_string(),
        range(*total_us),
        ms(course.total_s * 1e6),
        ratio(total),
        range(*downtime_us),
        course.pause.map_or_else(gave_up, |pause| ms(pause.downtime_s * 1e6)),
        downtime.map_or_else(String::new, ratio),
        short(rounds.median),
        course.rounds.len().to_string(),
        format!("{:.0}", bytes.median / 1e6),
        format!("{:.0}", course.bytes / 1e6),
    ]
}

fn guest(cell: &Cell) -> String {
    let guest = &cell.guest;
    let load = match cell.load {
        Load::Rate(rate) => format!("{rate}/s"),
        load => load.to_string(),
    };
    let memory = MemorySize::from_bytes(guest.memory)
        .map_or_else(|_| guest.memory.to_string(), |size| size.to_string());
    let over = cell.network.map_or_else(String::new, |network| format!(", {}", network.describe()));
    format!("{memory}, {} vCPU, {} MiB filled, {load}{over}", guest.cpus, guest.fill_mib)
}

/// Of a spread in µs: its median and its ends, in ms.
fn range(spread: Spread) -> String {
    format!("{} ({}-{})", ms(spread.median), ms(spread.min), ms(spread.max))
}

#[cfg(test)]
mod tests {
    use super::super::measured::tests::idle;
    use super::*;

    #[test]
    fn a_host_of_another_pace_is_found_out() {
        let (truth, known) =
            (Constants { pause_us: 900.0, ..Constants::default().slower(1.7) }, Constants::default());
        let blank = idle(Mode::Precopy, 1.0, 1.0, 1.0);
        let course = case(&blank, &truth).run(&truth);
        let (round, downtime) = (course.rounds[0].0.us as f64, course.pause.unwrap().downtime_s * 1e6);
        let other = idle(Mode::Hybrid, 1e9, 1.0, 1.0);
        let cells = Cells {
            cells: vec![other, idle(Mode::Precopy, course.total_s * 1e6, round, downtime)],
            left_out: vec![],
        };
        let fit = fit(&cells, &known).unwrap();
        assert_eq!(fit.at, 1);
        assert!((fit.slower - 1.7).abs() < 1e-3 && (fit.constants.pause_us - 900.0).abs() < 1.0, "{fit:?}");
        let words = words(&cells, &fit);
        assert!(words.starts_with("fitted on: 1G, 1 vCPU, 920 MiB filled, idle, pre-copy"), "{words}");
        assert!(words.contains("1.00*") && words.contains("in 0 of 1"), "{words}");
    }

    #[test]
    fn without_an_idle_guest_nothing_can_be_fitted() {
        let cells = Cells { cells: vec![idle(Mode::Hybrid, 1.0, 1.0, 1.0)], left_out: Vec::new() };
        let error = fit(&cells, &Constants::default()).unwrap_err().to_string();
        assert!(error.contains("--modes precopy --rates 0"), "{error}");
    }
}
