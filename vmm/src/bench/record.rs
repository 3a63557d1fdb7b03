//! All that was measured, as it goes into the document: nothing is left out, least of all what failed.

use std::collections::BTreeMap;

use serde::{Serialize, Serializer};

use super::figures::{DOWNTIME_GUEST, Figure, TOTAL, all};
use super::grid::Cell;
use super::over::OverNetwork;
use super::raw::RawTcp;
use super::show::way;
use crate::lab::LabError;
use crate::lab::journey::{Ending, Hop};
use crate::lab::setting::Setting;
use crate::lab::stats::Spread;
use crate::lab::table::{ms, or_dash};

/// Everything.
#[derive(Debug, Serialize)]
pub(super) struct Record {
    schema: &'static str,
    pub(super) setting: Setting,
    /// Why it ended early.
    pub(super) stopped: Option<String>,
    pub(super) cells: Vec<CellRecord>,
    /// What each guest found on its whole way.
    pub(super) endings: Vec<Ending>,
}

/// One cell and its runs.
#[derive(Debug)]
pub(super) struct CellRecord {
    pub(super) cell: Cell,
    /// What plain TCP did, measured right before.
    pub(super) raw: RawTcp,
    /// What it did over the network in between, if there is one.
    pub(super) over: Option<OverNetwork>,
    pub(super) runs: Vec<Run>,
}

/// One run.
#[derive(Debug, Serialize)]
pub(super) struct Run {
    /// Why it did not come to an end.
    failure: Option<String>,
    /// The longest time the guest stood still in the second before, µs: what the host's own noise is worth.
    quiet_gap_us: Option<f64>,
    /// What was measured, if it did.
    hop: Option<Hop>,
}

impl Default for Record {
    fn default() -> Self {
        Self {
            schema: "bench/1",
            setting: Setting::here(),
            stopped: None,
            cells: Vec::new(),
            endings: Vec::new(),
        }
    }
}

impl Record {
    /// Begins cells that are measured by turns.
    pub(super) fn begin(
        &mut self,
        cells: impl Iterator<Item = Cell>,
        raw: &RawTcp,
        over: Option<OverNetwork>,
    ) -> &mut [CellRecord] {
        let before = self.cells.len();
        self.cells.extend(cells.map(|cell| CellRecord { cell, raw: raw.clone(), over, runs: Vec::new() }));
        &mut self.cells[before..]
    }

    pub(super) fn is_empty(&self) -> bool {
        self.cells.iter().all(|cell| cell.runs.is_empty())
    }

    pub(super) fn is_good(&self) -> bool {
        let mut runs = self.cells.iter().flat_map(|cell| &cell.runs);
        self.stopped.is_none()
            && runs.all(Run::is_good)
            && self.endings.iter().all(|ending| ending.problems.is_empty())
    }
}

impl CellRecord {
    /// Adds a run, and says in one line what came of it.
    pub(super) fn add(&mut self, run: Run) -> String {
        let cell = format!("{} {}", way(&self.cell), self.runs.len() + 1);
        let line = match &run.hop {
            Some(hop) if run.is_good() => {
                let figure = |(_, of): Figure| or_dash(of(hop), ms);
                format!("{cell}: {} ms, downtime {} ms", figure(TOTAL), figure(DOWNTIME_GUEST))
            }
            _ => format!("{cell}: FAILED: {}", run.problems().join("; ")),
        };
        self.runs.push(run);
        line
    }

    /// The shape of a figure over all good runs.
    pub(super) fn spread(&self, figure: Figure) -> Option<Spread> {
        Spread::of(self.values(figure))
    }

    /// A figure of each good run that has it.
    pub(super) fn values(&self, (_, of): Figure) -> impl Iterator<Item = f64> {
        self.good().filter_map(of)
    }

    /// How long the guest stood still in the seconds before its moves, µs.
    pub(super) fn quiet_gaps_us(&self) -> impl Iterator<Item = f64> {
        self.runs.iter().filter_map(|run| run.quiet_gap_us)
    }

    /// CPU time that the host below has taken during each of the good moves, µs of all cores together.
    pub(super) fn stolen_us(&self) -> impl Iterator<Item = f64> {
        self.good().map(|hop| hop.usage.stolen_s * 1e6)
    }

    fn good(&self) -> impl Iterator<Item = &Hop> {
        self.runs.iter().filter(|run| run.is_good()).filter_map(|run| run.hop.as_ref())
    }

    /// Runs that were good.
    pub(super) fn good_runs(&self) -> usize {
        self.good().count()
    }
}

impl Serialize for CellRecord {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Shown<'a> {
            #[serde(flatten)]
            cell: &'a Cell,
            good_runs: usize,
            raw_tcp: &'a RawTcp,
            raw_tcp_over_network: Option<&'a OverNetwork>,
            figures: BTreeMap<&'static str, Option<Spread>>,
            runs: &'a [Run],
        }
        let figures = all().map(|figure| (figure.0, self.spread(figure))).collect();
        let Self { cell, raw: raw_tcp, over, runs } = self;
        let raw_tcp_over_network = over.as_ref();
        Shown { cell, good_runs: self.good_runs(), raw_tcp, raw_tcp_over_network, figures, runs }
            .serialize(serializer)
    }
}

impl Run {
    /// It came to an end, be it good or bad.
    pub(super) fn of(hop: Hop, quiet_gap_us: Option<f64>) -> Self {
        Self { failure: None, quiet_gap_us, hop: Some(hop) }
    }

    /// It did not.
    pub(super) fn failed(error: &LabError) -> Self {
        Self { failure: Some(error.to_string()), quiet_gap_us: None, hop: None }
    }

    fn is_good(&self) -> bool {
        self.problems().is_empty()
    }

    /// What is wrong with it.
    pub(super) fn problems(&self) -> Vec<&str> {
        let bad = self.hop.iter().flat_map(|hop| &hop.problems);
        self.failure.iter().chain(bad).map(String::as_str).collect()
    }
}

#[cfg(test)]
pub(super) mod tests {
    use migrate::options::Mode;
    use migrate::report::{Switchover, Takeover};

    use super::*;
    use crate::lab::guest::Load;
    use crate::lab::guest::tests::plan;
    use crate::lab::journey::Wire;
    use crate::lab::verdict;
    use crate::lab::watch::Usage;

    fn cell() -> Cell {
        let guest = plan(Load::Idle);
        Cell { guest, mode: Mode::Postcopy, streams: 2, wire: Wire::Plain, network: None }
    }

    /// What plain TCP may have done.
    pub(in crate::bench) fn raw() -> RawTcp {
        let still = Spread::of([1e9]).unwrap();
        RawTcp {
            streams: 2,
            bytes: 1,
            cold_bytes_per_s: still,
            warm_bytes_per_s: still,
            beside_bytes_per_s: still,
            beside_cpu_s_per_gib: still,
            beside_gap_us: still,
            beside_lost_us: still,
            round_trip_us: 15.0,
        }
    }

    /// A cell in which this came of its runs.
    pub(in crate::bench) fn cell_of(runs: Vec<Run>) -> CellRecord {
        CellRecord { cell: cell(), raw: raw(), over: None, runs }
    }

    /// A good run with this pause.
    pub(in crate::bench) fn run_of(switchover: Switchover, takeover: Takeover) -> Run {
        let mut report = verdict::tests::good();
        (report.switchover, report.takeover) = (Some(switchover), Some(takeover));
        Run::of(Hop { report, usage: Usage::default(), problems: Vec::new() }, Some(40.0))
    }

    fn run(total_us: u64, problems: Vec<String>) -> Run {
        let mut report = verdict::tests::good();
        report.total_us = total_us;
        Run::of(Hop { report, usage: Usage::default(), problems }, Some(40.0))
    }

    #[test]
    fn a_failed_run_is_kept_but_has_no_part_in_medians() {
        let mut record = Record::default();
        assert!(record.is_empty());
        let [cell] = record.begin([cell()].into_iter(), &raw(), None) else { unreachable!("one was begun") };
        assert_eq!(cell.add(run(100_000, Vec::new())), "post-copy 1: 100 ms, downtime 5.00 ms");
        assert!(cell.add(run(900_000, vec!["2 pages differ".into()])).ends_with("FAILED: 2 pages differ"));
        assert!(cell.add(Run::failed(&LabError::Interrupted)).contains("FAILED: interrupted"));
        assert_eq!((cell.spread(TOTAL).unwrap().max, cell.good_runs()), (100_000.0, 1));
        assert!(!record.is_good());
        let json = serde_json::to_value(&record).unwrap();
        assert_eq!(json["cells"][0]["runs"].as_array().unwrap().len(), 3);
        assert_eq!(json["cells"][0]["figures"]["total_us"]["median"], 100_000.0);
        assert_eq!(json["cells"][0]["guest"]["memory"], 1 << 30);
    }

    #[test]
    fn figures_have_names_of_their_own() {
        let names: std::collections::BTreeSet<_> = all().map(|figure| figure.0).collect();
        assert_eq!(names.len(), all().count());
    }
}
