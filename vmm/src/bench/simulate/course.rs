//! A migration on paper: the engine's own policy decides, after rounds that take as long as the constants say.
//!
//! The order of things is that of the engine's score (`migrate/src/source/`). Time is a sum; nothing waits for anything.

use std::time::Duration;

use migrate::convergence::{Decision, Figures, Terms};
use migrate::guest::PART_PAGES;
use migrate::options::Mode;
use migrate::pages::PAGE_SIZE;
use migrate::report::Round;
use migrate::source::{DENSE, LEFT_ALONE, MANY, TIMES, dense_after, frames_ahead};
use migrate::wire::limits::RUN_BYTES;

use super::constants::Constants;
use super::guest::{Guest, Joined, Lie, Sent, calls};
use super::link::{Busy, Effort, Hosts, Link};

const PAGES_PER_GIB: f64 = 262_144.0;

/// Everything that decides how a migration goes.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Case {
    pub(super) guest: Guest,
    pub(super) mode: Mode,
    pub(super) streams: u32,
    pub(super) max_downtime: Duration,
    pub(super) link: Link,
    pub(super) hosts: Hosts,
}

/// How it went.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Course {
    /// The rounds, and what the policy said after each.
    pub(super) rounds: Vec<(Round, String)>,
    /// From the first word until nothing is left on the source, or until it was given up, seconds.
    pub(super) total_s: f64,
    /// From the first word until commit, or until it was given up: what the time limit of a migration counts, seconds.
    pub(super) commit_s: f64,
    /// The pause; none when it was given up.
    pub(super) pause: Option<Pause>,
    /// On the wire.
    pub(super) bytes: f64,
    /// Why it was given up, in the policy's words.
    pub(super) given_up: Option<String>,
}

/// The pause.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Pause {
    /// How long the guest stands still, seconds.
    pub(super) downtime_s: f64,
    /// What the policy expected of it, seconds; none where no policy was asked.
    pub(super) expected_s: Option<f64>,
    /// Pages sent in it.
    pub(super) pages: f64,
    /// Pages that follow it.
    pub(super) missing: f64,
}

/// How pages are moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Manner {
    /// For the first time, while the guest runs.
    First,
    /// Again, while the guest runs.
    Again,
    /// Again, in the pause: nothing is watched.
    Paused,
    /// For the first time, in the pause.
    FirstPaused,
    /// In post-copy.
    Pushed,
}

/// What is left for the pause.
struct Left {
    /// Of each of the guest's writes.
    pages: Vec<f64>,
    expected_s: Option<f64>,
    /// It follows the guest.
    follows: bool,
}

/// What was known of a migration's costs when it was asked.
struct Run<'a> {
    case: &'a Case,
    constants: &'a Constants,
    course: Course,
}

impl Case {
    /// Sees the migration through.
    pub(super) fn run(&self, constants: &Constants) -> Course {
        let (rounds, pause, given_up) = (Vec::new(), None, None);
        let course = Course { rounds, total_s: 0.0, commit_s: 0.0, pause, bytes: 0.0, given_up };
        let mut run = Run { case: self, constants, course };
        run.score();
        run.course
    }
}

impl Run<'_> {
    fn score(&mut self) {
        let Self { case: Case { guest, mode, .. }, constants, .. } = *self;
        let exists_gib = guest.populated / PAGES_PER_GIB;
        let further_vcpus = f64::from(guest.vcpus.saturating_sub(1));
        self.spend((constants.connect_ms + constants.connect_ms_per_vcpu * further_vcpus) / 1e3);
        let survey_s = constants.survey_ms_per_gib * exists_gib / 1e3;
        match mode {
            Mode::Stopcopy => self.pause_for_all(survey_s),
            Mode::Precopy | Mode::Hybrid => {
                // What exists is asked twice: before all else is watched, and after.
                self.spend(survey_s);
                let Some(left) = self.copy_while_it_runs() else { return };
                if left.follows { self.leave_the_rest(left) } else { self.pause_for_the_rest(&left) }
            }
            Mode::Postcopy => {
                self.spend(survey_s + constants.catch_ms_per_gib * exists_gib / 1e3);
                self.tell(guest.ram as f64 / PAGE_SIZE as f64 / 8.0);
                self.follow(Lie { runs: 0.0, ..guest.all() }, 0.0, None);
            }
        }
    }

    /// Rounds until the policy says otherwise; nothing if it gives up.
    fn copy_while_it_runs(&mut self) -> Option<Left> {
        let guest = &self.case.guest;
        self.tell(guest.ram as f64 / PAGE_SIZE as f64 / 8.0);
        let (terms, harvest_s) = (self.terms(), self.harvest_s());
        let (mut history, mut sent) = (Vec::new(), Sent::All);
        loop {
            let (lie, manner) = match &sent {
                Sent::Some(pages) => (guest.scattered(pages), Manner::Again),
                _ => (guest.all(), Manner::First),
            };
            let took_s =
                self.move_pages(lie, manner) + self.constants.round_us / 1e6 + self.case.link.round_trip_s();
            // Until the log is read.
            let dirtied = guest.dirtied(took_s + harvest_s, &sent, self.constants.caught_us / 1e6);
            self.spend(took_s + harvest_s);
            let round = self.round(lie.pages, took_s, dirtied.iter().sum());
            history.push(Figures::of(&round, history.last(), self.case.link.round_trip));
            match terms.decide(&history) {
                Decision::Again { why, .. } => {
                    self.course.rounds.push((round, format!("another round: {why}")));
                    sent = Sent::Some(dirtied);
                }
                Decision::SwitchOver { estimate, follows, why } => {
                    self.course.rounds.push((round, format!("switch over: {why}")));
                    return Some(Left { pages: dirtied, expected_s: Some(estimate.as_secs_f64()), follows });
                }
                Decision::GiveUp { why } => {
                    self.course.rounds.push((round, "give up".to_owned()));
                    self.course.given_up = Some(why);
                    self.course.commit_s = self.course.total_s;
                    return None;
                }
            }
        }
    }

    fn terms(&self) -> Terms {
        let constants = self.constants;
        let state_us = constants.save_us + constants.restore_us + self.vcpus_us() / 2.0;
        Terms {
            max_downtime: self.case.max_downtime,
            state: Duration::from_secs_f64(state_us / 1e6),
            round_trip: self.case.link.round_trip,
            hybrid: self.case.mode == Mode::Hybrid,
            verify: false,
            max_throttle: 0,
        }
    }

    fn round(&self, pages: f64, took_s: f64, dirtied: f64) -> Round {
        Round {
            number: self.course.rounds.len() as u32,
            pages: pages.round() as u64,
            us: (took_s * 1e6).round() as u64,
            dirtied: dirtied.round() as u64,
            dirty_rate: dirtied / (took_s + self.harvest_s()).max(1e-6),
            harvest_us: (self.harvest_s() * 1e6).round() as u64,
            ..Round::default()
        }
    }

    /// Pre-copy's pause, and hybrid's where little is left.
    fn pause_for_the_rest(&mut self, left: &Left) {
        let lie = self.case.guest.scattered(&left.pages);
        let sending_s = self.move_pages(lie, Manner::Paused);
        self.pause(self.harvest_s(), sending_s, left.expected_s, lie.pages, 0.0);
    }

    /// Stop-and-copy's.
    fn pause_for_all(&mut self, survey_s: f64) {
        let lie = self.case.guest.all();
        let sending_s = self.move_pages(lie, Manner::FirstPaused) + self.constants.round_us / 1e6;
        self.pause(survey_s, sending_s, None, lie.pages, 0.0);
        let round = Round { harvest_us: 0, ..self.round(lie.pages, sending_s, 0.0) };
        self.course.rounds.push((round, String::new()));
    }

    /// Hybrid's: what is missing is told before, until little is untold, and follows the pause.
    fn leave_the_rest(&mut self, left: Left) {
        let guest = &self.case.guest;
        let (mut dirty, mut told) = (left.pages, Joined::default());
        let (mut dense, mut before, mut late) = (DENSE, u64::MAX, None);
        let mut all = guest.joined(&dirty, dense);
        for time in 0..TIMES {
            let (pages, _) = all.beyond(&told);
            if time > 0 && pages <= MANY as f64 {
                late = None;
                break;
            }
            dense = dense_after(dense, before, pages.round() as u64);
            all = guest.joined(&dirty, dense);
            let (pages, runs) = all.beyond(&told);
            before = pages.round() as u64;
            let took_s = self.discards_s(pages, runs)
                + self.constants.round_us / 1e6
                + self.case.link.round_trip_s()
                + self.harvest_s();
            self.tell_missing(pages);
            self.spend(took_s);
            let dirtied = guest.dirtied(took_s, &Sent::Nothing, self.constants.caught_us / 1e6);
            late = Some(all.with_single(guest.beside_joined(&dirty, &dirtied, dense)));
            dirty = guest.with(&dirty, &dirtied);
            told = std::mem::replace(&mut all, guest.joined(&dirty, dense));
        }
        // What was written during the last telling is told in the pause, page by page.
        let all = late.unwrap_or(all);
        let (pages, runs) = all.beyond(&told);
        self.tell_missing(pages);
        let lie = Lie { pages: all.pages, runs: all.runs };
        self.follow(lie, self.discards_s(pages, runs), left.expected_s);
    }

    /// How long the destination takes to discard pages that it has.
    fn discards_s(&self, pages: f64, runs: f64) -> f64 {
        (pages * self.constants.discard_us_per_page + runs * self.constants.discard_us) / 1e6
    }

    /// Names pages: a bit each, in words that have one.
    fn tell_missing(&mut self, pages: f64) {
        self.tell(pages.min(self.case.guest.ram as f64 / PAGE_SIZE as f64 / 64.0) * 8.0);
    }

    /// Post-copy's pause, and what follows it.
    fn follow(&mut self, lie: Lie, discards_s: f64, expected_s: Option<f64>) {
        let bitmaps_s = self.constants.bitmaps_us_per_gib * self.case.guest.gib() / 1e6;
        self.pause(self.harvest_s() + bitmaps_s, discards_s, expected_s, 0.0, lie.pages);
        self.spend(LEFT_ALONE.as_secs_f64() + self.constants.push_begins_ms / 1e3);
        let pushing_s = self.move_pages(lie, Manner::Pushed);
        self.spend(pushing_s);
    }

    /// The pause: `before` the state goes, and `beside` it goes and is restored.
    fn pause(&mut self, before_s: f64, beside_s: f64, expected_s: Option<f64>, pages: f64, missing: f64) {
        let constants = self.constants;
        let state = constants.state_bytes + constants.state_bytes_per_vcpu * f64::from(self.case.guest.vcpus);
        let state_s = state / self.case.link.bytes_per_s(1, constants) + constants.restore_us / 1e6;
        // State there, ready back; commit there, running back.
        let messages_s = 2.0 * self.case.link.round_trip_s();
        let stopping_us = constants.pause_us + constants.save_us + constants.resume_us + self.vcpus_us();
        let downtime_s = stopping_us / 1e6 + before_s + beside_s.max(state_s) + messages_s;
        self.tell(state);
        self.spend(downtime_s);
        self.course.commit_s = self.course.total_s;
        self.course.pause = Some(Pause { downtime_s, expected_s, pages, missing });
    }

    fn vcpus_us(&self) -> f64 {
        self.constants.vcpu_us * f64::from(self.case.guest.vcpus.saturating_sub(1))
    }

    fn harvest_s(&self) -> f64 {
        (self.constants.harvest_us + self.constants.harvest_us_per_gib * self.case.guest.gib()) / 1e6
    }

    fn spend(&mut self, seconds: f64) {
        self.course.total_s += seconds;
    }

    /// Bytes that are not pages.
    fn tell(&mut self, bytes: f64) {
        self.course.bytes += bytes;
    }

    /// How long pages take; their bytes are counted.
    fn move_pages(&mut self, lie: Lie, manner: Manner) -> f64 {
        let Self { case: Case { link, streams, hosts, guest, .. }, constants, .. } = *self;
        let bytes = lie.pages * PAGE_SIZE as f64 + lie.runs * RUN_BYTES as f64;
        self.tell(bytes);
        let effort = effort(lie, manner, constants);
        let busy = match manner {
            Manner::First | Manner::Again => Busy::Source(guest.vcpus),
            Manner::Paused | Manner::FirstPaused => Busy::Nobody,
            Manner::Pushed => Busy::Destination(guest.vcpus),
        };
        let working_s = hosts.seconds(effort, *streams, busy, constants.bulk_weight);
        let sending_s = bytes / link.bytes_per_s(*streams, constants);
        let waiting_s = if manner == Manner::Pushed { self.answers_s(lie.pages) } else { 0.0 };
        working_s.max(sending_s).max(waiting_s)
    }

    /// Post-copy: each frame is answered, and only so many are on their way at a time.
    fn answers_s(&self, pages: f64) -> f64 {
        let frames = pages / PART_PAGES as f64 / f64::from(self.case.streams);
        frames / frames_ahead(self.case.link.round_trip) as f64 * self.case.link.round_trip_s()
    }
}

/// What it costs both sides.
fn effort(lie: Lie, manner: Manner, constants: &Constants) -> Effort {
    let gib = lie.pages / PAGES_PER_GIB;
    let runs_s = lie.runs * constants.run_us / 1e6;
    let (source, destination) = match manner {
        Manner::Pushed => (constants.push_s_per_gib, constants.place_s_per_gib),
        _ => (constants.scan_s_per_gib + constants.send_s_per_gib, constants.land_s_per_gib),
    };
    let watching_s = match manner {
        Manner::First | Manner::Again => {
            gib * constants.protect_s_per_gib + calls(lie.pages) * constants.watch_us / 1e6
        }
        _ => 0.0,
    };
    let preparing_s = match manner {
        Manner::First | Manner::FirstPaused => gib * constants.prepare_s_per_gib,
        _ => 0.0,
    };
    Effort {
        source: gib * source + runs_s + watching_s,
        destination: gib * destination + runs_s + preparing_s,
    }
}

#[cfg(test)]
mod tests;
