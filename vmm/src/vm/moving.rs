//! Migrations in the background: a thread each, which runs the engine and records what it says.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use migrate::client::types::MigrationStatus;
use migrate::guest::GuestError;
use migrate::options::Options;
use migrate::progress::{Event, Observer};
use migrate::report::{Outcome, Report};
use migrate::{Arrival, Cancel, Receiver};

use crate::config::ArrivalConfig;
use crate::control::{Ending, Refusal};
use crate::kvm::KvmHost;
use crate::migration::{Arrivals, Resident};
use crate::sandbox::{self, ThreadKind};

use super::stage::{Doubt, Stage};
use super::{Inner, VmHandle};

/// Between two attempts to receive a guest: a host that cannot accept connections now is not asked without pause.
/// Callers wait in the listener's queue meanwhile.
const BETWEEN_ATTEMPTS: Duration = Duration::from_millis(100);

/// Starts to move the guest away.
pub(super) fn depart_in_background(handle: &VmHandle, options: Options) -> Result<(), Refusal> {
    let inner = Arc::clone(&handle.inner);
    let _one = handle.inner.order();
    let guest = Arc::clone(inner.stage().at_hand("move the guest")?);
    if !guest.is_running() {
        return Err(Refusal::Conflict("cannot move the guest: it is paused; `vmm resume` it first".into()));
    }
    let cancel = Cancel::new();
    {
        let mut life = inner.lock();
        if life.is_rebooting() {
            let why = "cannot move the guest: it has reset and is about to boot again; try again in a moment";
            return Err(Refusal::Conflict(why.into()));
        }
        life.stage = Stage::Leaving(Arc::clone(&guest));
        life.migration = MigrationStatus { active: true, progress: None, report: None };
        life.cancel = Some(cancel.clone());
    }
    let leaving = Arc::clone(&guest);
    let started = thread::Builder::new()
        .name("migration".into())
        .spawn(move || depart(&inner, &leaving, &options, &cancel))
        .map(drop);
    started.map_err(|error| {
        let mut life = handle.inner.lock();
        life.cancel = None;
        life.migration.active = false;
        drop(life);
        handle.inner.enter(Stage::Here(guest));
        Refusal::Failed(format!("cannot start a thread for the migration: {error}"))
    })
}

fn depart(inner: &Arc<Inner>, guest: &Arc<Resident>, options: &Options, cancel: &Cancel) {
    sandbox::confine(ThreadKind::Departing);
    let engine = || migrate::migrate(&**guest, options, cancel, &Recorder(inner));
    let report = catch_unwind(AssertUnwindSafe(engine)).unwrap_or_else(|_| lost(guest, options));
    let moved = report.outcome == Outcome::Moved;
    let stage = match report.outcome {
        Outcome::Kept => Stage::Here(Arc::clone(guest)),
        Outcome::Unknown => Stage::InDoubt(Doubt { guest: Arc::clone(guest), missing: None }),
        Outcome::Moved => Stage::Ended,
    };
    inner.conclude(stage, report);
    if moved {
        inner.end(Ending::Moved { to: options.to.clone() });
    }
}

/// The report of an engine that panicked. How far it came is not known, so the guest must not run here.
fn lost(guest: &Resident, options: &Options) -> Report {
    let mut reason = "the migration engine failed; its message is on the VMM's standard error".to_owned();
    if let Err(error) = guest.pause() {
        reason += &format!("; {error}");
    }
    Report {
        outcome: Outcome::Unknown,
        unverified: options.verify.then(|| reason.clone()),
        reason: Some(reason),
        residual_bytes: guest.memory(),
        ..Report::blank(&guest.identity().name, &options.to, options.mode, options.streams)
    }
}

/// Listens until a guest has arrived. Attempts that fail are told and followed by the next.
pub(super) fn receive_in_background(
    handle: &VmHandle,
    kvm: KvmHost,
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
    let arrivals = Arrivals::new(kvm, arrival, inner.hooks(0), built);
    thread::Builder::new()
        .name("receive".into())
        .spawn(move || receive(&inner, &arrivals, &receiver))
        .map(drop)
}

fn receive(inner: &Arc<Inner>, arrivals: &Arrivals, receiver: &Receiver) {
    sandbox::confine(ThreadKind::Arriving);
    loop {
        let arrival = receiver.receive(arrivals, &Recorder(inner));
        match (arrival, arrivals.latest()) {
            (Arrival::Arrived { .. }, Some(guest)) => {
                inner.enter(Stage::Here(guest));
                return;
            }
            (Arrival::Orphaned { reason, faults, .. }, Some(guest)) => {
                eprintln!("vmm: {reason}");
                inner.enter(Stage::InDoubt(Doubt { guest, missing: Some(faults) }));
                return;
            }
            (Arrival::Failed { reason }, _) => {
                if !inner.enter(Stage::Waiting) {
                    return;
                }
                eprintln!("vmm: a guest did not arrive: {reason}; waiting for the next");
                if inner.ends_within(BETWEEN_ATTEMPTS) {
                    return;
                }
            }
            (_, None) => unreachable!("a guest arrives in a machine that was built"),
        }
    }
}

/// Keeps what the engine says, and passes it on.
struct Recorder<'a>(&'a Inner);

impl Observer for Recorder<'_> {
    fn tell(&self, event: Event) {
        match &event {
            Event::Progress(progress) => self.0.lock().migration.progress = Some(*progress),
            // The end is told after it has been recorded: see `conclude`.
            Event::Ended { .. } => return,
            Event::TurnedAway { peer, reason } => eprintln!("vmm: {peer} was turned away: {reason}"),
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
        life.migration = MigrationStatus { active: false, progress: None, report: Some(report.clone()) };
        drop(life);
        let _ = self.events.send(Event::Ended { report: Box::new(report) });
        self.follow_own_end(&mut self.lock());
        self.ended.notify_all();
    }
}
