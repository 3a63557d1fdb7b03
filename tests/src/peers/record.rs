//! All that was measured, as it goes into `peers.json`: nothing is left out, least of all what failed.

use std::collections::BTreeMap;
use std::process::Command;

use serde::{Serialize, Serializer};
use vmm::bench::RawTcp;
use vmm::lab::guest::GuestPlan;
use vmm::lab::setting::Setting;
use vmm::lab::slow::Network;
use vmm::lab::stats::Spread;

use super::cells::Cell;
use super::cloud_hypervisor::CloudHypervisor;
use super::error::PeersError;
use super::qemu::Qemu;
use super::run::Figures;
use super::startup::StartUp;
use super::ways::Way;

/// A figure: its name, and where it comes from.
pub type Figure = (&'static str, fn(&Figures) -> Option<f64>);

pub(super) const GAP: Figure = ("gap_ms", |run| Some(run.guest.gap_ms));
pub(super) const GAP_BEFORE: Figure = ("gap_before_ms", |run| Some(run.guest.gap_before_ms));
pub(super) const LOST: Figure = ("work_lost_ms", |run| Some(run.guest.work_lost_ms));
pub(super) const TOTAL: Figure = ("total_ms", |run| Some(run.total_ms));
pub(super) const BYTES: Figure = ("wire_bytes", |run| Some(run.wire_bytes as f64));
pub(super) const BYTES_PER_S: Figure =
    ("bytes_per_s", |run| Some(run.wire_bytes as f64 / (run.total_ms / 1e3)));
pub(super) const CPU: Figure = ("cpu_s", |run| Some(run.cost.cpu_s));
pub(super) const ENGINE_CPU: Figure = ("engine_cpu_s", |run| Some(run.cost.engine_cpu_s));
pub(super) const SOURCE_RSS: Figure =
    ("source_rss_beyond_guest", |run| run.cost.source_rss_beyond_guest.map(|bytes| bytes as f64));
pub(super) const DESTINATION_RSS: Figure =
    ("destination_rss_beyond_guest", |run| run.cost.destination_rss_beyond_guest.map(|bytes| bytes as f64));
pub(super) const WORK_DURING: Figure =
    ("work_during_share", |run| Some(run.guest.work_during_per_s / run.guest.work_before_per_s));
pub(super) const WORK_AFTER: Figure =
    ("work_after_share", |run| Some(run.guest.work_after_per_s? / run.guest.work_before_per_s));

/// Those in which ours is divided by the peers', and what the columns are called.
pub(super) const COMPARED: [(&str, Figure); 4] =
    [("gap", GAP), ("lost", LOST), ("total", TOTAL), ("CPU without vCPUs", ENGINE_CPU)];
/// Below this a peer's figure is too small to be divided by.
const LEAST: f64 = 0.05;

const ALL: [Figure; 12] = [
    GAP,
    GAP_BEFORE,
    LOST,
    TOTAL,
    BYTES,
    BYTES_PER_S,
    CPU,
    ENGINE_CPU,
    SOURCE_RSS,
    DESTINATION_RSS,
    WORK_DURING,
    WORK_AFTER,
];

/// Everything.
#[derive(Debug, Serialize)]
pub struct Record {
    schema: &'static str,
    /// The machine, and how this program was called.
    pub setting: Setting,
    /// What was measured of ours.
    pub revision: Option<String>,
    /// The peer, as it ran here.
    pub qemu: Option<Qemu>,
    /// Another, where it is installed.
    pub cloud_hypervisor: Option<CloudHypervisor>,
    /// Why it ended early.
    pub stopped: Option<String>,
    /// What was not measured, and why.
    pub skipped: Vec<String>,
    /// What it costs to start each VMM.
    pub startups: Vec<StartUp>,
    /// The cells that were measured.
    pub cells: Vec<CellRecord>,
}

/// One cell.
#[derive(Debug, Serialize)]
pub struct CellRecord {
    /// Its name.
    pub name: &'static str,
    /// The guest.
    pub guest: GuestPlan,
    /// What it was moved over, where that was not loopback as it is.
    pub network: Option<Network>,
    /// Both, for people.
    #[serde(skip)]
    pub description: String,
    /// What plain TCP did, measured right before, over loopback as it is.
    pub raw_tcp: Vec<RawTcp>,
    /// What came of each way.
    pub ways: Vec<WayRecord>,
}

/// One way to move in one cell.
#[derive(Debug)]
pub struct WayRecord {
    /// Which.
    pub way: Way,
    /// Its runs, in order.
    pub runs: Vec<Run>,
}

/// One run.
#[derive(Debug, Clone, Serialize)]
pub struct Run {
    /// Why it did not come to a good end.
    pub failure: Option<String>,
    /// What was measured, if it did.
    pub figures: Option<Figures>,
}

impl Record {
    /// An empty one, of here and now.
    #[must_use]
    pub fn here() -> Self {
        Self {
            schema: "peers/1",
            setting: Setting::here(),
            revision: revision(),
            qemu: None,
            cloud_hypervisor: None,
            stopped: None,
            skipped: Vec::new(),
            startups: Vec::new(),
            cells: Vec::new(),
        }
    }

    /// Something is not measured.
    pub(super) fn skip(&mut self, what: String) {
        eprintln!("skipped: {what}");
        self.skipped.push(what);
    }

    /// What there is; or, when that failed and does not end everything, nothing.
    pub(super) fn or_skip<T>(
        &mut self,
        what: &str,
        result: Result<T, PeersError>,
    ) -> Result<Option<T>, PeersError> {
        match result {
            Ok(it) => Ok(Some(it)),
            Err(error) if error.is_final() => Err(error),
            Err(error) => {
                self.skip(format!("{what}{error}"));
                Ok(None)
            }
        }
    }

    /// Where a cell's runs go; made when there is none yet.
    pub(super) fn place(&mut self, cell: &Cell, ways: &[Way], raw_tcp: Vec<RawTcp>) -> &mut CellRecord {
        let at = self.cells.iter().position(|it| it.name == cell.name).unwrap_or(self.cells.len());
        if at == self.cells.len() {
            let ways = ways.iter().map(|way| WayRecord { way: way.clone(), runs: Vec::new() }).collect();
            let (guest, network, description) = (cell.guest, cell.network, cell.describe());
            self.cells.push(CellRecord { name: cell.name, guest, network, description, raw_tcp, ways });
        }
        &mut self.cells[at]
    }

    /// Whether there is something to show.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.startups.is_empty()
            && self.cells.iter().flat_map(|cell| &cell.ways).all(|way| way.runs.is_empty())
    }

    /// Whether it came to its end, and every run of ours was good. That a peer's was not is a result.
    #[must_use]
    pub fn is_good(&self) -> bool {
        let mut ways = self.cells.iter().flat_map(|cell| &cell.ways);
        let good = |way: &WayRecord| !way.way.is_ours() || way.good().count() == way.runs.len();
        self.stopped.is_none() && !self.is_empty() && ways.all(good)
    }
}

impl CellRecord {
    /// Adds a run of the way with this number, and says in one line what came of it.
    pub(super) fn add(&mut self, at: usize, run: Run) -> String {
        let place = &mut self.ways[at];
        let name = format!("{} {}", place.way.name, place.runs.len() + 1);
        let line = match (&run.figures, &run.failure) {
            (Some(it), _) => {
                let (guest, total, cpu) = (&it.guest, it.total_ms, it.cost.cpu_s);
                let (gap, lost, before) = (guest.gap_ms, guest.work_lost_ms, guest.gap_before_ms);
                let others = it.cost.others_cpu_s;
                format!(
                    "{name}: gap {gap:.2} ms (before {before:.2}), lost {lost:.0} ms, total {total:.0} ms, CPU {cpu:.2} s (others {others:.2})"
                )
            }
            (None, why) => format!("{name}: FAILED: {}", why.as_deref().unwrap_or("no reason")),
        };
        place.runs.push(run);
        line
    }

    /// The ways as they are shown: ours, then the peers'. They were measured in turn.
    pub(super) fn shown(&self) -> impl Iterator<Item = &WayRecord> {
        let whose = |ours: bool| self.ways.iter().filter(move |way| way.way.is_ours() == ours);
        whose(true).chain(whose(false))
    }

    /// The best of these peers' medians of a figure, with whose it is; nothing when it is too small to compare with.
    pub(super) fn best_peer(
        &self,
        figure: Figure,
        among: impl Fn(&Way) -> bool,
    ) -> Option<(f64, &'static str)> {
        let peers = self.ways.iter().filter(|way| !way.way.is_ours() && among(&way.way));
        let medians = peers.filter_map(|way| Some((way.spread(figure)?.median, way.way.name)));
        medians.min_by(|(one, _), (other, _)| one.total_cmp(other)).filter(|(best, _)| *best >= LEAST)
    }
}

impl WayRecord {
    /// The runs that were good.
    pub(super) fn good(&self) -> impl Iterator<Item = &Figures> {
        self.runs.iter().filter_map(|run| run.figures.as_ref())
    }

    /// Why the others were not.
    pub(super) fn failures(&self) -> impl Iterator<Item = &str> {
        self.runs.iter().filter_map(|run| run.failure.as_deref())
    }

    /// The shape of a figure over those.
    pub(super) fn spread(&self, (_, of): Figure) -> Option<Spread> {
        Spread::of(self.good().filter_map(of))
    }
}

impl Serialize for WayRecord {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Shown<'a> {
            #[serde(flatten)]
            way: &'a Way,
            good_runs: usize,
            figures: BTreeMap<&'static str, Option<Spread>>,
            runs: &'a [Run],
        }
        let figures = ALL.iter().map(|figure| (figure.0, self.spread(*figure))).collect();
        Shown { way: &self.way, good_runs: self.good().count(), figures, runs: &self.runs }
            .serialize(serializer)
    }
}

impl Run {
    /// A run, be it good or bad; what ends everything comes back.
    pub(super) fn of(result: Result<Figures, PeersError>) -> Result<Self, PeersError> {
        match result {
            Ok(figures) => Ok(Self { failure: None, figures: Some(figures) }),
            Err(error) if error.is_final() => Err(error),
            Err(error) => Ok(Self { failure: Some(error.to_string()), figures: None }),
        }
    }
}

/// What this was built from, as git says: with `-dirty` when it was changed since.
fn revision() -> Option<String> {
    let here = ["-C", env!("CARGO_MANIFEST_DIR"), "describe", "--always", "--dirty", "--abbrev=12"];
    let output = Command::new("git").args(here).output().ok().filter(|output| output.status.success())?;
    Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::peers::ruler::GuestFigures;
    use crate::peers::usage::Cost;
    use crate::peers::{cells, ways};

    pub(in crate::peers) fn figures(gap_ms: f64) -> Figures {
        let guest = GuestFigures {
            gap_ms,
            gap_before_ms: 0.1,
            work_lost_ms: 2.0 * gap_ms,
            work_before_per_s: 1000.0,
            work_during_per_s: 900.0,
            work_after_per_s: Some(1000.0),
        };
        let cost = Cost {
            cpu_s: 1.0,
            engine_cpu_s: 0.5,
            others_cpu_s: 0.0,
            source_rss_beyond_guest: Some(9_000_000),
            destination_rss_beyond_guest: None,
        };
        Figures {
            guest,
            total_ms: 500.0,
            reported_total_ms: Some(490.0),
            reported_downtime_ms: None,
            wire_bytes: 1 << 30,
            cost,
        }
    }

    /// A cell where ours had gaps of 2 and 4 ms, QEMU's first of 30, and all else of QEMU failed.
    pub(in crate::peers) fn sample() -> Record {
        let mut record = Record::here();
        let still = Spread::of([2e9]).unwrap();
        let raw = |streams| RawTcp {
            streams,
            bytes: 1,
            cold_bytes_per_s: still,
            warm_bytes_per_s: still,
            beside_bytes_per_s: still,
            beside_cpu_s_per_gib: still,
            beside_gap_us: still,
            beside_lost_us: still,
            round_trip_us: 15.0,
        };
        let ways = ways::few();
        let cell = record.place(&cells::few()[0], &ways, [1, 2, 4].map(raw).into());
        let mut peers = 0;
        for (at, way) in ways.iter().enumerate() {
            peers += usize::from(!way.is_ours());
            let results = match (way.is_ours(), peers) {
                (true, _) => [Ok(figures(2.0)), Ok(figures(4.0))],
                (false, 1) => [Ok(figures(30.0)), Err(PeersError::Failed("lost".to_owned()))],
                (false, _) => [(); 2].map(|()| Err(PeersError::Failed("never <ended>".to_owned()))),
            };
            results.into_iter().for_each(|result| drop(cell.add(at, Run::of(result).unwrap())));
        }
        record
    }

    #[test]
    fn what_failed_is_kept_without_a_part_in_medians() {
        let record = sample();
        let cell = &record.cells[0];
        let (best, whose) = cell.best_peer(GAP, |_| true).unwrap();
        assert_eq!(best, 30.0);
        assert!(whose.starts_with("QEMU") && record.is_good());
        let json = serde_json::to_value(&record).unwrap();
        let ways = json["cells"][0]["ways"].as_array().unwrap();
        assert_eq!(ways.iter().map(|way| way["runs"].as_array().unwrap().len()).sum::<usize>(), 14);
        let ours = ways.iter().find(|way| way["name"] == "vmm pre-copy").unwrap();
        assert_eq!(ours["figures"]["gap_ms"]["median"], 3.0);
        assert_eq!((&ours["vmm"], &ours["runs"][0]["figures"]["cpu_s"]), (&"vmm".into(), &1.0.into()));
    }

    #[test]
    fn a_run_of_ours_that_fails_is_not_good() {
        let mut record = sample();
        let ours = record.cells[0].ways.iter().position(|way| way.way.is_ours()).unwrap();
        record.cells[0].add(ours, Run { failure: Some("kept".to_owned()), figures: None });
        assert!(!record.is_good());
    }
}
