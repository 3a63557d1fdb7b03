//! What was measured here: the cells of documents that `vmm bench --json` has written, as far as a model can be held
//! against them.

use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

use migrate::options::Mode;
use migrate::report::Report;
use serde::Deserialize;

use crate::lab::LabError;
use crate::lab::guest::Load;
use crate::lab::stats::Spread;

/// The schema that is read.
const SCHEMA: &str = "bench/1";

/// One cell: what was asked for, and what came of its good runs. Times in µs.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Cell {
    pub(super) guest: GuestPlan,
    pub(super) load: Load,
    pub(super) mode: Mode,
    pub(super) streams: u32,
    /// Cores of the host.
    pub(super) cores: u32,
    /// Of plain TCP.
    pub(super) round_trip_us: f64,
    pub(super) figures: Figures,
}

/// What was measured of one cell.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Figures {
    pub(super) total_us: Spread,
    /// By the guest's own clock.
    pub(super) downtime_us: Spread,
    pub(super) rounds: Spread,
    pub(super) bytes: Spread,
    /// Round 0; none where there are no rounds.
    pub(super) first_round_us: Option<Spread>,
    /// Units of work a second before the move.
    pub(super) pace: Spread,
}

/// All cells that say something.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Cells {
    pub(super) cells: Vec<Cell>,
    /// Those that do not, each in a line.
    pub(super) left_out: Vec<String>,
}

/// A guest as the document has it.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub(super) struct GuestPlan {
    /// Bytes.
    pub(super) memory: u64,
    pub(super) cpus: u32,
    pub(super) fill_mib: u64,
    pub(super) working_set_mib: u64,
    content: String,
    load: String,
}

#[derive(Deserialize)]
struct Document {
    schema: String,
    setting: Setting,
    cells: Vec<CellRecord>,
}

#[derive(Deserialize)]
struct Setting {
    cores: u32,
}

#[derive(Deserialize)]
struct CellRecord {
    guest: GuestPlan,
    mode: Mode,
    streams: u32,
    wire: String,
    raw_tcp: RawTcp,
    runs: Vec<Run>,
}

#[derive(Deserialize)]
struct RawTcp {
    round_trip_us: f64,
}

#[derive(Deserialize)]
struct Run {
    hop: Option<Hop>,
}

#[derive(Deserialize)]
struct Hop {
    report: Report,
    problems: Vec<String>,
}

/// Reads documents, in this order.
///
/// # Errors
/// When one cannot be read, or is none of `vmm bench`.
pub(super) fn read(paths: &[PathBuf]) -> Result<Cells, LabError> {
    let mut all = Cells::default();
    for path in paths {
        let document = document(path)?;
        for record in document.cells {
            let name =
                format!("{} of {} by {} connections", record.guest.load, path.display(), record.streams);
            match cell(record, document.setting.cores) {
                Ok(cell) => all.cells.push(cell),
                Err(why) => all.left_out.push(format!("left out: {name}: {why}")),
            }
        }
    }
    Ok(all)
}

fn document(path: &Path) -> Result<Document, LabError> {
    let wrong = |why: String| {
        LabError::Arguments(format!("{} is no document of vmm bench --json: {why}", path.display()))
    };
    let file = File::open(path).map_err(|error| wrong(error.to_string()))?;
    let read: Document =
        serde_json::from_reader(BufReader::new(file)).map_err(|error| wrong(error.to_string()))?;
    if read.schema == SCHEMA {
        Ok(read)
    } else {
        Err(wrong(format!("its schema is \"{}\", not {SCHEMA}", read.schema)))
    }
}

fn cell(record: CellRecord, cores: u32) -> Result<Cell, String> {
    let CellRecord { guest, mode, streams, wire, raw_tcp, runs } = record;
    if wire != "plain" {
        return Err("it was inside TLS, which is not modelled".to_owned());
    }
    if guest.content == "zero" {
        return Err("its pages are zeros, which are not modelled".to_owned());
    }
    let load = guest.load.parse()?;
    let good: Vec<_> =
        runs.into_iter().filter_map(|run| run.hop).filter(|hop| hop.problems.is_empty()).collect();
    let reports = || good.iter().map(|hop| &hop.report);
    let spread = |of: fn(&Report) -> Option<f64>| Spread::of(reports().filter_map(of));
    let none = || "no run was good".to_owned();
    let figures = Figures {
        total_us: spread(|report| Some(report.total_us as f64)).ok_or_else(none)?,
        downtime_us: spread(|report| Some(report.guest_measured?.downtime_us)).ok_or_else(none)?,
        rounds: spread(|report| Some(report.rounds.len() as f64)).ok_or_else(none)?,
        bytes: spread(|report| Some(report.traffic.bytes as f64)).ok_or_else(none)?,
        first_round_us: spread(|report| Some(report.rounds.first()?.us as f64)),
        pace: spread(|report| Some(report.guest_measured?.work_before_per_s)).ok_or_else(none)?,
    };
    Ok(Cell { guest, load, mode, streams, cores, round_trip_us: raw_tcp.round_trip_us, figures })
}
