//! The link was lost from commit on: the destination is called again and asked what became of the guest.
//!
//! Nobody runs anything on a guess meanwhile: the guest stands still here. The calls go on for the time for recovery, further
//! and further apart, and whenever the operator wants one. What the destination says decides, as `handover` has it.

use std::sync::Arc;
use std::thread::{self, Scope};
use std::time::{Duration, Instant};

use super::connect::{Lines, greet, open, open_control};
use super::crew::Crew;
use super::page_server::Unsent;
use super::{Journey, SCORE};
use crate::alarm::{Rested, survived};
use crate::channel::line::Line;
use crate::failure::Failure;
use crate::handover::{Source, SourceEvent};
use crate::pages::PageSet;
use crate::pulse;
use crate::report::Phase;
use crate::threads::start;
use crate::wire::rejoin::{Fate, Knows, Rejoin, Told};
use crate::wire::{Kind, Message, Role};

/// Between the first two calls; twice as long each time.
const FIRST_REST: Duration = Duration::from_millis(50);
/// Never longer.
const LONGEST_REST: Duration = Duration::from_secs(2);

impl<'a> Journey<'a> {
    /// Calls until what became of the guest is known, or the time for recovery has passed.
    pub(super) fn recover(&mut self, lost: Failure) -> Result<(), Failure> {
        let (mut since, limit) = (Instant::now(), self.context.options.recovery);
        let (mut failure, mut rest) = (lost, FIRST_REST.min(limit));
        self.logbook.begin_outage(&failure, self.calls);
        while self.custody.state().asks() {
            let left = limit.saturating_sub(since.elapsed());
            let rested = if left.is_zero() {
                Rested::GiveUp
            } else {
                self.context.alarm.rest_before_call(rest.min(left))
            };
            match rested {
                Rested::Call(elsewhere) => elsewhere.iter().for_each(|to| self.context.redirect(to)),
                Rested::GiveUp => {
                    self.custody.on(SourceEvent::GiveUp)?;
                    break;
                }
            }
            rest = (rest * 2).min(LONGEST_REST);
            self.context.alarm.renew();
            let called = thread::scope(|scope| self.call(scope));
            match called {
                Ok(()) => return Ok(()),
                // The first loss says more than that nobody answers.
                Err(Failure::Connect { .. }) => {}
                Err(other) => failure = other,
            }
            if !self.logbook.is_in_outage() {
                // Both sides had found each other: this is another loss, with a time of its own.
                (since, rest) = (Instant::now(), FIRST_REST.min(limit));
                self.context.alarm.forget_order();
                self.logbook.begin_outage(&failure, self.calls);
            }
        }
        self.logbook.end_outage(self.calls, false);
        Err(failure)
    }

    /// One call, to its end.
    fn call<'scope>(&mut self, scope: &'scope Scope<'scope, 'a>) -> Result<(), Failure>
    where
        'a: 'scope,
    {
        let context = self.context;
        self.calls += 1;
        let result = survived(SCORE, || self.go_on(scope)).map_err(|failure| context.alarm.explain(failure));
        if result.is_err() {
            self.custody.fail();
        }
        context.alarm.end();
        result
    }

    fn go_on<'scope>(&mut self, scope: &'scope Scope<'scope, 'a>) -> Result<(), Failure>
    where
        'a: 'scope,
    {
        let context = self.context;
        let knows = if self.custody.state() == Source::Asking { Knows::Committed } else { Knows::Left };
        let mut lines = self.ask(knows)?;
        context.set_control(&lines.control);
        start(scope, "pulse", move || pulse::beat(&context.alarm, context.beat(), || context.pulse()))?;
        let control = lines.control.clone();
        let told = hear_fate(&control)?;
        let peer = || control.peer().to_owned();
        match told.fate {
            Fate::NotRunning => {
                self.custody.on(SourceEvent::NotRunning)?;
                return Err(Failure::Fate { peer: peer(), reason: told.reason });
            }
            Fate::Gone | Fate::Unknown => {
                self.custody.on(SourceEvent::Gone)?;
                return Err(Failure::Fate { peer: peer(), reason: told.reason });
            }
            Fate::Held | Fate::Running | Fate::Arrived => {}
        }
        if told.missing > 0 && !self.postcopy() {
            // All came before the pause: what it lacks would be let go of here.
            return Err(control.unexpected(Kind::Fate, "nothing missing"));
        }
        let missing = self.hear_missing(&control, told.missing)?;
        if told.missing > 0 {
            lines.data = (0..context.streams())
                .map(|index| open(context, Role::Data, index, self.calls))
                .collect::<Result<_, _>>()?;
            lines.urgent = Some(open(context, Role::Urgent, 0, self.calls)?);
        }
        if self.postcopy() {
            context.unsent.get_or_init(|| Arc::new(Unsent::new(&missing))).refill(&missing);
        }
        let crew = Crew::assemble(scope, context, &lines)?;
        if told.fate == Fate::Held {
            self.custody.on(SourceEvent::Held)?;
            self.await_verdict(&control)?;
        } else {
            self.custody.on(SourceEvent::Running)?;
        }
        self.logbook.end_outage(self.calls, true);
        if let Some(unsent) = context.unsent.get() {
            self.logbook.stay_in(Phase::Postcopy);
            context.meter.begin(0, told.missing);
            crew.push(unsent);
        }
        if self.postcopy() {
            self.serve_pages(&lines)?;
        }
        self.custody.on(SourceEvent::Complete)?;
        self.last_words(&lines, None)
    }

    /// A conversation that has begun again.
    fn ask(&self, knows: Knows) -> Result<Lines, Failure> {
        let context = self.context;
        let (control, asked) = open_control(context, self.calls)?;
        let round_trip = greet(&control, asked)?;
        control.set_limit(context.route.deadlines.idle)?;
        let (guest, epoch) = (context.description.uuid, context.guest.description().epoch);
        let epoch = if knows == Knows::Kept { epoch } else { epoch.saturating_add(1) };
        control.tell(&Message::Rejoin(Rejoin { guest, epoch, knows }))?;
        Ok(Lines::only(control, round_trip))
    }

    /// The pages that the destination lacks.
    fn hear_missing(&self, control: &Line, count: u64) -> Result<PageSet, Failure> {
        let (map, mut missing) = (self.map()?, PageSet::new(self.context.description.gfn_limit()));
        while missing.len() < count {
            let before = missing.len();
            match control.hear()? {
                Message::Missing { first, words } => map
                    .admit_bitmap(Kind::Missing, first, &words, &mut missing)
                    .map_err(Failure::wire(control.peer()))?,
                other => return Err(control.unexpected(other.kind(), Kind::Missing.word())),
            }
            if missing.len() == before {
                return Err(control.unexpected(Kind::Missing, "pages not named before"));
            }
        }
        Ok(missing)
    }

    /// The guest runs here, but the destination may hold it: tells it to let go. What it says, if it could be reached. Whoever
    /// holds it does not run it, so nothing depends on this but memory over there.
    pub(super) fn disown(&mut self) -> Option<Told> {
        self.context.alarm.renew();
        self.calls += 1;
        let told = self.ask(Knows::Kept).and_then(|lines| hear_fate(&lines.control));
        self.context.alarm.end();
        // Another host, or VMM, knows nothing of it.
        told.ok().filter(|told| told.fate != Fate::Unknown)
    }
}

fn hear_fate(control: &Line) -> Result<Told, Failure> {
    match control.hear()? {
        Message::Fate(told) => Ok(told),
        Message::Refuse(refuse) => {
            Err(Failure::Refused { peer: control.peer().to_owned(), reasons: refuse.reasons })
        }
        other => Err(control.unexpected(other.kind(), Kind::Fate.word())),
    }
}
