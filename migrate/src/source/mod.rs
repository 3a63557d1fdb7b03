//! The side a guest leaves: one score, from hello to goodbye.
//!
//! ```text
//!   calling thread   the score; hears the control connection, sends small rounds and the state
//!   crew (streams)   pages and zero marks, one thread a data connection, parked between rounds
//!   page server      answers page requests on the urgent connection (post-copy)
//!   forwarder        sends packets after the guest (one with a network)
//!   pulse            signs of life, progress, the time limit
//! ```
//!
//! Any failure before commit ends with the guest running here, as fast as before. The calling thread resumes
//! it before it joins anyone. `custody` alone starts or gives up the guest, as `handover` says.

mod connect;
mod context;
mod courier;
mod crew;
mod custody;
mod finish;
mod in_flight;
mod journal;
mod missing;
mod page_server;
mod pause_point;
mod precopy;
mod switchover;
mod time_limit;

use std::thread::{self, Scope};
use std::time::Instant;

use self::connect::Lines;
use self::context::Context;
use self::crew::Crew;
use self::custody::Custody;
use self::journal::Journal;
use crate::alarm::Cancel;
use crate::channel::tcp::TcpDial;
use crate::channel::tls::TlsDial;
use crate::channel::{Deadlines, Dial};
use crate::failure::Failure;
use crate::guest::Departing;
use crate::handover::SourceEvent;
use crate::options::{Mode, Options};
use crate::progress::{Event, Observer};
use crate::pulse;
use crate::report::{Outcome, Phase, Report};

/// How the destination is reached, and how long each wait may be.
#[derive(Clone, Copy)]
pub struct Route<'a> {
    /// Makes connections.
    pub dial: &'a dyn Dial,
    /// Bounds every wait.
    pub deadlines: Deadlines,
}

impl std::fmt::Debug for Route<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Route").field("to", &self.dial.to()).finish_non_exhaustive()
    }
}

/// Moves `guest` over TCP to [`Options::to`], inside TLS if [`Options::protection`] says so. Runs to the end on the calling thread.
#[must_use]
pub fn migrate(guest: &dyn Departing, options: &Options, cancel: &Cancel, observer: &dyn Observer) -> Report {
    let tcp = TcpDial::new(&options.to);
    let dial: Box<dyn Dial> = match options.protection.identity(&options.to) {
        Ok(None) => Box::new(tcp),
        Ok(Some(identity)) => Box::new(TlsDial::new(tcp, identity)),
        Err(error) => {
            let blank = Report::blank(&guest.description().name, &options.to, options.mode, options.streams);
            let report = Report { reason: Some(error.to_string()), ..blank };
            observer.tell(Event::Ended { report: Box::new(report.clone()) });
            return report;
        }
    };
    migrate_over(guest, options, Route { dial: &*dial, deadlines: Deadlines::default() }, cancel, observer)
}

/// Moves `guest` over any kind of link.
#[must_use]
pub fn migrate_over(
    guest: &dyn Departing,
    options: &Options,
    route: Route<'_>,
    cancel: &Cancel,
    observer: &dyn Observer,
) -> Report {
    let context = Context::new(guest, options, route, cancel.alarm(), observer);
    let mut journey = Journey {
        context: &context,
        custody: Custody::new(guest),
        journal: Journal::open(&context),
        lines: None,
        may_switch: !options.pause_before_switchover,
    };
    let result = thread::scope(|scope| journey.run(scope));
    journey.close(result)
}

/// One migration under way.
struct Journey<'a> {
    context: &'a Context<'a>,
    custody: Custody<'a>,
    journal: Journal<'a>,
    /// Kept here so that a failure can still be told to the destination.
    lines: Option<Lines>,
    /// The operator need not be waited for, or has given the word.
    may_switch: bool,
}

impl<'a> Journey<'a> {
    /// The score between its frames: watched by the pulse, and the guest set right before threads are joined.
    fn run<'scope>(&mut self, scope: &'scope Scope<'scope, 'a>) -> Result<(), Failure>
    where
        'a: 'scope,
    {
        let context = self.context;
        scope.spawn(move || {
            pulse::beat(&context.alarm, context.beat(), || context.pulse());
            context.alarm.insist(context.route.deadlines.beat);
        });
        let result = self.score(scope).map_err(|failure| context.alarm.explain(failure));
        if let Err(failure) = &result {
            self.custody.fail();
            // From commit on there is nothing to call back.
            if let Some(lines) = self.lines.as_ref().filter(|_| self.custody.outcome() == Outcome::Kept) {
                lines.control.abort(failure);
            }
        }
        context.alarm.end();
        result
    }

    fn score<'scope>(&mut self, scope: &'scope Scope<'scope, 'a>) -> Result<(), Failure>
    where
        'a: 'scope,
    {
        self.journal.enter(Phase::Connect);
        let lines = self.connect()?;
        let crew = Crew::assemble(scope, self.context, &lines);
        let left = match self.context.options.mode {
            Mode::Precopy | Mode::Hybrid => self.copy_while_it_runs(&lines, &crew)?,
            Mode::Postcopy => self.survey_all(&lines)?,
            Mode::Stopcopy => self.nothing_yet(&lines)?,
        };
        let forwarding = self.stand_by(scope, &lines);
        self.switch_over(&lines, &crew, left)?;
        self.serve_pages(&lines)?;
        self.custody.on(SourceEvent::Complete)?;
        self.last_words(&lines, forwarding)
    }

    /// All threads are gone: nothing may linger, and the report says what happened.
    fn close(self, result: Result<(), Failure>) -> Report {
        let outcome = self.custody.outcome();
        if outcome != Outcome::Moved && self.context.logging() {
            self.context.guest.stop_dirty_log();
        }
        if outcome == Outcome::Moved {
            self.context.guest.release();
        }
        let bytes = self.lines.as_ref().map_or(0, |lines| lines.control.told());
        self.journal.finish(outcome, result.err(), self.custody.trouble(), bytes)
    }

    /// Connections, hello and pre-flight.
    fn connect(&mut self) -> Result<Lines, Failure> {
        let lines = connect::connect(self.context, |control| {
            self.lines = Some(Lines::only(control.clone()));
        })?;
        self.lines = Some(lines.clone());
        Ok(lines)
    }
}

/// Microseconds since `then`.
fn us_since(then: Instant) -> u64 {
    then.elapsed().as_micros() as u64
}
