//! One arrival: from the first caller to the guest that runs here, or to a machine thrown away.

use std::collections::HashSet;
use std::net::Shutdown;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver as Callers, channel};
use std::sync::{Arc, OnceLock};
use std::thread::{self, Scope};
use std::time::{Duration, Instant};

use uuid::Uuid;

use super::context::Context;
use super::custody::Custody;
use super::landing::{Landing, Scratch, run_ahead};
use super::reception::{Caller, Desk, Memory};
use super::waiting::Waiting;
use super::{Arrival, ArrivalReport};
use crate::channel::line::Line;
use crate::channel::{Deadlines, Listen};
use crate::failure::Failure;
use crate::guest::{Arriving, Description, HeardClock, Host};
use crate::handover::{Destination, DestinationEvent};
use crate::journal::{Journals, Promise};
use crate::pages::PageSet;
use crate::priority::{core_beyond, give_way};
use crate::progress::{Event, Observer};
use crate::pulse;
use crate::report::Phase;
use crate::wire::limits::STREAMS;
use crate::wire::message::{Accept, Refuse, tame};
use crate::wire::{Kind, Message, Preflight, RamMap, Role};

/// Reasons of a refusal that are told: more than there are features between the oldest CPU and the latest.
const REASONS: usize = 256;

/// Does `work` while callers are accepted and heard. `stopped`: no more are to be.
pub(super) fn attended(
    listen: &dyn Listen,
    stopped: &AtomicBool,
    desk: &Arc<Desk>,
    work: impl FnOnce(&Callers<Caller>) -> Arrival,
) -> Arrival {
    let (sender, callers) = channel();
    let over = AtomicBool::new(false);
    let over = &over;
    thread::scope(|scope| {
        let accepting = {
            let desk = Arc::clone(desk);
            scope.spawn(move || {
                let ends = || over.load(Ordering::SeqCst) || stopped.load(Ordering::SeqCst);
                let accepted = Arc::clone(&desk).accept(scope, listen, &sender, ends);
                // Without a listener no guest can come, but one that is here already goes on.
                if !desk.busy() {
                    desk.close();
                }
                accepted
            })
        };
        let arrival = work(&callers);
        over.store(true, Ordering::SeqCst);
        // The listener first: whoever it has not accepted by then waits in its queue for the next time.
        if !accepting.is_finished() {
            listen.wake();
        }
        let accepted = accepting.join();
        desk.close();
        match accepted {
            Ok(Err(error)) if matches!(arrival, Arrival::Failed { .. }) => {
                Arrival::Failed { reason: format!("cannot accept connections: {error}") }
            }
            _ => arrival,
        }
    })
}

/// Where guests are taken in.
pub(super) struct Place<'a> {
    pub(super) desk: &'a Desk<'a>,
    pub(super) callers: &'a Callers<Caller>,
    pub(super) memory: &'a Memory,
    pub(super) deadlines: Deadlines,
    pub(super) observer: &'a dyn Observer,
}

/// How a conversation ended.
pub(super) enum End {
    Over(Arrival),
    /// The source is to come back.
    Waits(Box<Waiting>),
}

impl Place<'_> {
    /// Waits for a guest's control connection and takes the guest in.
    pub(super) fn receive(&self, host: &dyn Host) -> Arrival {
        match self.callers.recv() {
            Ok(caller) => self.take_in(caller, host),
            Err(_) => Arrival::Failed { reason: "stopped listening before a guest came".to_owned() },
        }
    }

    /// From the pre-flight on.
    fn take_in(&self, caller: Caller, host: &dyn Host) -> Arrival {
        let Caller { hello, line: control } = caller;
        self.observer.tell(Event::Phase { phase: Phase::Connect });
        let failed = |failure: Failure| {
            control.abort(&failure);
            control.link().shut(Shutdown::Both);
            Arrival::Failed { reason: failure.to_string() }
        };
        let journals = self.memory.journals();
        let (preflight, map, guest) = match preflight(&control, self.deadlines, journals, host) {
            Ok(admitted) => admitted,
            Err(failure) => return failed(failure),
        };
        let Description { uuid, epoch, .. } = preflight.description;
        let mut custody = match journals.open(uuid, hello.session, epoch, Promise::Arriving, control.peer()) {
            Ok(journal) => Custody::new(Arc::clone(&guest), journal),
            Err(error) => {
                guest.discard();
                return failed(Failure::journal(journals, &error));
            }
        };
        let accepted = control.tell(&Message::Accept(Accept { rehearsal: guest.rehearse() }));
        let lines = match accepted.and_then(|()| self.welcome(&control, &preflight, preflight.packets)) {
            Ok(lines) => lines,
            Err(failure) => {
                custody.fail(&failure);
                return failed(failure);
            }
        };
        let context = Context {
            ram: guest.ram(),
            landing: Arc::new(Landing::new(map.limit(), preflight.streams)),
            alarm: Arc::default(),
            placing: OnceLock::new(),
            preflight,
            map,
            guest,
            control,
            deadlines: self.deadlines,
            observer: self.observer,
        };
        let report = context.blank_report();
        let session = Session { context: &context, custody, report, promised: Duration::ZERO, again: false };
        let arrival = match session.converse(self.desk, &lines, (hello.session, 0)) {
            End::Over(arrival) => arrival,
            End::Waits(waiting) => {
                self.observer.tell(Event::Lost { cause: waiting.reason().to_owned() });
                let limit = waiting.recovery();
                self.wait(waiting, limit)
            }
        };
        if let Arrival::Failed { .. } = arrival {
            self.memory.note_discarded(hello.session);
        }
        arrival
    }

    /// Waits for the connections that carry pages; and packets, where there are to be any.
    pub(super) fn welcome(
        &self,
        control: &Line,
        preflight: &Preflight,
        packets: bool,
    ) -> Result<Lines, Failure> {
        let mut wanted: HashSet<_> = (0..preflight.streams).map(|index| (Role::Data, index)).collect();
        if preflight.may_miss() {
            wanted.insert((Role::Urgent, 0));
        }
        if packets {
            wanted.insert((Role::Packets, 0));
        }
        let mut lines = Lines::default();
        let deadline = Instant::now() + self.deadlines.connect;
        while !wanted.is_empty() {
            let silent =
                || Failure::Silent { peer: control.peer().to_owned(), after: self.deadlines.connect };
            let left = deadline.saturating_duration_since(Instant::now());
            let Caller { hello, line } = self.callers.recv_timeout(left).map_err(|_| silent())?;
            if !wanted.remove(&(hello.role, hello.index)) {
                return Err(line.unexpected(Kind::Hello, "connections as the pre-flight says"));
            }
            line.set_limit(self.deadlines.idle)?;
            match hello.role {
                Role::Urgent => lines.urgent = Some(line),
                Role::Packets => lines.packets = Some(line),
                _ => lines.data.push(line),
            }
        }
        Ok(lines)
    }
}

/// Hears what wants to come, and builds a machine for it or says every reason why not.
fn preflight(
    control: &Line,
    deadlines: Deadlines,
    journals: &Journals,
    host: &dyn Host,
) -> Result<(Preflight, RamMap, Arc<dyn Arriving>), Failure> {
    control.set_limit(deadlines.idle)?;
    let mut preflight = match control.hear()? {
        Message::Preflight(preflight) => *preflight,
        other => return Err(control.unexpected(other.kind(), Kind::Preflight.word())),
    };
    let mut reasons = Vec::new();
    let Description { uuid, epoch, .. } = preflight.description;
    if let Some(later) = journals.superseding(uuid, epoch) {
        reasons.push(format!(
            "a later incarnation of this guest (epoch {}, this one has {epoch}) has run on this host or left it for {}: \
             this one has been superseded",
            later.epoch, later.peer
        ));
    }
    // Here it will be the next.
    preflight.description.epoch = epoch.saturating_add(1);
    if preflight.streams == 0 || preflight.streams > STREAMS {
        reasons.push(format!("{} data connections; 1 to {STREAMS} are possible", preflight.streams));
    }
    let map = RamMap::of(&preflight.description).map_err(|why| reasons.push(why)).ok();
    // A map that cannot be is not added up either.
    if map.is_some() {
        reasons.extend(host.examine(&preflight.description, preflight.may_miss()));
    }
    if let (Some(map), true) = (map, reasons.is_empty()) {
        match host.build(&preflight.description) {
            Ok(guest) => return Ok((preflight, map, guest)),
            Err(error) => reasons.push(format!("cannot build the machine: {error}")),
        }
    }
    let reasons: Vec<_> = reasons.iter().take(REASONS).map(|reason| tame(reason)).collect();
    control.tell(&Message::Refuse(Refuse { reasons: reasons.clone() }))?;
    Err(Failure::Refused { peer: format!("this host, asked by {},", control.peer()), reasons })
}

/// The lines that carry pages.
#[derive(Default)]
pub(super) struct Lines {
    data: Vec<Line>,
    pub(super) urgent: Option<Line>,
    /// For packets that come after the guest.
    packets: Option<Line>,
}

/// One arrival under way.
pub(super) struct Session<'a> {
    pub(super) context: &'a Context<'a>,
    pub(super) custody: Custody,
    pub(super) report: ArrivalReport,
    /// When it was last promised to obey commit.
    pub(super) promised: Duration,
    /// The source has come back after the link was lost.
    pub(super) again: bool,
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
    /// One conversation, from here to its end. `named`: the session, and how often its source has called again.
    pub(super) fn converse(mut self, desk: &Desk, lines: &Lines, named: (Uuid, u32)) -> End {
        desk.converse(&self.context.alarm);
        let result = thread::scope(|scope| self.run(scope, lines));
        self.close(result, named)
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
        for line in lines.data.clone() {
            scope.spawn(move || {
                give_way();
                context.receive_stream(&line, Role::Data);
            });
        }
        if let Some(line) = lines.urgent.clone() {
            scope.spawn(move || context.receive_stream(&line, Role::Urgent));
        }
        if let Some(line) = lines.packets.clone() {
            scope.spawn(move || context.receive_packets(&line));
        }
        // Without a core of its own it would only take turns with the streams, which can prepare memory themselves.
        if core_beyond(context.preflight.description.vcpus.saturating_add(context.preflight.streams)) {
            scope.spawn(move || {
                give_way();
                run_ahead(context);
            });
        }
        scope.spawn(move || {
            pulse::beat(&context.alarm, context.deadlines.beat, || {
                // Who hears the control connection learns of its end.
                let _ = context.control.tell(&Message::Alive);
            });
        });
        let scored = if self.again { self.go_on(scope, lines) } else { self.score(scope, lines) };
        let mut result = scored.map_err(|failure| context.alarm.explain(failure));
        if let Err(failure) = &mut result {
            *failure = context.last_word(failure.clone());
            self.decide_fate(failure);
            if self.custody.state() == Destination::Discarded {
                context.control.abort(failure);
            }
        }
        context.alarm.end();
        result
    }

    fn score<'scope>(&mut self, scope: &'scope Scope<'scope, 'a>, lines: &Lines) -> Result<(), Failure>
    where
        'a: 'scope,
    {
        let cargo = self.take_rounds(scope, lines)?;
        if cargo.postcopy {
            self.miss(scope, &cargo.missing, lines.urgent.as_ref())?;
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
                Kind::Pages | Kind::Zeros if context.placing.get().is_some() => {
                    return Err(control.unexpected(head.kind, "no more pages on this connection"));
                }
                Kind::Pages | Kind::Zeros => {
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
                    let postcopy = named || context.placing.get().is_some() || context.preflight.postcopy();
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

    fn close(mut self, result: Result<(), Failure>, named: (Uuid, u32)) -> End {
        let context = self.context;
        let (heard, reason) =
            (result.is_ok(), result.err().map_or_else(String::new, |failure| failure.to_string()));
        self.report.traffic = context.landing.traffic();
        let missing = context.placing.get().map_or(0, |placing| placing.remaining());
        if self.custody.state() == Destination::Bereft && missing == 0 {
            // What was on its way has come after the link was seen to break. Bereft knows this event.
            let _ = self.custody.on(DestinationEvent::Complete);
        }
        match self.custody.state() {
            Destination::Arrived => {
                self.report.postcopy = context.placing.get().map(|placing| placing.figures());
                let (guest, report) = (Arc::clone(&context.guest), Box::new(self.report.clone()));
                let unheard = (!heard).then(|| Box::new(Waiting::new(context, self, named, reason)));
                End::Over(Arrival::Arrived { guest, report, unheard })
            }
            Destination::Held | Destination::Bereft | Destination::Orphaned => {
                End::Waits(Box::new(Waiting::new(context, self, named, reason)))
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

    fn blank_report(&self) -> ArrivalReport {
        ArrivalReport {
            guest: tame(&self.preflight.description.name),
            from: self.control.peer().to_owned(),
            mode: self.preflight.mode,
            traffic: crate::report::Traffic::default(),
            restore_us: 0,
            resume_us: 0,
            state_bytes: 0,
            postcopy: None,
            verification: None,
        }
    }
}
