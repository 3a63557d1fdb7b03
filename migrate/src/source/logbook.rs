//! The report while it is being written, and the events that are told on the way.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::context::Context;
use super::us_since;
use crate::failure::Failure;
use crate::guest::Telemetry;
use crate::priority::LEFT_ALONE;
use crate::progress::Event;
use crate::report::{Outage, Outcome, Phase, PhaseTime, Report, Round, Switchover, Traffic};

/// How long the guest may take to acknowledge a measuring window. It does so when each of its vCPUs has had the CPU:
/// within a millisecond or so on a quiet host, but on a busy one each may wait for many others' time slices, and an
/// unacknowledged window leaves the migration unmeasured. The wait ends with the acknowledgement.
const WINDOW_WAIT: Duration = Duration::from_secs(1);

/// How the guest stands here at the end.
#[derive(Debug, Clone, Copy)]
pub(super) struct Standing<'a> {
    /// Why it could not be run on here.
    pub(super) trouble: Option<&'a str>,
    /// It has run on the destination, and can only be run here as what it was when it left.
    pub(super) has_left: bool,
}

pub(super) struct Logbook<'a> {
    context: &'a Context<'a>,
    pub(super) report: Report,
    /// The guest's figures before anything was done to it; absent when it measures nothing.
    pub(super) before: Option<Telemetry>,
    /// What cut off the destination's last words.
    pub(super) unheard: Option<Failure>,
    started: Instant,
    phase: Option<(Phase, Instant)>,
    /// From the pause on: what is to be told when the guest has run there for a while, or the migration has ended.
    held_back: Option<Vec<Event>>,
    /// The present loss of the link: since when, and calls made before it.
    outage: Option<(Instant, u32)>,
    /// Bulk traffic when the present round began.
    round_from: (Traffic, Instant),
}

impl<'a> Logbook<'a> {
    /// Reads the guest's figures and has it open a measuring window; the clock starts after that.
    pub(super) fn open(context: &'a Context<'a>) -> Self {
        let before = context.guest.telemetry().filter(|_| context.guest.open_window(WINDOW_WAIT));
        let now = Instant::now();
        let to = context.route.dial.to();
        let report = Report::blank(&context.description.name, to, context.options.mode, context.streams());
        let round_from = (Traffic::default(), now);
        Self {
            context,
            report,
            before,
            unheard: None,
            started: now,
            phase: None,
            held_back: None,
            outage: None,
            round_from,
        }
    }

    /// Goes on with the report of a migration that was left in doubt.
    pub(super) fn resumed(context: &'a Context<'a>, report: Report) -> Self {
        let now = Instant::now();
        let before = Report { reason: None, ..report };
        Self {
            context,
            before: None,
            unheard: None,
            started: now - Duration::from_micros(before.total_us),
            report: Report { total_us: 0, residual_bytes: 0, ..before },
            phase: None,
            held_back: None,
            outage: None,
            round_from: (Traffic::default(), now),
        }
    }

    /// A phase begins. From the pause on nothing is told, until [`leave_alone`](Self::leave_alone).
    pub(super) fn enter(&mut self, phase: Phase) {
        self.leave();
        self.phase = Some((phase, Instant::now()));
        if phase == Phase::Switchover {
            self.context.meter.enter(phase);
            self.held_back = Some(Vec::new());
        }
        self.tell(Event::Phase { phase });
    }

    /// The phase goes on, or begins.
    pub(super) fn stay_in(&mut self, phase: Phase) {
        if self.phase.is_none_or(|(now, _)| now != phase) {
            self.enter(phase);
        }
    }

    fn tell(&mut self, event: Event) {
        match &mut self.held_back {
            Some(held_back) => held_back.push(event),
            None => self.tell_now(event),
        }
    }

    fn tell_now(&self, event: Event) {
        if let Event::Phase { phase } = event {
            // Progress is told of this phase from here on.
            self.context.meter.enter(phase);
        }
        self.context.observer.tell(event);
    }

    /// The guest has just begun to run there: leaves it alone for a while, then tells what was held back.
    pub(super) fn leave_alone(&mut self) {
        if self.held_back.is_some() {
            self.context.alarm.rest(LEFT_ALONE);
            self.tell_held_back();
        }
    }

    fn tell_held_back(&mut self) {
        self.held_back.take().into_iter().flatten().for_each(|event| self.tell_now(event));
    }

    fn leave(&mut self) {
        if let Some((phase, since)) = self.phase.take() {
            self.report.phases.push(PhaseTime { phase, us: us_since(since) });
        }
    }

    /// A round begins.
    pub(super) fn begin_round(&mut self, number: u32, pages: u64) {
        self.round_from = (self.context.meter.traffic(), Instant::now());
        self.context.meter.begin(number, pages);
    }

    /// The round has landed, and `dirtied` pages were written meanwhile. Reading the log that says so took `harvest_us`.
    pub(super) fn end_round(&mut self, number: u32, took: Duration, dirtied: u64, harvest_us: u64) -> Round {
        let (from, to) = (self.round_from.0, self.context.meter.traffic());
        let watched = took + Duration::from_micros(harvest_us);
        let dirty_rate = dirtied as f64 / watched.as_secs_f64().max(1e-6);
        self.context.meter.dirty_per_s.store(dirty_rate.to_bits(), Ordering::Relaxed);
        let round = Round {
            number,
            pages: to.pages - from.pages,
            zero_pages: to.zero_pages - from.zero_pages,
            bytes: to.bytes - from.bytes,
            us: took.as_micros() as u64,
            dirtied,
            dirty_rate,
            harvest_us,
            throttle: self.context.meter.throttle.load(Ordering::Relaxed),
        };
        // The operator may be waited for for hours: those rounds are not noted one by one.
        if !matches!(self.phase, Some((Phase::Waiting, _))) {
            self.report.rounds.push(round);
        }
        round
    }

    /// When the present round began.
    pub(super) fn round_began(&self) -> Instant {
        self.round_from.1
    }

    /// The policy has decided.
    pub(super) fn decided(&mut self, round: Round, decision: String) {
        self.tell(Event::Round { round, decision });
    }

    /// The guest runs on the destination.
    pub(super) fn switched(&mut self, switchover: Switchover) {
        self.report.switchover = Some(switchover);
        self.tell(Event::Switched { switchover });
    }

    /// The link was lost from commit on.
    pub(super) fn begin_outage(&mut self, cause: &Failure, calls: u32) {
        self.tell_held_back();
        self.outage = Some((Instant::now(), calls));
        let cause = cause.to_string();
        self.tell(Event::Lost { cause: cause.clone() });
        self.report.outages.push(Outage { cause, us: 0, calls: 0, over: false });
    }

    /// Whether the link is lost, as far as was told.
    pub(super) fn is_in_outage(&self) -> bool {
        self.outage.is_some()
    }

    /// Both sides have found each other again (`over`), or this side has given up.
    pub(super) fn end_outage(&mut self, calls: u32, over: bool) {
        let (Some((since, before)), Some(outage)) = (self.outage.take(), self.report.outages.last_mut())
        else {
            return;
        };
        (outage.us, outage.calls, outage.over) = (us_since(since), calls - before, over);
        if over {
            self.tell(Event::Found { us: us_since(since), calls: calls - before });
        }
    }

    /// Nothing is left to be done for the guest: the clock stops.
    pub(super) fn stop_clock(&mut self) {
        self.report.total_us = us_since(self.started);
    }

    /// The report.
    pub(super) fn finish(
        mut self,
        outcome: Outcome,
        failure: Option<Failure>,
        standing: Standing<'_>,
        control_bytes: u64,
    ) -> Report {
        let during = self.phase.map(|(phase, _)| phase);
        self.leave();
        if self.report.total_us == 0 {
            self.stop_clock();
        }
        self.report.outcome = outcome;
        self.report.unverified = self.unverified(failure.as_ref());
        self.report.reason = failure.map(|failure| reason(outcome, during, &failure, standing));
        self.report.traffic = self.context.meter.traffic();
        self.report.traffic.bytes += control_bytes;
        if outcome == Outcome::Unknown {
            self.report.residual_bytes = self.context.description.pages() * crate::pages::PAGE_SIZE as u64;
        }
        self.tell_held_back();
        self.context.observer.tell(Event::Ended { report: Box::new(self.report.clone()) });
        self.report
    }

    /// Why memory was not compared although that was asked for.
    fn unverified(&self, failure: Option<&Failure>) -> Option<String> {
        let owed = self.context.options.verify && self.report.verification.is_none();
        let why = failure.or(self.unheard.as_ref());
        owed.then(|| why.map_or_else(|| "the destination left it out".to_owned(), ToString::to_string))
    }
}

fn words(phase: Phase) -> &'static str {
    match phase {
        Phase::Connect => "connecting",
        Phase::Precopy => "pre-copy",
        Phase::Waiting => "waiting for `migrate continue`",
        Phase::Switchover => "switchover",
        Phase::Postcopy => "post-copy",
        Phase::Finish => "finishing",
    }
}

/// `during`: none when the destination was called again and did not answer.
fn reason(outcome: Outcome, during: Option<Phase>, failure: &Failure, standing: Standing<'_>) -> String {
    let mut reason =
        during.map(|phase| format!("{}: ", words(phase))).unwrap_or_default() + &failure.to_string();
    if let Some(trouble) = standing.trouble {
        reason += &format!("; the guest could not be run on here: {trouble}");
    } else if outcome == Outcome::Unknown && standing.has_left {
        reason += "; the guest has run on the destination since: what stays here, paused, is all of what it was when it left, \
                   and to run that would undo what it has done there, but not what its disks and peers have seen";
    } else if outcome == Outcome::Unknown {
        reason += "; the guest stays paused here, because it may run on the destination";
    }
    reason
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_in_doubt_is_explained_without_a_phase_where_nobody_answers() {
        let lost = Failure::Closed { peer: "there:7000".to_owned() };
        let standing = Standing { trouble: None, has_left: false };
        let told = |during| reason(Outcome::Unknown, during, &lost, standing);
        let [during, before] = [told(Some(Phase::Postcopy)), told(None)];
        assert!(during.starts_with("post-copy: there:7000"), "{during}");
        assert!(before.starts_with("there:7000"), "{before}");
    }
}
