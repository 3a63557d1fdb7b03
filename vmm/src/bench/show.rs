//! The record as a table for people. All times in it are medians with the smallest and the largest.

use std::fmt::Write;

use migrate::cli::words::mode as word;

use super::figures::{
    BYTES, BYTES_PER_S, DESTINATION_RSS, DOWNTIME_GUEST, DOWNTIME_HOST, ENGINE_CPU, FAULT_P50, FAULT_P99,
    FAULTS, Figure, ROUNDS, SOURCE_RSS, TOTAL, WORK_LOST,
};
use super::grid::Cell;
use super::record::{CellRecord, Record};
use super::trace;
use crate::lab::journey::Wire;
use crate::lab::stats::Spread;
use crate::lab::table::{Table, ms, or_dash};

const NOTE: &str = "\
Medians with (min-max) of the good runs. Guest downtime: the longest time the guest itself stood still during the whole\n\
migration, by its own clock. Host downtime: from the pause until the destination ran. Lost: guest work not done, in ms at\n\
its own pace. CPU: of both VMMs without their vCPU threads. RSS: peak of source / destination, guest memory included.\n\
Of raw: bytes sent by total time, as a share of what plain TCP carries by as many connections into memory never touched /\n\
touched before / never touched, beside as many busy threads as the guest has vCPUs. A destination's memory was never touched,\n\
and the guest is as busy. Over it: as a share of what plain TCP carries over that network.";

/// The whole of it.
pub(super) fn words(record: &Record, trace: bool) -> String {
    let mut text = format!("{}\n", record.setting.line());
    let mut rest = &record.cells[..];
    while let Some(first) = rest.first() {
        let place = |cell: &Cell| (cell.guest, cell.network);
        let here = place(&first.cell);
        let (same, others) = rest.split_at(rest.iter().take_while(|cell| place(&cell.cell) == here).count());
        text += &section(first, same);
        if trace {
            text.extend(same.iter().filter_map(trace::words));
        }
        rest = others;
    }
    let _ = write!(text, "\n{NOTE}\n");
    if trace {
        let _ = writeln!(text, "{}", trace::NOTE);
    }
    for problem in problems(record) {
        let _ = writeln!(text, "{problem}");
    }
    text
}

fn section(CellRecord { cell, over, .. }: &CellRecord, cells: &[CellRecord]) -> String {
    let over = over.map_or_else(String::new, |over| format!(", over {}", over.describe()));
    let mut text = format!("\n{}{over}\n", cell.guest.describe());
    let mut seen = 0;
    for raw in cells.iter().map(|cell| &cell.raw) {
        if raw.streams != seen {
            seen = raw.streams;
            let _ = writeln!(text, "raw TCP: {}", raw.line());
        }
    }
    let quiet = Spread::of(cells.iter().flat_map(CellRecord::quiet_gaps_us));
    let quiet = or_dash(quiet, range);
    let _ = writeln!(text, "without a move the guest stands still for {quiet} ms at most in a second");
    // Said where there is a host below, which has taken something.
    let stolen = Spread::of(cells.iter().flat_map(CellRecord::stolen_us)).filter(|stolen| stolen.max > 0.0);
    if let Some(stolen) = stolen {
        let _ = writeln!(text, "the host below takes {} ms of the cores' time in a move", range(stolen));
    }
    let head = [
        "mode",
        "streams",
        "good",
        "total ms",
        "guest downtime ms",
        "host downtime ms",
        "MB",
        "rounds",
        "faults",
        "p50 µs",
        "p99 µs",
        "lost ms",
        "CPU s",
        "RSS MB",
        "GB/s",
        "of raw",
    ];
    let mut table = Table::new(1, &head);
    cells.iter().for_each(|cell| table.row(row(cell)));
    let _ = write!(text, "{table}");
    text + &tls_shares(cells)
}

/// What each cell inside TLS carries, by that without it.
fn tls_shares(cells: &[CellRecord]) -> String {
    let mut text = String::new();
    for tls in cells.iter().filter(|cell| cell.cell.wire == Wire::Tls) {
        let plain = Cell { wire: Wire::Plain, ..tls.cell };
        let plain = cells.iter().find(|cell| cell.cell == plain).and_then(|cell| cell.spread(BYTES_PER_S));
        if let (Some(plain), Some(inside)) = (plain, tls.spread(BYTES_PER_S)) {
            let share = 100.0 * inside.median / plain.median;
            let _ = writeln!(
                text,
                "TLS carries {share:.0}% of plain: {} by {} connections",
                word(tls.cell.mode),
                tls.cell.streams
            );
        }
    }
    text
}

/// A mode, and whether it was inside TLS.
pub(super) fn way(cell: &Cell) -> String {
    match cell.wire {
        Wire::Plain => word(cell.mode).to_owned(),
        Wire::Tls => format!("{}, TLS", word(cell.mode)),
    }
}

fn row(cell: &CellRecord) -> Vec<String> {
    let median = |figure: Figure| cell.spread(figure).map(|spread| spread.median);
    let number = |figure, digits: usize| or_dash(median(figure), |value| format!("{value:.digits$}"));
    let megabytes = |figure| or_dash(median(figure), |bytes| format!("{:.0}", bytes / 1e6));
    vec![
        way(&cell.cell),
        cell.cell.streams.to_string(),
        format!("{}/{}", cell.good_runs(), cell.runs.len()),
        or_dash(cell.spread(TOTAL), range),
        or_dash(cell.spread(DOWNTIME_GUEST), range),
        or_dash(cell.spread(DOWNTIME_HOST), range),
        megabytes(BYTES),
        number(ROUNDS, 0),
        number(FAULTS, 0),
        number(FAULT_P50, 0),
        number(FAULT_P99, 0),
        or_dash(median(WORK_LOST), |ms| format!("{ms:.0}")),
        number(ENGINE_CPU, 2),
        format!("{}/{}", megabytes(SOURCE_RSS), megabytes(DESTINATION_RSS)),
        or_dash(median(BYTES_PER_S), |rate| format!("{:.2}", rate / 1e9)),
        or_dash(median(BYTES_PER_S), |rate| shares(rate, cell)),
    ]
}

/// Of a spread in µs: its median and its ends, in ms.
fn range(spread: Spread) -> String {
    format!("{} ({}-{})", ms(spread.median), ms(spread.min), ms(spread.max))
}

fn shares(bytes_per_s: f64, CellRecord { raw, over, .. }: &CellRecord) -> String {
    if let Some(over) = over {
        return format!("{:.0}% over it", bytes_per_s / over.bytes_per_s * 100.0);
    }
    let share = |of: Spread| bytes_per_s / of.median * 100.0;
    let [cold, warm, beside] =
        [raw.cold_bytes_per_s, raw.warm_bytes_per_s, raw.beside_bytes_per_s].map(share);
    format!("{cold:.0}/{warm:.0}/{beside:.0}%")
}

fn problems(record: &Record) -> Vec<String> {
    let mut problems = Vec::new();
    for cell in &record.cells {
        for (number, run) in cell.runs.iter().enumerate().filter(|(_, run)| !run.problems().is_empty()) {
            let (way, streams, number) = (way(&cell.cell), cell.cell.streams, number + 1);
            let said = run.problems().join("; ");
            let over = cell.cell.network.map_or_else(String::new, |it| format!(" over {}", it.describe()));
            let guest = cell.cell.guest.describe();
            problems.push(format!("FAILED: {way}, {streams} streams{over}, run {number} of {guest}: {said}"));
        }
    }
    problems.extend(
        record.endings.iter().flat_map(|ending| ending.problems.iter().map(|it| format!("BAD: {it}"))),
    );
    problems.extend(record.setting.warning());
    problems.extend(record.stopped.iter().map(|reason| format!("ended early: {reason}")));
    problems
}
