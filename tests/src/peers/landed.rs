//! Ratios of ours to the best peer, beside those that were landed last: what CI looks at. No time is compared with a time
//! that another machine took.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

use serde::{Deserialize, Serialize};
use vmm::lab::stats::Spread;
use vmm::lab::table::{or_dash, short};

use super::error::PeersError;
use super::record::{COMPARED, CellRecord, Figure, LOST, Record, WayRecord};
use super::run::Figures;
use super::{cells, ways};

/// So many times what was landed is badly wrong, if it is worse than the peer as well. Of two or three runs on a machine
/// that others use a median may be three times another day's, gaps above all; what is wrong is wrong by powers of ten: a
/// stall of a network's timers, memory sent twice, a pause that waits for something.
const BADLY: f64 = 5.0;

/// A run is evidence when all else on the host took no more of its CPUs meanwhile: ours gives way to everybody.
const QUIET_CPUS: f64 = 0.25;

/// What was measured when it was last thought worth keeping.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Landed {
    schema: String,
    revision: Option<String>,
    date: String,
    host: String,
    ratios: Vec<Row>,
}

/// One way of ours in one cell.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Row {
    cell: String,
    way: String,
    /// By the figure's name.
    ratios: BTreeMap<String, f64>,
}

const SCHEMA: &str = "peers-landed/1";

impl Landed {
    /// What is in this file.
    ///
    /// # Errors
    /// When there is none, or it is no such file.
    pub fn read(path: &Path) -> Result<Self, PeersError> {
        let what = || format!("read {}", path.display());
        let text = std::fs::read(path).map_err(PeersError::host(what()))?;
        let landed: Self =
            serde_json::from_slice(&text).map_err(|error| PeersError::host(what())(error.into()))?;
        if landed.schema != SCHEMA {
            let (path, schema) = (path.display(), landed.schema);
            return Err(PeersError::Failed(format!("{path} is {schema}, not {SCHEMA}: land anew")));
        }
        Ok(landed)
    }

    /// Those of a record, whatever else is in it.
    #[must_use]
    pub fn of(record: &Record) -> Self {
        let row = |(cell, way): (&CellRecord, &WayRecord)| {
            let ratios = COMPARED.iter().filter_map(|(name, figure)| {
                let ratio = ratio(cell, way, *figure)?.median;
                Some(((*name).to_owned(), (ratio * 1e3).round() / 1e3))
            });
            Row { cell: cell.name.to_owned(), way: way.way.name.to_owned(), ratios: ratios.collect() }
        };
        Self {
            schema: SCHEMA.to_owned(),
            revision: record.revision.clone(),
            date: record.setting.date.clone(),
            host: record.setting.line(),
            ratios: compared(record).map(row).collect(),
        }
    }

    /// Writes them.
    ///
    /// # Errors
    /// When there are none, or the file cannot be written.
    pub fn write(&self, path: &Path) -> Result<(), PeersError> {
        if self.ratios.iter().all(|row| row.ratios.is_empty()) {
            return Err(PeersError::Failed(
                "nothing to land: none of the cells and ways of --check was measured".to_owned(),
            ));
        }
        let text = serde_json::to_string_pretty(self).expect("ratios are JSON") + "\n";
        std::fs::write(path, text).map_err(PeersError::host(format!("write {}", path.display())))
    }

    fn ratio(&self, cell: &str, way: &str, figure: &str) -> Option<f64> {
        let row = self.ratios.iter().find(|row| row.cell == cell && row.way == way)?;
        row.ratios.get(figure).copied()
    }

    fn words(&self) -> String {
        if self.ratios.is_empty() {
            return "nothing was yet (--land)".to_owned();
        }
        let revision = self.revision.as_deref().unwrap_or("unknown");
        format!("revision {revision}, {}, {}", self.date, self.host)
    }
}

/// What a check comes to.
#[derive(Debug)]
pub struct Verdict {
    /// The ratios, with those landed.
    pub table: String,
    /// What is badly wrong.
    pub wrong: Vec<String>,
    /// Ratios for which there was evidence, and one landed to compare with.
    pub judged: usize,
}

/// Compares a record with what was landed.
#[must_use]
pub fn check(record: &Record, landed: &Landed) -> Verdict {
    let mut table = format!(
        "Ours ÷ the best peer (below 1: ours is better), and as last landed: {}\n\n| cell | ours | good, quiet |",
        landed.words()
    );
    COMPARED.iter().for_each(|(name, _)| table += &format!(" {name} |"));
    table += "\n|---|---|---|---|---|---|---|\n";
    let (mut wrong, mut judged) = (Vec::new(), 0);
    for (cell, way) in compared(record) {
        let name = format!("{}, {}", cell.name, way.way.name);
        let (good, runs) = (way.good().count(), way.runs.len());
        let quiet = way.good().filter(|run| is_quiet(run)).count();
        let _ = write!(table, "| {} | {} | {good}/{runs}, {quiet} |", cell.name, way.way.name);
        wrong.extend(
            way.failures().next().map(|why| format!("{name}: {} of {runs} failed: {why}", runs - good)),
        );
        for (figure, of) in COMPARED {
            let now = ratio(cell, way, of);
            let then = landed.ratio(cell.name, way.way.name, figure);
            let _ =
                write!(table, " {} ({}) |", or_dash(now.map(|now| now.median), short), or_dash(then, short));
            let best = now.and_then(|now| now.best).filter(|_| is_judged(of));
            let Some((best, then)) = best.zip(then) else { continue };
            judged += 1;
            if best > 1.0 && best > BADLY * then {
                wrong.push(format!(
                    "{name}: {figure} is {best:.2} times the best peer's even in its best run, landed was {then:.2}"
                ));
            }
        }
        table.push('\n');
    }
    Verdict { table, wrong, judged }
}

/// Lost work is what is left of two large numbers: of two runs it may be anything, and so may a ratio of two such.
fn is_judged(figure: Figure) -> bool {
    figure.0 != LOST.0
}

#[derive(Debug, Clone, Copy)]
struct Ratio {
    median: f64,
    /// Of our best run, of those that are evidence, if there are two.
    best: Option<f64>,
}

/// By the best of those peers' ways that a check measures, whatever else was.
fn ratio(cell: &CellRecord, way: &WayRecord, figure: Figure) -> Option<Ratio> {
    let names: Vec<_> = ways::checked().iter().map(|way| way.name).collect();
    let (peer, _) = cell.best_peer(figure, |peer| names.contains(&peer.name))?;
    let ours = way.spread(figure)?;
    let quiet = Spread::of(way.good().filter(|run| is_quiet(run)).filter_map(figure.1));
    let best = quiet.filter(|quiet| quiet.runs > 1).map(|quiet| quiet.min / peer);
    Some(Ratio { median: ours.median / peer, best })
}

fn is_quiet(run: &Figures) -> bool {
    run.cost.others_cpu_s < QUIET_CPUS * run.total_ms / 1e3
}

/// Our ways that a check measures, as far as they are in the record.
fn compared(record: &Record) -> impl Iterator<Item = (&CellRecord, &WayRecord)> {
    let (cells, ways) = (cells::few(), ways::checked());
    let cells = record.cells.iter().filter(move |it| cells.iter().any(|cell| cell.name == it.name));
    let ours = cells.flat_map(|cell| cell.ways.iter().map(move |way| (cell, way)));
    ours.filter(move |(_, it)| it.way.is_ours() && ways.contains(&it.way))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peers::record::Run;
    use crate::peers::record::tests::{figures, sample};

    fn post_copy(record: &mut Record) -> &mut WayRecord {
        record.cells[0].ways.iter_mut().find(|way| way.way.name == "vmm post-copy").unwrap()
    }

    #[test]
    fn what_is_landed_is_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("landed.json");
        let landed = Landed::of(&sample());
        assert_eq!(landed.ratio("1G-256M-idle", "vmm pre-copy", "gap"), None);
        assert_eq!(landed.ratio("1G-10k", "vmm pre-copy", "gap"), Some(0.1));
        landed.write(&path).unwrap();
        assert_eq!(Landed::read(&path).unwrap(), landed);
        std::fs::write(&path, "{}").unwrap();
        assert!(Landed::read(&path).is_err());
        assert!(Landed::of(&Record::here()).write(&path).is_err());
    }

    #[test]
    fn only_what_is_far_worse_than_landed_and_than_the_peer_is_wrong() {
        let landed = Landed::of(&sample());
        let good = check(&sample(), &landed);
        assert!(good.wrong.is_empty(), "{:?}", good.wrong);
        assert_eq!(good.judged, 9);
        assert!(good.table.contains("| 2/2, 2 | 0.10 (0.10) |"), "{}", good.table);

        // The peer's gap is 30.
        let wrong = |gaps: &[f64]| {
            let mut record = sample();
            let runs = gaps.iter().map(|gap| Run { failure: None, figures: Some(figures(*gap)) });
            post_copy(&mut record).runs = runs.collect();
            check(&record, &landed).wrong
        };
        assert!(wrong(&[25.0, 29.0]).is_empty(), "worse than landed, but better than the peer");
        assert!(wrong(&[31.0, 90.0, 2.0]).is_empty(), "one run was good");
        assert!(wrong(&[90.0]).is_empty(), "a single run");
        let mut disturbed = sample();
        let mut run = figures(90.0);
        run.cost.others_cpu_s = 0.2;
        post_copy(&mut disturbed).runs = vec![Run { failure: None, figures: Some(run) }; 2];
        let verdict = check(&disturbed, &landed);
        assert!(verdict.wrong.is_empty() && verdict.judged == 6, "0.2 of 0.5 s are others'");
        // What is lost is twice the gap for all of them, and is not judged.
        let gap = wrong(&[31.0, 90.0]);
        assert!(gap.len() == 1 && gap[0].contains("gap is 1.03 times"), "{gap:?}");
    }

    #[test]
    fn a_move_of_ours_that_failed_is_wrong() {
        let mut record = sample();
        post_copy(&mut record).runs.push(Run { failure: Some("kept".to_owned()), figures: None });
        let wrong = check(&record, &Landed::of(&sample())).wrong;
        assert_eq!(wrong.len(), 1);
        assert!(wrong[0].ends_with("1 of 3 failed: kept"), "{wrong:?}");
    }
}
