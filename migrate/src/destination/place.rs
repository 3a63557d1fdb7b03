//! Where guests are taken in: from the first caller to the conversation, and the connections of one that goes on.

use std::collections::HashSet;
use std::net::Shutdown;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver as Callers, channel};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Instant;

use super::Arrival;
use super::context::Context;
use super::custody::Custody;
use super::landing::Landing;
use super::reception::{Caller, Desk, Memory};
use super::session::{End, Lines, Session};
use crate::channel::line::Line;
use crate::channel::{Deadlines, Listen};
use crate::failure::Failure;
use crate::guest::{Arriving, Description, Host};
use crate::journal::{Journals, Promise};
use crate::priority::Parting;
use crate::progress::{Event, Observer};
use crate::report::Phase;
use crate::threads::start;
use crate::wire::limits::STREAMS;
use crate::wire::message::{Accept, Refuse, tame};
use crate::wire::{Codec, Kind, Message, Preflight, RamMap, Role};

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
            start(scope, "accept", move || {
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
        let accepted = accepting.map(|accepting| {
            if !accepting.is_finished() {
                listen.wake();
            }
            accepting.join()
        });
        desk.close();
        let why = match accepted {
            Err(failure) => failure.to_string(),
            Ok(Ok(Err(error))) => error.to_string(),
            Ok(_) => return arrival,
        };
        // Whoever is here already waits on, and asks again.
        match arrival {
            Arrival::Failed { .. } => Arrival::Failed { reason: format!("cannot accept connections: {why}") },
            arrival => arrival,
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
        let Admitted { preflight, map, guest, heard, parting } =
            match preflight(&control, self.deadlines, journals, host) {
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
        let rehearsal = guest.rehearse();
        let accepted = control.tell(&Message::Accept(Accept {
            rehearsal,
            took_us: Some(heard.elapsed().as_micros() as u64),
            codec: Codec::of_offer(&preflight.codecs),
        }));
        let lines =
            match accepted.and_then(|()| self.welcome(&control, &preflight, hello.call, preflight.packets)) {
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
            parting,
        };
        let report = context.blank_report();
        let session = Session { context: &context, custody, report, session: hello.session, call: 0 };
        let arrival = match session.converse(self.desk, &lines) {
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

    /// Waits for the connections of this call that carry pages; and packets, where there are to be any.
    pub(super) fn welcome(
        &self,
        control: &Line,
        preflight: &Preflight,
        call: u32,
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
            if hello.call < call {
                // Of a conversation that broke before it needed it.
                continue;
            }
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

/// A guest that may come.
struct Admitted {
    preflight: Preflight,
    map: RamMap,
    guest: Arc<dyn Arriving>,
    /// When that was asked.
    heard: Instant,
    /// How cores are parted for it.
    parting: Option<Parting>,
}

/// Hears what wants to come, and builds a machine for it or says every reason why not.
fn preflight(
    control: &Line,
    deadlines: Deadlines,
    journals: &Journals,
    host: &dyn Host,
) -> Result<Admitted, Failure> {
    control.set_limit(deadlines.idle)?;
    let mut preflight = match control.hear()? {
        Message::Preflight(preflight) => *preflight,
        other => return Err(control.unexpected(other.kind(), Kind::Preflight.word())),
    };
    let heard = Instant::now();
    let parting = Parting::as_told(&preflight);
    if !preflight.vcpu_cores.is_empty() {
        parting.iter().for_each(Parting::leave_vcpu_cores);
    }
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
            Ok(guest) => return Ok(Admitted { preflight, map, guest, heard, parting }),
            Err(error) => reasons.push(format!("cannot build the machine: {error}")),
        }
    }
    let reasons: Vec<_> = reasons.iter().take(REASONS).map(|reason| tame(reason)).collect();
    control.tell(&Message::Refuse(Refuse { reasons: reasons.clone() }))?;
    Err(Failure::Refused { peer: format!("this host, asked by {},", control.peer()), reasons })
}
