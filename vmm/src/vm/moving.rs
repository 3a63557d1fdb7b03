//! Migrations in the background: a thread each, which runs the engine and records what it says.

use std::io;
use std::sync::Arc;
use std::thread;

use migrate::client::types::MigrationStatus;
use migrate::options::Options;
use migrate::progress::{Event, Observer};
use migrate::report::{Outcome, Report};
use migrate::{Arrival, Cancel, Receiver};

use crate::control::{Ending, Refusal};
use crate::kvm::KvmHost;
use crate::migration::{Arrivals, Resident};

use super::stage::{Doubt, Stage};
use super::{Inner, VmHandle};

/// Starts to move the guest away.
pub(super) fn depart_in_background(handle: &VmHandle, options: Options) -> Result<(), Refusal> {
    let inner = Arc::clone(&handle.inner);
    let cancel = Cancel::new();
    let guest = {
        let mut life = inner.lock();
        let guest = Arc::clone(life.stage.at_hand("move the guest")?);
        if !guest.is_running() {
            return Err(Refusal::Conflict(
                "cannot move the guest: it is paused; `vmm resume` it first".into(),
            ));
        }
        life.stage = Stage::Leaving(Arc::clone(&guest));
        life.migration = MigrationStatus { active: true, progress: None, report: None };
        life.cancel = Some(cancel.clone());
        guest
    };
    let leaving = Arc::clone(&guest);
    let started = thread::Builder::new()
        .name("migration".into())
        .spawn(move || depart(&inner, &leaving, &options, &cancel))
        .map(drop);
    started.map_err(|error| {
        handle.inner.enter(Stage::Here(guest));
        Refusal::Failed(format!("cannot start a thread for the migration: {error}"))
    })
}

fn depart(inner: &Arc<Inner>, guest: &Arc<Resident>, options: &Options, cancel: &Cancel) {
    let report = migrate::migrate(&**guest, options, cancel, &Recorder(inner));
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

/// Listens until a guest has arrived. Attempts that fail are told and followed by the next.
pub(super) fn receive_in_background(handle: &VmHandle, kvm: KvmHost, receiver: Receiver) -> io::Result<()> {
    let inner = Arc::clone(&handle.inner);
    let built = {
        let inner = Arc::downgrade(&handle.inner);
        move |guest| {
            if let Some(inner) = inner.upgrade() {
                inner.enter(Stage::Arriving(guest));
            }
        }
    };
    let arrivals = Arrivals::new(kvm, handle.hooks(), built);
    thread::Builder::new()
        .name("receive".into())
        .spawn(move || receive(&inner, &arrivals, &receiver))
        .map(drop)
}

fn receive(inner: &Arc<Inner>, arrivals: &Arrivals, receiver: &Receiver) {
    loop {
        let arrival = receiver.receive(arrivals, &Recorder(inner));
        match (arrival, arrivals.latest()) {
            (Arrival::Arrived { .. }, Some(guest)) => return inner.enter(Stage::Here(guest)),
            (Arrival::Orphaned { reason, faults, .. }, Some(guest)) => {
                eprintln!("vmm: {reason}");
                return inner.enter(Stage::InDoubt(Doubt { guest, missing: Some(faults) }));
            }
            (Arrival::Failed { reason }, _) => {
                eprintln!("vmm: a guest did not arrive: {reason}; waiting for the next");
                inner.enter(Stage::Waiting);
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
            _ => {}
        }
        // Nobody may be listening.
        let _ = self.0.events.send(event);
    }
}

impl Inner {
    /// Records how a migration ended, then tells.
    fn conclude(&self, stage: Stage, report: Report) {
        let mut life = self.lock();
        life.stage = stage;
        life.cancel = None;
        life.migration = MigrationStatus { active: false, progress: None, report: Some(report.clone()) };
        drop(life);
        let _ = self.events.send(Event::Ended { report: Box::new(report) });
        self.lock().end_if_stopped();
        self.ended.notify_all();
    }
}
