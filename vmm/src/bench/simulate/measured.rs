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
use crate::lab::slow::Network;
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
    /// Between the hosts, if it was more than loopback.
    pub(super) network: Option<Network>,
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
    #[serde(default)]
    network: Option<Network>,
    raw_tcp: RawTcp,
    #[serde(default)]
    raw_tcp_over_network: Option<RawTcp>,
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
    let CellRecord { guest, mode, streams, wire, network, raw_tcp, raw_tcp_over_network, runs } = record;
    if wire != "plain" {
        return Err("it was inside TLS, which is not modelled".to_owned());
    }
    if guest.content == "zero" {
        return Err("its pages are zeros, which are not modelled".to_owned());
    }
    if guest.content == "text" && network.is_some() {
        return Err("its pages may have been packed, which is not modelled".to_owned());
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
    let round_trip_us = raw_tcp_over_network.unwrap_or(raw_tcp).round_trip_us;
    Ok(Cell { guest, load, mode, streams, cores, round_trip_us, network, figures })
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::bench::grid::Cell as Asked;
    use crate::bench::over::OverNetwork;
    use crate::bench::record::tests::raw;
    use crate::bench::record::{Record, Run};
    use crate::lab::guest::tests::plan;
    use crate::lab::journey::{Hop, Wire};
    use crate::lab::verdict;
    use crate::lab::watch::Usage;

    /// A cell of an idle guest of 1 GiB whose rounds took so long.
    pub(in super::super) fn idle(mode: Mode, total_us: f64, first_round_us: f64, downtime_us: f64) -> Cell {
        let one = |value| Spread::of([value]).unwrap();
        let guest = GuestPlan {
            memory: 1 << 30,
            cpus: 1,
            fill_mib: 920,
            working_set_mib: 512,
            content: "random".to_owned(),
            load: "idle".to_owned(),
        };
        let figures = Figures {
            total_us: one(total_us),
            downtime_us: one(downtime_us),
            rounds: one(1.0),
            bytes: one(1e9),
            first_round_us: Some(one(first_round_us)),
            pace: one(1e8),
        };
        Cell {
            guest,
            load: Load::Idle,
            mode,
            streams: 1,
            cores: 2,
            round_trip_us: 12.0,
            network: None,
            figures,
        }
    }

    #[test]
    fn what_bench_writes_is_read() {
        let mut record = Record::default();
        let made = Network { bytes_per_s: 125_000_000, round_trip_us: 10_000 };
        for wire in [Wire::Plain, Wire::Tls] {
            let guest = plan(Load::Rate(10_000));
            let cell = Asked { guest, mode: Mode::Postcopy, streams: 2, wire, network: Some(made) };
            let over = OverNetwork { network: made, bytes_per_s: 1e8, round_trip_us: 10_400.0 };
            let [cell] = record.begin([cell].into_iter(), &raw(), Some(over)) else {
                unreachable!("one was begun")
            };
            for problem in [Vec::new(), vec!["lost".to_owned()]] {
                cell.add(Run::of(
                    Hop { report: verdict::tests::good(), usage: Usage::default(), problems: problem },
                    None,
                ));
            }
        }
        let file = tempfile::NamedTempFile::new().unwrap();
        serde_json::to_writer(&file, &record).unwrap();
        let cells = read(&[file.path().to_owned()]).unwrap();
        let [cell] = &cells.cells[..] else { panic!("{cells:?}") };
        assert_eq!((cell.network, cell.round_trip_us), (Some(made), 10_400.0));
        assert_eq!(
            (cell.load, cell.mode, cell.streams, cell.guest.memory),
            (Load::Rate(10_000), Mode::Postcopy, 2, 1 << 30)
        );
        assert_eq!(
            (cell.figures.total_us.runs, cell.figures.total_us.median),
            (1, 400_000.0),
            "good runs only"
        );
        assert!(
            cells.left_out[0].ends_with("it was inside TLS, which is not modelled"),
            "{:?}",
            cells.left_out
        );
    }

    #[test]
    fn another_document_is_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "{}").unwrap();
        let error = read(&[file.path().to_owned()]).unwrap_err().to_string();
        assert!(error.contains("is no document of vmm bench --json: missing field"), "{error}");
    }
}
