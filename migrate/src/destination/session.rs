//! One arrival: from the first caller to the guest that runs here, or to a machine thrown away.

use std::net::Shutdown;
use std::sync::Arc;
use std::thread::{self, Scope};
use std::time::Instant;

use uuid::Uuid;

use super::context::Context;
use super::custody::Custody;
use super::landing::{Scratch, run_ahead};
use super::reception::Desk;
use super::waiting::Waiting;
use super::{Arrival, ArrivalReport};
use crate::alarm::survived;
use crate::channel::line::Line;
use crate::failure::Failure;
use crate::guest::HeardClock;
use crate::handover::{Destination, DestinationEvent};
use crate::options::Mode;
use crate::pages::PageSet;
use crate::priority::{core_beyond, give_way, serve_vcpus};
use crate::pulse;
use crate::report::{Phase, Takeover, Traffic};
use crate::threads::start;
use crate::wire::message::tame;
use crate::wire::{Kind, Message, Role};

/// How a conversation ended.
pub(super) enum End {
    Over(Arrival),
    /// The source is to come back.
    Waits(Box<Waiting>),
}

/// The lines that carry pages.
#[derive(Default)]
pub(super) struct Lines {
    pub(super) data: Vec<Line>,
    pub(super) urgent: Option<Line>,
    /// For packets that come after the guest.
    pub(super) packets: Option<Line>,
}

/// One arrival under way.
pub(super) struct Session<'a> {
    pub(super) context: &'a Context<'a>,
    pub(super) custody: Custody,
    pub(super) report: ArrivalReport,
    /// Names it.
    pub(super) session: Uuid,
    /// How often its source has called again.
    pub(super) call: u32,
}

/// What has to be in place before the guest can run.
pub(super) struct Cargo {
    pub(super) blob: Vec<u8>,
    pub(super) after_round: Option<u32>,
    pub(super) missing: PageSet,
    /// Pages follow after the switchover.
    pub(super) postcopy: bool,
    pub(super) source: Option<HeardClock>,
}

impl<'a> Session<'a> {
    /// One conversation, from here to its end.
    pub(super) fn converse(mut self, desk: &Desk, lines: &Lines) -> End {
        desk.converse(&self.context.alarm);
        let result = thread::scope(|scope| self.run(scope, lines));
        self.close(result)
    }

    /// The source has come back after the link was lost.
    pub(super) fn is_again(&self) -> bool {
        self.call > 0
    }

    /// The score between its frames: threads before, and the guest set right before they are joined.
    fn run<'scope>(&mut self, scope: &'scope Scope<'scope, 'a>, lines: &Lines) -> Result<(), Failure>
    where
        'a: 'scope,
    {
        let context = self.context;
        context.alarm.watch(context.control.link(), Shutdown::Read);
        for line in lines.data.iter().chain(&lines.urgent).chain(&lines.packets) {
            context.alarm.watch(line.link(), Shutdown::Both);
        }
        // Should it die, the threads beside it would go on saying that all is well.
        let scored = survived("the score of this side", || {
            self.staff(scope, lines)?;
            if self.is_again() { self.go_on(scope, lines) } else { self.score(scope, lines) }
        });
        let mut result = scored.map_err(|failure| context.alarm.explain(failure));
        if let Err(failure) = &mut result {
            *failure = context.last_word(failure.clone());
            self.decide_fate(failure);
            if self.custody.state() == Destination::Discarded {
                context.control.abort(failure);
            }
        }
        // Should it have ended before nothing was missing.
        context.guest.keep_vcpus_to(None);
        context.alarm.end();
        result
    }

    /// The threads beside the score.
    fn staff<'scope>(&self, scope: &'scope Scope<'scope, 'a>, lines: &Lines) -> Result<(), Failure>
    where
        'a: 'scope,
    {
        let context = self.context;
        for line in lines.data.clone() {
            start(scope, "receiver", move || {
                give_way();
                context.alarm.guard("receives pages", || context.receive_stream(&line, Role::Data));
            })?;
        }
        if let Some(line) = lines.urgent.clone() {
            start(scope, "urgent", move || {
                serve_vcpus(context.parting.as_ref());
                context
                    .alarm
                    .guard("receives requested pages", || context.receive_stream(&line, Role::Urgent));
            })?;
        }
        if let Some(line) = lines.packets.clone() {
            start(scope, "packets", move || context.receive_packets(&line))?;
        }
        // Without a core of its own it would only take turns with the streams, which can prepare memory themselves.
        if core_beyond(context.preflight.description.vcpus.saturating_add(context.preflight.streams)) {
            start(scope, "ahead", move || {
                give_way();
                run_ahead(context);
            })?;
        }
        start(scope, "pulse", move || {
            pulse::beat(&context.alarm, context.deadlines.beat, || {
                // Who hears the control connection learns of its end.
                let _ = context.control.tell(&Message::Alive);
            });
        })
        .map(drop)
    }

    fn score<'scope>(&mut self, scope: &'scope Scope<'scope, 'a>, lines: &Lines) -> Result<(), Failure>
    where
        'a: 'scope,
    {
        let cargo = self.take_rounds(scope, lines)?;
        if cargo.postcopy {
            let since = Instant::now();
            self.miss(scope, &cargo.missing, lines.urgent.as_ref())?;
            self.report.takeover.missing_us = since.elapsed().as_micros() as u64;
        }
        self.restore(&cargo)?;
        self.wait_commit()?;
        self.run_guest()?;
        self.wait_complete()?;
        self.last_words()
    }

    /// Lets pages land until the state has come.
    fn take_rounds<'scope>(
        &mut self,
        scope: &'scope Scope<'scope, 'a>,
        lines: &Lines,
    ) -> Result<Cargo, Failure>
    where
        'a: 'scope,
    {
        let context = self.context;
        context.enter(Phase::Precopy);
        let (control, mut scratch) = (&context.control, Scratch::default());
        let mut missing = PageSet::new(context.map.limit());
        // Named since the last end of a round, be it nothing.
        let mut named = false;
        let mut source = None;
        loop {
            let head = control.hear_head()?;
            match head.kind {
                Kind::Pages | Kind::Packed | Kind::Zeros if context.placing.get().is_some() => {
                    return Err(control.unexpected(head.kind, "no more pages on this connection"));
                }
                Kind::Pages | Kind::Packed | Kind::Zeros => {
                    context.take_pages(&head, control, &mut scratch)?;
                    continue;
                }
                Kind::RoundEnd => {
                    if std::mem::take(&mut named) {
                        self.miss(scope, &missing, lines.urgent.as_ref())?;
                        missing = PageSet::new(context.map.limit());
                    }
                    context.take_round_end(&head, control, context.preflight.streams)?;
                    continue;
                }
                _ => {}
            }
            let wrong = |error| Failure::wire(control.peer())(error);
            match control.body(&head)? {
                Message::Populated { first, words } => {
                    let mut pages = PageSet::new(context.map.limit());
                    context.map.admit_bitmap(head.kind, first, &words, &mut pages).map_err(wrong)?;
                    context.landing.prepare.expect(&pages, &context.alarm);
                }
                Message::Missing { first, words } if context.preflight.may_miss() => {
                    named = true;
                    context.map.admit_bitmap(head.kind, first, &words, &mut missing).map_err(wrong)?;
                }
                Message::Clock { shown_ns } => source = Some(HeardClock { shown_ns, heard: Instant::now() }),
                Message::State { after_round, blob } => {
                    let postcopy =
                        named || context.placing.get().is_some() || context.preflight.mode == Mode::Postcopy;
                    return Ok(Cargo { blob, after_round, missing, postcopy, source });
                }
                other => return Err(control.unexpected(other.kind(), "rounds and the state")),
            }
        }
    }

    /// Something went wrong. A guest that runs here with nothing missing has arrived all the same.
    fn decide_fate(&mut self, failure: &Failure) {
        let missing = self.context.placing.get().map_or(0, |placing| placing.remaining());
        if self.custody.state() == Destination::Running && missing == 0 {
            // Running knows this event.
            let _ = self.custody.on(DestinationEvent::Complete);
        } else {
            self.custody.fail(failure);
        }
    }

    fn close(mut self, result: Result<(), Failure>) -> End {
        let context = self.context;
        let (heard, reason) =
            (result.is_ok(), result.err().map_or_else(String::new, |failure| failure.to_string()));
        self.report.traffic = context.landing.traffic();
        context.placing.get().into_iter().for_each(|placing| placing.keep_nothing_at_hand());
        let missing = context.placing.get().map_or(0, |placing| placing.remaining());
        if self.custody.state() == Destination::Bereft && missing == 0 {
            // What was on its way has come after the link was seen to break. Bereft knows this event.
            let _ = self.custody.on(DestinationEvent::Complete);
        }
        match self.custody.state() {
            Destination::Arrived => {
                // Nothing is missing: nobody is to wait for a page that never was there.
                context.placing.get().into_iter().for_each(|placing| placing.faults.close());
                self.report.postcopy = context.placing.get().map(|placing| placing.figures());
                let (guest, report) = (Arc::clone(&context.guest), Box::new(self.report.clone()));
                let unheard = (!heard).then(|| Box::new(Waiting::new(self, reason)));
                End::Over(Arrival::Arrived { guest, report, unheard })
            }
            Destination::Held | Destination::Bereft | Destination::Orphaned => {
                End::Waits(Box::new(Waiting::new(self, reason)))
            }
            _ => End::Over(Arrival::Failed { reason }),
        }
    }
}

impl Context<'_> {
    /// A source that gave up has said why, perhaps while nobody listened. Tripping the alarm has ended the control
    /// connection's reading, so this waits for nothing.
    fn last_word(&self, failure: Failure) -> Failure {
        if !failure.is_bare() || self.alarm.cause().is_none() {
            return failure;
        }
        match self.control.hear() {
            Err(aborted @ Failure::Aborted { .. }) => aborted,
            _ => failure,
        }
    }

    pub(super) fn blank_report(&self) -> ArrivalReport {
        ArrivalReport {
            guest: tame(&self.preflight.description.name),
            from: self.control.peer().to_owned(),
            mode: self.preflight.mode,
            traffic: Traffic::default(),
            restore_us: 0,
            takeover: Takeover::default(),
            state_bytes: 0,
            postcopy: None,
            verification: None,
        }
    }
}
