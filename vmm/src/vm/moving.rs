//! Migrations in the background: a thread each, which runs the engine and records what it says.

use std::io;
use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, PoisonError};
use std::thread;
use std::time::Duration;

use migrate::client::types::MigrationStatus;
use migrate::guest::GuestError;
use migrate::options::Options;
use migrate::progress::{Event, Observer};
use migrate::report::{Outcome, Report};
use migrate::source::{Departure, Parted};
use migrate::{Arrival, Cancel, Receiver};
use scheduling::near;

use crate::config::ArrivalConfig;
use crate::control::{Ending, Refusal};
use crate::machine::HostSupply;
use crate::migration::{Arrivals, Resident};
use crate::sandbox::{self, ThreadKind};

use super::doubt::{self, Doubt};
use super::stage::Stage;
use super::{Inner, VmHandle};

/// Between two attempts to receive a guest: a host that cannot accept connections now is not asked without pause.
/// Callers wait in the listener's queue meanwhile.
pub(super) const BETWEEN_ATTEMPTS: Duration = Duration::from_millis(100);

/// Starts to move the guest away.
pub(super) fn depart_in_background(handle: &VmHandle, options: Options) -> Result<(), Refusal> {
    let inner = Arc::clone(&handle.inner);
    let _one = handle.inner.order();
    let guest = Arc::clone(inner.stage().at_hand("move the guest")?);
    if !guest.is_running() {
        return Err(Refusal::Conflict("cannot move the guest: it is paused; `vmm resume` it first".into()));
    }
    let cancel = Cancel::new();
    let (moving, leaving, engine_cancel) = (Arc::clone(&inner), Arc::clone(&guest), cancel.clone());
    leave_in_background(&inner, Stage::Here(Arc::clone(&guest)), guest, options, cancel, move |options| {
        // It may be the destination of an attempt before, and wait for what became of it.
        doubt::tell_kept(&moving, &leaving, options);
        migrate::migrate(&*leaving, options, &moving.journals, &engine_cancel, &Recorder(&moving))
    })
}

/// Has a thread run the engine for a guest that leaves. Where none can be started it is in the stage `before`, as it was.
pub(super) fn leave_in_background(
    inner: &Arc<Inner>,
    before: Stage,
    guest: Arc<Resident>,
    options: Options,
    cancel: Cancel,
    engine: impl FnOnce(&Options) -> Departure + Send + 'static,
) -> Result<(), Refusal> {
    let was = {
        let mut life = inner.lock();
        if life.is_rebooting() {
            let why = "cannot move the guest: it has reset and is about to boot again; try again in a moment";
            return Err(Refusal::Conflict(why.into()));
        }
        life.stage = Stage::Leaving(Arc::clone(&guest));
        life.cancel = Some(cancel);
        mem::replace(&mut life.migration, MigrationStatus { active: true, ..MigrationStatus::default() })
    };
    let leaving = Arc::clone(inner);
    let work = move || {
        sandbox::confine(ThreadKind::Departing);
        let departure = catch_unwind(AssertUnwindSafe(|| engine(&options)))
            .unwrap_or_else(|_| astray(&leaving, &guest, &options));
        settle(&leaving, &guest, &options, departure);
    };
    let (work, here) = near(work);
    let started = thread::Builder::new().name("migration".into()).spawn(work).map(drop);
    drop(here);
    started.map_err(|error| {
        let mut life = inner.lock();
        life.cancel = None;
        life.migration = was;
        drop(life);
        inner.enter(before);
        Refusal::Failed(format!("cannot start a thread for the migration: {error}"))
    })
}

/// Records how a guest that was to leave has ended here, or stands.
fn settle(inner: &Arc<Inner>, guest: &Arc<Resident>, options: &Options, departure: Departure) {
    let Departure { report, parted } = departure;
    let moved = report.outcome == Outcome::Moved;
    let (in_doubt, to_be_told): (Vec<_>, Vec<_>) = parted.into_iter().partition(Parted::is_in_doubt);
    let stage = match report.outcome {
        Outcome::Kept => Stage::Here(Arc::clone(guest)),
        Outcome::Unknown => {
            let reason = report.reason.clone().unwrap_or_default();
            Stage::InDoubt(Doubt::left(guest, in_doubt.into_iter().next(), options, &reason))
        }
        Outcome::Moved => Stage::Ended,
    };
    inner.conclude(stage, report);
    if moved {
        inner.end(Ending::Moved { to: options.to.clone() });
    }
    if to_be_told.is_empty() {
        return;
    }
    inner.untold.lock().unwrap_or_else(PoisonError::into_inner).extend(to_be_told);
    doubt::tell_kept_for_a_while(inner, guest, options);
}

/// The end of an engine that panicked. How far it came is not known, so the guest must not run here.
fn astray(inner: &Inner, guest: &Resident, options: &Options) -> Departure {
    let mut reason = "the migration engine failed; its message is on the VMM's standard error".to_owned();
    if let Err(error) = guest.pause() {
        reason += &format!("; {error}");
    }
    let report = Report {
        outcome: Outcome::Unknown,
        unverified: options.verify.then(|| reason.clone()),
        reason: Some(reason),
        residual_bytes: guest.memory(),
        ..Report::blank(&guest.identity().name, &options.to, options.mode, options.streams)
    };
    Departure { parted: Some(Parted::astray(guest, &inner.journals, report.clone())), report }
}

/// Listens until a guest has arrived. Attempts that fail are told and followed by the next.
pub(super) fn receive_in_background(
    handle: &VmHandle,
    supply: HostSupply,
    arrival: ArrivalConfig,
    receiver: Arc<Receiver>,
) -> io::Result<()> {
    let inner = Arc::clone(&handle.inner);
    let built = {
        let inner = Arc::downgrade(&handle.inner);
        move |guest| {
            let entered = inner.upgrade().is_some_and(|inner| inner.enter(Stage::Arriving(guest)));
            entered.then_some(()).ok_or_else(|| GuestError("this VMM is ending".into()))
        }
    };
    let arrivals = Arrivals::new(supply, arrival, inner.hooks(0), built);
    thread::Builder::new()
        .name("receive".into())
        .spawn(move || receive(&inner, &arrivals, &receiver))
        .map(drop)
}

fn receive(inner: &Arc<Inner>, arrivals: &Arrivals, receiver: &Receiver) {
    sandbox::confine(ThreadKind::Arriving);
    loop {
        let arrival = receiver.receive(arrivals, &Recorder(inner));
        if !take_in(inner, arrivals, receiver, arrival) || inner.ends_within(BETWEEN_ATTEMPTS) {
            return;
        }
        // An order that came too late may have ended the waiting for another guest.
        receiver.go_on();
    }
}

/// Sees an arrival through to its end. Whether the next guest is to be waited for.
fn take_in(inner: &Arc<Inner>, arrivals: &Arrivals, receiver: &Receiver, mut arrival: Arrival) -> bool {
    loop {
        arrival = match (arrival, arrivals.latest()) {
            (Arrival::Arrived { unheard, .. }, Some(guest)) => {
                let runs = guest.is_running();
                if inner.enter(Stage::Here(guest)) {
                    // The order that ended the waiting has been obeyed.
                    receiver.go_on();
                    if !runs {
                        eprintln!(
                            "vmm: all of the guest is here, but it could not be run on: `vmm resume` runs it"
                        );
                    }
                }
                // Whatever the guest does from here on: its source may want to know where it is, or its operator may.
                let mut unheard = unheard;
                while let Some(waiting) = unheard {
                    unheard = match receiver.await_source(waiting, Duration::MAX, &Recorder(inner)) {
                        Arrival::Arrived { unheard, .. } => unheard,
                        _ => None,
                    };
                }
                return false;
            }
            (Arrival::Waits(waiting), Some(guest)) => {
                match doubt::wait_for_source(inner, receiver, &guest, waiting) {
                    Some(decided) => decided,
                    None => return false,
                }
            }
            (Arrival::Failed { reason }, _) => {
                let waits = inner.enter(Stage::Waiting);
                if waits {
                    eprintln!("vmm: a guest did not arrive: {reason}; waiting for the next");
                }
                return waits;
            }
            (_, None) => unreachable!("a guest arrives in a machine that was built"),
        };
    }
}

/// Keeps what the engine says, and passes it on.
pub(super) struct Recorder<'a>(pub(super) &'a Inner);

impl Observer for Recorder<'_> {
    fn tell(&self, event: Event) {
        match &event {
            Event::Progress(progress) => self.0.lock().migration.progress = Some(*progress),
            // The end is told after it has been recorded: see `conclude`.
            Event::Ended { .. } => return,
            Event::TurnedAway { peer, reason } => eprintln!("vmm: {peer} was turned away: {reason}"),
            Event::Lost { cause } => {
                self.0.lock().migration.lost = Some(cause.clone());
                eprintln!("vmm: the link was lost: {cause}");
            }
            Event::Found { us, .. } => {
                self.0.lock().migration.lost = None;
                self.0.ended.notify_all();
                eprintln!("vmm: the link is back after {} ms", us / 1000);
            }
            _ => {}
        }
        // Nobody may be listening.
        let _ = self.0.events.send(event);
    }
}

impl Inner {
    /// Records how a migration ended, then tells.
    fn conclude(self: &Arc<Self>, stage: Stage, report: Report) {
        let mut life = self.lock();
        life.stage = stage;
        life.cancel = None;
        life.migration = MigrationStatus { report: Some(report.clone()), ..MigrationStatus::default() };
        drop(life);
        let _ = self.events.send(Event::Ended { report: Box::new(report) });
        self.follow_own_end(&mut self.lock());
        self.ended.notify_all();
    }
}
