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
mod hot;
mod in_flight;
mod kept;
mod logbook;
mod missing;
mod packing;
mod page_server;
mod parted;
mod pause_point;
mod precopy;
mod rejoin;
mod switchover;
mod time_limit;
mod unanswered;

use std::thread::{self, Scope};
use std::time::{Duration, Instant};

use uuid::Uuid;

use self::connect::Lines;
use self::context::Context;
use self::crew::Crew;
pub use self::crew::{WINDOW, watched_at_once};
use self::custody::Custody;
use self::logbook::Logbook;
pub use self::missing::{DENSE, MANY, TIMES, dense_after};
pub use self::page_server::frames_ahead;
pub use self::parted::{Disowned, Parted};
use crate::alarm::{Cancel, survived};
use crate::channel::tcp::TcpDial;
use crate::channel::tls::TlsDial;
use crate::channel::{Deadlines, Dial};
use crate::failure::Failure;
use crate::guest::Departing;
use crate::handover::SourceEvent;
use crate::journal::Journals;
use crate::options::{MAX_STREAMS, Mode, Options};
pub use crate::priority::LEFT_ALONE;
use crate::priority::Parting;
use crate::progress::{Event, Observer};
use crate::pulse;
use crate::report::{Outcome, Phase, Report};
use crate::threads::start;

/// Who dies where the score does: the threads beside it would go on saying that all is well.
const SCORE: &str = "the score of this side";

/// How the destination is reached, and how long each wait may be.
#[derive(Clone, Copy)]
pub struct Route<'a> {
    /// Makes connections.
    pub dial: &'a dyn Dial,
    /// Bounds every wait.
    pub deadlines: Deadlines,
    /// Keeps what is promised.
    pub journals: &'a Journals,
}

impl std::fmt::Debug for Route<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Route").field("to", &self.dial.to()).finish_non_exhaustive()
    }
}

/// How a migration ended, and what is left of it to be done.
#[derive(Debug)]
pub struct Departure {
    /// What happened.
    pub report: Report,
    /// A guest in doubt, or one that is here although the destination may not know it.
    pub parted: Option<Parted>,
}

/// How to dial [`Options::to`]: TCP, inside TLS if [`Options::protection`] says so.
///
/// # Errors
/// When what protects the connections cannot be read or used.
pub fn dial(options: &Options) -> Result<Box<dyn Dial>, String> {
    let tcp = TcpDial::new(&options.to);
    match options.protection.identity(&options.to) {
        Ok(None) => Ok(Box::new(tcp)),
        Ok(Some(identity)) => Ok(Box::new(TlsDial::new(tcp, identity))),
        Err(error) => Err(error.to_string()),
    }
}

/// Moves `guest` to [`Options::to`]. Runs to the end on the calling thread.
#[must_use]
pub fn migrate(
    guest: &dyn Departing,
    options: &Options,
    journals: &Journals,
    cancel: &Cancel,
    observer: &dyn Observer,
) -> Departure {
    let dial = match dial(options) {
        Ok(dial) => dial,
        Err(why) => {
            let blank = Report::blank(&guest.description().name, &options.to, options.mode, options.streams);
            let report = Report { reason: Some(why), ..blank };
            observer.tell(Event::Ended { report: Box::new(report.clone()) });
            return Departure { report, parted: None };
        }
    };
    let route = Route { dial: &*dial, deadlines: Deadlines::default(), journals };
    migrate_over(guest, options, route, cancel, observer)
}

/// Moves `guest` over any kind of link.
#[must_use]
pub fn migrate_over(
    guest: &dyn Departing,
    options: &Options,
    route: Route<'_>,
    cancel: &Cancel,
    observer: &dyn Observer,
) -> Departure {
    let streams = options.streams.clamp(1, MAX_STREAMS);
    let parting = Parting::here(guest.description().vcpus, streams, || guest.vcpus_are_on());
    let context = Context::new(guest, options, route, cancel.alarm(), observer, Uuid::new_v4(), parting);
    let mut journey = Journey {
        context: &context,
        custody: Custody::new(guest),
        logbook: Logbook::open(&context),
        lines: None,
        may_switch: !options.pause_before_switchover,
        rest_follows: true,
        calls: 0,
    };
    let mut result = thread::scope(|scope| journey.run(scope));
    if let (Err(lost), true) = (&result, journey.custody.state().asks()) {
        result = journey.recover(lost.clone());
    }
    journey.close(result)
}

/// One migration under way.
struct Journey<'a> {
    context: &'a Context<'a>,
    custody: Custody<'a>,
    logbook: Logbook<'a>,
    /// Kept here so that a failure can still be told to the destination.
    lines: Option<Lines>,
    /// The operator need not be waited for, or has given the word.
    may_switch: bool,
    /// What is left follows the guest, and does not come in the pause. Asked in hybrid only.
    rest_follows: bool,
    /// How often the destination was called again.
    calls: u32,
}

impl<'a> Journey<'a> {
    /// The score between its frames: watched by the pulse, and the guest set right before threads are joined.
    fn run<'scope>(&mut self, scope: &'scope Scope<'scope, 'a>) -> Result<(), Failure>
    where
        'a: 'scope,
    {
        let context = self.context;
        let result = survived(SCORE, || {
            start(scope, "pulse", move || {
                pulse::beat(&context.alarm, context.beat(), || context.pulse());
                context.alarm.insist(context.route.deadlines.beat);
            })?;
            self.score(scope)
        });
        let result = result.map_err(|failure| context.alarm.explain(failure));
        if let Err(failure) = &result {
            // It runs on as fast as before.
            let _ = context.hold_back(0, 0);
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
        self.logbook.enter(Phase::Connect);
        let lines = self.connect()?;
        let crew = Crew::assemble(scope, self.context, &lines)?;
        let left = match self.context.options.mode {
            Mode::Precopy | Mode::Hybrid => self.copy_while_it_runs(&lines, &crew)?,
            Mode::Postcopy => self.survey_all(&lines)?,
            Mode::Stopcopy => self.nothing_yet(&lines)?,
        };
        let forwarding = self.stand_by(scope, &lines)?;
        self.switch_over(&lines, &crew, left)?;
        self.serve_pages(&lines)?;
        self.custody.on(SourceEvent::Complete)?;
        self.last_words(&lines, forwarding)
    }

    /// All threads are gone: nothing may linger, and the report says what happened.
    fn close(self, result: Result<(), Failure>) -> Departure {
        let outcome = self.custody.outcome();
        // It was written in the pause, where no disk is waited for. The host may die; the record outlives this process.
        let _ = self.custody.sync();
        if outcome != Outcome::Moved && self.context.logging() {
            self.context.guest.stop_dirty_log();
        }
        if outcome == Outcome::Moved {
            self.context.guest.release();
        }
        let bytes = self.lines.as_ref().map_or(0, |lines| lines.control.told());
        let failure = result.err();
        let report = self.logbook.finish(outcome, failure.clone(), self.custody.standing(), bytes);
        let left = self.custody.is_in_doubt() || self.custody.may_be_held();
        let parted = left.then(|| {
            Parted::of(self.context, self.custody, self.calls, self.rest_follows, report.clone(), failure)
        });
        Departure { report, parted }
    }

    /// Connections, hello and pre-flight.
    fn connect(&mut self) -> Result<Lines, Failure> {
        let lines = connect::connect(self.context, |control| {
            self.lines = Some(Lines::only(control.clone(), Duration::ZERO));
        })?;
        self.lines = Some(lines.clone());
        let (route, session) = (&self.context.route, self.context.session);
        self.custody.keep_journal(route.journals, session, route.dial.to())?;
        Ok(lines)
    }
}

/// Microseconds since `then`.
fn us_since(then: Instant) -> u64 {
    then.elapsed().as_micros() as u64
}
