//! What the demo has found so far, and how it is told.

use std::fmt::Write;

use migrate::cli::words::mode as word;
use migrate::options::Mode;
use migrate::report::Report;
use serde::Serialize;

use crate::lab::guest::GuestPlan;
use crate::lab::journey::{Ending, Hop};
use crate::lab::setting::Setting;
use crate::lab::stats::Spread;
use crate::lab::table::{Table, ms, or_dash};

const NOTE: &str = "\
Medians of the good moves without comparison. Guest downtime: the longest time the guest itself stood still during the whole\n\
migration, faults of post-copy included, by its own clock. Host downtime: from the pause until the destination ran.\n\
Compared: pages of RAM compared on both sides in a second move, where the comparison can be part of the pause.";

/// What a move is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Purpose {
    /// How long things take.
    Figures,
    /// Whether memory is the same on both sides; takes longer.
    Comparison,
}

/// One move.
#[derive(Debug, Serialize)]
pub(super) struct Entry {
    round: u32,
    purpose: Purpose,
    #[serde(flatten)]
    hop: Hop,
}

/// All moves.
#[derive(Debug, Serialize)]
pub(super) struct Tally {
    setting: Setting,
    guest: GuestPlan,
    rounds: u32,
    /// Why it ended early.
    stopped: Option<String>,
    ending: Option<Ending>,
    moves: Vec<Entry>,
}

impl Tally {
    pub(super) fn new(guest: GuestPlan, rounds: u32) -> Self {
        Self { setting: Setting::here(), guest, rounds, stopped: None, ending: None, moves: Vec::new() }
    }

    pub(super) fn add(&mut self, round: u32, purpose: Purpose, hop: Hop) -> &Entry {
        self.moves.push(Entry { round, purpose, hop });
        self.moves.last().expect("was just put there")
    }

    /// The guest came to the end of its way.
    pub(super) fn end(&mut self, ending: Ending) {
        self.ending = Some(ending);
    }

    /// It did not, if there is a reason.
    pub(super) fn stop(&mut self, reason: Option<String>) {
        self.stopped = reason;
    }

    pub(super) fn warning(&self) -> Option<String> {
        self.setting.warning()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.moves.is_empty()
    }

    pub(super) fn is_good(&self) -> bool {
        let ended_well = self.ending.as_ref().is_some_and(|ending| ending.problems.is_empty());
        ended_well && self.moves.iter().all(Entry::is_good)
    }

    /// Where a soak test is.
    pub(super) fn summary(&self, round: u32) -> String {
        let bad = self.moves.iter().filter(|entry| !entry.is_good()).count();
        let medians = self.modes().into_iter().map(|mode| {
            let downtime = or_dash(self.downtime(mode), |spread| {
                format!("{} (max {})", ms(spread.median), ms(spread.max))
            });
            format!("{} {downtime}", word(mode))
        });
        let medians = medians.collect::<Vec<_>>().join(", ");
        format!(
            "round {round} of {}: {} moves, {bad} bad; downtime ms: {medians}",
            self.rounds,
            self.moves.len()
        )
    }

    /// For people.
    pub(super) fn words(&self) -> String {
        let mut text = format!("\n{}\n{NOTE}\n", self.table());
        if self.rounds > 1 {
            let _ = write!(text, "\nDowntime as the guest measured it, ms:\n{}", self.downtimes());
        }
        let _ = write!(text, "\n{}\n", self.verdict());
        text
    }

    /// For programs.
    pub(super) fn json(&self) -> String {
        let downtime = |mode| serde_json::json!({ "mode": mode, "us": self.downtime(mode) });
        let document = serde_json::json!({
            "schema": "demo/1",
            "good": self.is_good(),
            "downtimes": self.modes().into_iter().map(downtime).collect::<Vec<_>>(),
            "demo": self,
        });
        format!("{document:#}")
    }

    fn table(&self) -> Table {
        let head = [
            "mode",
            "total ms",
            "guest downtime ms",
            "host downtime ms",
            "pages sent",
            "faults",
            "fault p50 µs",
            "compared",
            "differ",
            "verdict",
        ];
        let mut table = Table::new(1, &head);
        for mode in self.modes() {
            let whole = |value: f64| format!("{value:.0}");
            table.row(vec![
                word(mode).to_owned(),
                or_dash(self.figure(mode, |r| Some(r.total_us as f64)), ms),
                or_dash(self.figure(mode, |r| Some(r.guest_measured?.downtime_us)), ms),
                or_dash(self.figure(mode, |r| Some(r.switchover?.downtime_us as f64)), ms),
                or_dash(self.figure(mode, |r| Some(r.traffic.pages as f64)), whole),
                or_dash(self.figure(mode, |r| Some(r.postcopy?.faults as f64)), whole),
                or_dash(self.figure(mode, |r| Some(r.postcopy?.fault_p50_us as f64)), whole),
                self.compared(mode, |compared| compared.pages).to_string(),
                self.compared(mode, |compared| compared.mismatched).to_string(),
                if self.of(mode).all(Entry::is_good) { "good" } else { "BAD" }.to_owned(),
            ]);
        }
        table
    }

    fn downtimes(&self) -> Table {
        let mut table = Table::new(1, &["mode", "moves", "min", "median", "p99", "max"]);
        for mode in self.modes() {
            let Some(spread) = self.downtime(mode) else { continue };
            let figures = [spread.min, spread.median, spread.p99, spread.max].map(ms);
            table.row([word(mode).to_owned(), spread.runs.to_string()].into_iter().chain(figures).collect());
        }
        table
    }

    fn verdict(&self) -> String {
        let bad: Vec<String> = self.moves.iter().filter(|entry| !entry.is_good()).map(Entry::line).collect();
        let found = self.ending.iter().flat_map(|ending| ending.problems.iter().cloned());
        let stopped = self.stopped.iter().map(|reason| format!("ended early: {reason}"));
        let problems: Vec<String> = bad.into_iter().chain(found).chain(stopped).collect();
        match &self.ending {
            Some(ending) if problems.is_empty() => format!(
                "Good: {} moves; the guest's oracle found nothing wrong, and its console has all {} lines in order.",
                self.moves.len(),
                ending.console_lines
            ),
            _ => format!("BAD, after {} moves:\n  {}", self.moves.len(), problems.join("\n  ")),
        }
    }

    /// Modes in the order they were first used in.
    fn modes(&self) -> Vec<Mode> {
        let mut modes = Vec::new();
        for entry in &self.moves {
            if !modes.contains(&entry.hop.report.mode) {
                modes.push(entry.hop.report.mode);
            }
        }
        modes
    }

    fn of(&self, mode: Mode) -> impl Iterator<Item = &Entry> {
        self.moves.iter().filter(move |entry| entry.hop.report.mode == mode)
    }

    fn figures(&self, mode: Mode, figure: impl Fn(&Report) -> Option<f64>) -> Option<Spread> {
        let counts = |entry: &&Entry| entry.purpose == Purpose::Figures && entry.is_good();
        Spread::of(self.of(mode).filter(counts).filter_map(|entry| figure(&entry.hop.report)))
    }

    fn figure(&self, mode: Mode, figure: impl Fn(&Report) -> Option<f64>) -> Option<f64> {
        self.figures(mode, figure).map(|spread| spread.median)
    }

    fn downtime(&self, mode: Mode) -> Option<Spread> {
        self.figures(mode, |report| Some(report.guest_measured?.downtime_us))
    }

    fn compared(&self, mode: Mode, count: impl Fn(&migrate::report::Verification) -> u64) -> u64 {
        self.of(mode).filter_map(|entry| entry.hop.report.verification.as_ref()).map(count).sum()
    }
}

impl Entry {
    pub(super) fn is_good(&self) -> bool {
        self.hop.problems.is_empty()
    }

    /// In one line.
    pub(super) fn line(&self) -> String {
        let report = &self.hop.report;
        let head = format!("{:<13} to {}", word(report.mode), report.destination);
        if !self.is_good() {
            return format!("{head}: BAD (round {}): {}", self.round, self.hop.problems.join("; "));
        }
        let figures = format!(
            "{} ms, the guest stood still for {} ms",
            ms(report.total_us as f64),
            or_dash(report.guest_measured, |measured| ms(measured.downtime_us))
        );
        let compared = report.verification.as_ref();
        let compared = compared.map(|compared| format!("; {} pages compared, none differs", compared.pages));
        format!("{head}: {figures}{}", compared.unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::guest::{Content, Load};
    use crate::lab::verdict;
    use crate::lab::watch::Usage;

    fn tally(rounds: u32) -> Tally {
        let guest = GuestPlan {
            memory: "512M".parse().unwrap(),
            cpus: "1".parse().unwrap(),
            fill_mib: 256,
            content: Content::Random,
            working_set_mib: 64,
            load: Load::Rate(5000),
        };
        Tally::new(guest, rounds)
    }

    fn hop(downtime_us: f64, problems: &[&str]) -> Hop {
        let mut report = verdict::tests::good();
        report.guest_measured.as_mut().unwrap().downtime_us = downtime_us;
        Hop { report, usage: Usage::default(), problems: problems.iter().map(ToString::to_string).collect() }
    }

    fn sound() -> Ending {
        Ending { console_lines: 9, problems: Vec::new() }
    }

    #[test]
    fn comparisons_do_not_spoil_the_figures() {
        let mut tally = tally(2);
        for (round, downtime_us) in [(1, 3000.0), (2, 5000.0)] {
            let mut plain = hop(downtime_us, &[]);
            plain.report.verification = None;
            tally.add(round, Purpose::Figures, plain);
            tally.add(round, Purpose::Comparison, hop(90_000.0, &[]));
        }
        tally.end(sound());
        assert!(tally.is_good());
        assert_eq!(tally.downtime(Mode::Postcopy).unwrap().max, 5000.0);
        let words = tally.words();
        let row: Vec<&str> = words.lines().nth(2).unwrap().split_whitespace().collect();
        assert_eq!(row[..3], ["post-copy", "400", "4.00"]);
        assert_eq!(row[row.len() - 3..], ["18", "0", "good"]);
        assert!(words.ends_with("Good: 4 moves; the guest's oracle found nothing wrong, and its console has all 9 lines in order.\n"));
        assert_eq!(tally.summary(2), "round 2 of 2: 4 moves, 0 bad; downtime ms: post-copy 4.00 (max 5.00)");
    }

    #[test]
    fn one_bad_move_is_enough() {
        let mut tally = tally(1);
        tally.add(1, Purpose::Figures, hop(1000.0, &["2 pages differ"]));
        tally.end(sound());
        assert!(!tally.is_good());
        assert!(
            tally.words().contains(
                "BAD, after 1 moves:\n  post-copy     to 127.0.0.1:1: BAD (round 1): 2 pages differ"
            )
        );
        let json: serde_json::Value = serde_json::from_str(&tally.json()).unwrap();
        assert_eq!((&json["good"], &json["demo"]["moves"][0]["purpose"]), (&false.into(), &"figures".into()));
    }

    #[test]
    fn a_guest_that_did_not_get_to_the_end_is_not_good() {
        let mut tally = tally(1);
        tally.add(1, Purpose::Figures, hop(1000.0, &[]));
        tally.stop(Some("interrupted".to_owned()));
        assert!(!tally.is_good());
        assert!(tally.words().contains("ended early: interrupted"));
    }
}
