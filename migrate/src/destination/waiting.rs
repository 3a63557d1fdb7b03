//! A guest that is here, or ran here, and waits for its source to come back.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::{self, Scope};
use std::time::{Duration, Instant};

use uuid::Uuid;

use super::context::Context;
use super::custody::Custody;
use super::fault::Placing;
use super::landing::Landing;
use super::place::Place;
use super::reception::Caller;
use super::session::{End, Lines, Session};
use super::{Arrival, ArrivalReport};
use crate::channel::line::Line;
use crate::failure::Failure;
use crate::guest::Arriving;
use crate::handover::{Destination, DestinationEvent};
use crate::pages::{PageRun, PageSet};
use crate::priority::Parting;
use crate::progress::Event;
use crate::threads::start;
use crate::wire::limits::LONGEST_RECOVERY;
use crate::wire::rejoin::{Fate, Knows, Rejoin, Told};
use crate::wire::runs::bitmap_frames;
use crate::wire::{Kind, Message, Preflight, RamMap, Role};

/// All that is here of it.
pub struct Waiting {
    guest: Arc<dyn Arriving>,
    custody: Custody,
    report: ArrivalReport,
    preflight: Preflight,
    map: RamMap,
    landing: Arc<Landing>,
    placing: Option<Arc<Placing>>,
    session: Uuid,
    call: u32,
    reason: String,
}

impl Waiting {
    pub(super) fn new(session: Session<'_>, reason: String) -> Self {
        let Session { context, custody, report, session, call } = session;
        Self {
            guest: Arc::clone(&context.guest),
            custody,
            report,
            preflight: context.preflight.clone(),
            map: context.map.clone(),
            landing: Arc::clone(&context.landing),
            placing: context.placing.get().cloned(),
            session,
            call,
            reason,
        }
    }

    /// The machine.
    #[must_use]
    pub fn guest(&self) -> &Arc<dyn Arriving> {
        &self.guest
    }

    /// Whether it has never run here: its source may have sent commit, or run it on.
    #[must_use]
    pub fn is_held(&self) -> bool {
        self.custody.state() == Destination::Held
    }

    /// Whether it ran here and was suspended, because pages are missing.
    #[must_use]
    pub fn is_orphaned(&self) -> bool {
        self.custody.state() == Destination::Orphaned
    }

    /// Pages that are missing.
    #[must_use]
    pub fn missing(&self) -> Vec<PageRun> {
        self.placing.as_ref().map_or_else(Vec::new, |placing| placing.missing().runs().collect())
    }

    /// How many.
    #[must_use]
    pub fn missing_pages(&self) -> u64 {
        self.placing.as_ref().map_or(0, |placing| placing.remaining())
    }

    /// How long its source calls again by itself.
    pub(super) fn recovery(&self) -> Duration {
        Duration::from_millis(self.preflight.recovery_ms).min(LONGEST_RECOVERY)
    }

    /// Why it waits, in one line.
    #[must_use]
    pub fn reason(&self) -> &str {
        &self.reason
    }

    pub(super) fn session(&self) -> Uuid {
        self.session
    }

    pub(super) fn call(&self) -> u32 {
        self.call
    }

    /// Nobody has come back in time.
    fn give_up(mut self: Box<Self>) -> Arrival {
        if self.custody.state() == Destination::Bereft {
            // Bereft knows this event.
            let _ = self.custody.on(DestinationEvent::GiveUp);
        }
        if self.custody.state() == Destination::Arrived {
            return Arrival::Arrived { guest: self.guest, report: Box::new(self.report), unheard: None };
        }
        Arrival::Waits(self)
    }

    /// The operator's word that the source does not run it and never will: it runs here.
    ///
    /// # Errors
    /// When it has run here already, or part of it is missing, or it cannot be started.
    pub(super) fn force(mut self: Box<Self>) -> Result<Arrival, (Box<Self>, String)> {
        let missing = self.missing_pages();
        if missing > 0 {
            return Err((self, format!("cannot run the guest here: {missing} of its pages never arrived")));
        }
        let forced = self.custody.on(DestinationEvent::Forced);
        match forced.and_then(|()| self.custody.on(DestinationEvent::Complete)) {
            Ok(()) => {
                self.placing.iter().for_each(|placing| placing.faults.close());
                self.custody.sync();
                let (guest, report) = (Arc::clone(&self.guest), Box::new(self.report.clone()));
                Ok(Arrival::Arrived { guest, report, unheard: Some(self) })
            }
            Err(failure) => Err((self, failure.to_string())),
        }
    }

    /// The operator's word that the source runs it, or that it is lost: nothing of it is needed here.
    pub(super) fn let_go(mut self) {
        // Whoever has run it and lacks a part of it stays suspended until the process ends.
        let _ = self.custody.on(DestinationEvent::Disowned);
    }
}

impl fmt::Debug for Waiting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.custody.state();
        f.debug_struct("Waiting").field("state", &state).field("reason", &self.reason).finish_non_exhaustive()
    }
}

impl Place<'_> {
    /// Waits until the source comes back, goes on with it, and so on, to an end or until `limit` has passed without it. With
    /// no time no source is told the guest's fate, even if it has called already: the end would come in the middle of one of its next
    /// calls.
    pub(super) fn wait(&self, mut waiting: Box<Waiting>, limit: Duration) -> Arrival {
        if limit.is_zero() {
            return waiting.give_up();
        }
        loop {
            let since = Instant::now();
            let Some(caller) = self.caller(&waiting, limit) else { return waiting.give_up() };
            let us = since.elapsed().as_micros() as u64;
            match self.rejoin(waiting, caller, us) {
                End::Over(arrival) => return arrival,
                End::Waits(again) => {
                    self.observer.tell(Event::Lost { cause: again.reason.clone() });
                    waiting = again;
                }
            }
        }
    }

    /// The source's next call. Meanwhile holes are filled, and it is noted who waits for what.
    fn caller(&self, waiting: &Waiting, limit: Duration) -> Option<Caller> {
        let over = AtomicBool::new(false);
        thread::scope(|scope| {
            if let Some(placing) = waiting.placing.as_ref().filter(|placing| placing.remaining() > 0) {
                // Without it who touches a hole waits for the source, too.
                let _ = start(scope, "faults", || placing.watch_alone(&over));
            }
            let deadline = Instant::now().checked_add(limit);
            let caller = loop {
                let next = match deadline {
                    None => self.callers.recv().ok(),
                    Some(deadline) => {
                        self.callers.recv_timeout(deadline.saturating_duration_since(Instant::now())).ok()
                    }
                };
                // Connections of a conversation that broke before it needed them.
                if next.as_ref().is_none_or(|caller| caller.hello.role == Role::Control) {
                    break next;
                }
            };
            over.store(true, Ordering::Release);
            caller
        })
    }

    /// The source is back.
    fn rejoin(&self, mut waiting: Box<Waiting>, caller: Caller, us: u64) -> End {
        let (control, call) = (caller.line, caller.hello.call);
        let calls = call.saturating_sub(waiting.call);
        waiting.call = call;
        let begun = self.tell_fate(&mut waiting, &control);
        let lines = match begun {
            Ok(Some(lines)) => lines,
            // It runs on the source.
            Ok(None) => {
                let reason = format!("{} says that the guest runs there", control.peer());
                if waiting.custody.state() == Destination::Discarded {
                    return End::Over(Arrival::Failed { reason });
                }
                waiting.reason = reason;
                return End::Waits(waiting);
            }
            Err(failure) => {
                control.link().shut(std::net::Shutdown::Both);
                waiting.custody.fail(&failure);
                waiting.reason = failure.to_string();
                return End::Waits(waiting);
            }
        };
        self.observer.tell(Event::Found { us, calls });
        waiting.custody.promise();
        let Waiting { guest, custody, report, preflight, map, landing, placing, session, .. } = *waiting;
        let parting = Parting::as_told(&preflight);
        let context = Context {
            ram: guest.ram(),
            landing,
            alarm: Arc::default(),
            placing: placing.map_or_else(OnceLock::new, OnceLock::from),
            preflight,
            map,
            guest,
            control,
            deadlines: self.deadlines,
            observer: self.observer,
            parting,
        };
        Session { context: &context, custody, report, session, call }.converse(self.desk, &lines)
    }

    /// Says what became of the guest, and what is missing; then come the connections for it. None: it runs on the source.
    fn tell_fate(&self, waiting: &mut Waiting, control: &Line) -> Result<Option<Lines>, Failure> {
        control.set_limit(self.deadlines.idle)?;
        let Rejoin { guest, epoch, knows } = match control.hear()? {
            Message::Rejoin(rejoin) => rejoin,
            other => return Err(control.unexpected(other.kind(), Kind::Rejoin.word())),
        };
        if guest != waiting.preflight.description.uuid {
            return Err(control.unexpected(Kind::Rejoin, "the guest of this session"));
        }
        let custody = &mut waiting.custody;
        if knows == Knows::Kept {
            let later = epoch > waiting.preflight.description.epoch;
            if custody.state() == Destination::Held || (later && custody.state() == Destination::Bereft) {
                custody.on(DestinationEvent::Disowned)?;
            }
            let fate = if custody.state() == Destination::Arrived { Fate::Arrived } else { Fate::NotRunning };
            control.tell(&Message::Fate(Told {
                fate,
                missing: 0,
                reason: "it is left to the source".to_owned(),
            }))?;
            return Ok(None);
        }
        let (fate, reason) = match custody.state() {
            Destination::Held => (Fate::Held, "it waits for commit"),
            Destination::Arrived => (Fate::Arrived, "it runs here"),
            _ => (Fate::Running, "it runs here, as far as its memory has come"),
        };
        if custody.state() != Destination::Arrived {
            custody.on(DestinationEvent::Rejoined)?;
        }
        let missing = waiting.placing.as_ref().map_or_else(PageSet::default, |placing| placing.missing());
        control.tell(&Message::Fate(Told { fate, missing: missing.len(), reason: reason.to_owned() }))?;
        for (first, words) in bitmap_frames(&missing) {
            control.tell(&Message::Missing { first, words: words.to_vec() })?;
        }
        if missing.is_empty() {
            return Ok(Some(Lines::default()));
        }
        self.welcome(control, &waiting.preflight, waiting.call, false).map(Some)
    }
}

impl<'a> Session<'a> {
    /// The rest of the score, with a source that has come back.
    pub(super) fn go_on<'scope>(
        &mut self,
        scope: &'scope Scope<'scope, 'a>,
        lines: &Lines,
    ) -> Result<(), Failure>
    where
        'a: 'scope,
    {
        let context = self.context;
        if let (Some(placing), Some(urgent)) = (context.placing.get(), lines.urgent.clone()) {
            placing.request_again(&urgent)?;
            self.watch_faults(scope, placing, urgent)?;
        }
        match self.custody.state() {
            Destination::Held => {
                self.wait_commit()?;
                self.run_guest()?;
            }
            Destination::Arrived => {
                if let Some(placing) = context.placing.get() {
                    context.control.tell(&Message::Complete(placing.figures()))?;
                }
            }
            // The link may have broken before the source could be told.
            _ => {
                if let Some(placing) = context.placing.get() {
                    placing.set_running(Instant::now(), context)?;
                }
            }
        }
        self.wait_complete()?;
        self.last_words()
    }
}
