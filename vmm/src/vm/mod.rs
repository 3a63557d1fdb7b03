//! One VMM's guest through its life: what the control API, the command line and the engine share.
//!
//! ```text
//!            ┌──────────── failed ────────────┐
//!   waiting ─┴► arriving ──► here ◄── kept ── leaving ──► ended (moved, stopped, crashed)
//!                               ▲               │
//!                               └── recovered, forced ── [in doubt](doubt) ── discard ──► ended
//! ```
//! A guest that resets stays here, in a [new machine](reboot).
//!
//! [`Stage`] is that drawing. One lock holds it; whatever the API may ask is answered by what stage the guest is in.
//! The engine decides how a migration ends ([`migrate::handover`]); this room only records it.

mod api;
mod doubt;
mod moving;
mod reboot;
mod salvage;
mod stage;
#[cfg(test)]
mod tests;

use std::io;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

use migrate::client::types::MigrationStatus;
use migrate::journal::Journals;
use migrate::progress::Event;
use migrate::source::Parted;
use migrate::{Cancel, Receiver};
use tokio::sync::broadcast;

use crate::config::{ArrivalConfig, MachineConfig};
use crate::control::Ending;
use crate::devices::{Console, End, GuestEnd};
use crate::kvm::{KvmError, KvmHost};
use crate::machine::{Empty, Hooks, HostSupply, Machine, MachineError};
use crate::migration::{Identity, Resident};
use crate::vcpu::CpuError;

use stage::Stage;

/// Events a slow listener may be behind before it loses some: those of a minute. There is room for them from the beginning.
const EVENTS_KEPT: usize = 256;

/// Why there is no guest.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The host cannot run guests.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// This guest cannot be built.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// The host does not have the CPU that is the most for guests.
    #[error(transparent)]
    Cpu(#[from] CpuError),
    /// Nobody can arrive here: the host refuses the socket or a thread.
    #[error("cannot wait for a guest: {0}")]
    Listen(#[from] io::Error),
    /// It could not boot again.
    #[error("cannot start a thread to boot the guest again: {0}")]
    Reboot(io::Error),
    /// It cannot be run.
    #[error("{0}")]
    Guest(#[from] migrate::guest::GuestError),
}

/// A VMM's guest. Clones are the same one.
#[derive(Clone)]
pub struct VmHandle {
    inner: Arc<Inner>,
}

struct Inner {
    name: String,
    listen: Option<String>,
    console: Console,
    events: broadcast::Sender<Event>,
    /// Where a guest may arrive, for as long as one is waited for.
    receiver: OnceLock<Weak<Receiver>>,
    /// Held by whoever obeys the operator, while a guest is paused, say: from Here or InDoubt only orders lead
    /// on, so a stage that was looked at stays. A vCPU's thread never takes it.
    orders: Mutex<()>,
    /// Read and changed by the API, by the thread of a migration and by the guest's own end.
    /// Never held while a guest is asked for anything: its vCPUs take it when the guest ends.
    life: Mutex<LifeOf>,
    ended: Condvar,
    /// What is promised when a guest moves.
    journals: Journals,
    /// Attempts whose destination may hold the guest, because it does not know that it runs here.
    untold: Mutex<Vec<Parted>>,
    /// Boots the guest again.
    reboot: Sender<Arc<Inner>>,
}

struct LifeOf {
    stage: Stage,
    migration: MigrationStatus,
    cancel: Option<Cancel>,
    /// How the guest has ended by itself. Becomes the ending, or a reboot, when no migration is under way any more.
    stopped_itself: Option<OwnEnd>,
    /// How often it has booted again here.
    reboots: u64,
    /// When it booted here last.
    booted: Instant,
    /// Set once all events about the end have been told.
    ending: Option<Ending>,
}

/// How a guest has ended by itself.
#[derive(Debug, PartialEq, Eq)]
enum OwnEnd {
    /// It is to boot again.
    Reset,
    /// There is nothing more.
    Final(Ending),
}

impl VmHandle {
    /// Boots a guest and runs it. `machine`: waits for the one that is being made for it.
    ///
    /// # Errors
    /// When the host cannot, or the kernel is not one.
    pub fn run(
        name: &str,
        config: &MachineConfig,
        console: Console,
        journals: Journals,
        machine: impl FnOnce() -> Result<Empty, MachineError>,
    ) -> Result<Self, StartError> {
        let handle = Self::new(name, None, console, journals)?;
        let machine = Machine::boot_in(machine()?, config, handle.inner.hooks(0))?;
        let identity = Identity { name: config.name.to_string(), uuid: config.uuid, epoch: 0 };
        let resident = Resident::new(machine, identity);
        handle.inner.enter(Stage::Here(Arc::clone(&resident)));
        resident.resume()?;
        Ok(handle)
    }

    /// Waits for a guest and takes it in when it comes.
    ///
    /// # Errors
    /// When the host cannot run guests, does not have the CPU, or refuses a thread.
    pub fn receive(
        name: &str,
        receiver: Receiver,
        arrival: ArrivalConfig,
        console: Console,
        journals: Journals,
    ) -> Result<Self, StartError> {
        let supply = HostSupply::ask(KvmHost::open()?)?;
        arrival.cpu.cpu(&supply.cpu(1), 1, 0)?;
        let receiver = Arc::new(receiver.keeping(journals.clone()));
        let address = receiver.local_addr();
        let handle = Self::new(name, Some(address.to_string()), console, journals)?;
        let _ = handle.inner.receiver.set(Arc::downgrade(&receiver));
        moving::receive_in_background(&handle, supply, arrival, receiver)?;
        Ok(handle)
    }

    fn new(
        name: &str,
        listen: Option<String>,
        console: Console,
        journals: Journals,
    ) -> Result<Self, StartError> {
        let life = LifeOf {
            stage: Stage::Waiting,
            migration: MigrationStatus::default(),
            cancel: None,
            stopped_itself: None,
            reboots: 0,
            booted: Instant::now(),
            ending: None,
        };
        let inner = Inner {
            name: name.to_owned(),
            listen,
            console,
            events: broadcast::Sender::new(EVENTS_KEPT),
            receiver: OnceLock::new(),
            orders: Mutex::default(),
            life: Mutex::new(life),
            ended: Condvar::new(),
            journals,
            untold: Mutex::default(),
            reboot: reboot::start().map_err(StartError::Reboot)?,
        };
        Ok(Self { inner: Arc::new(inner) })
    }
}

impl LifeOf {
    /// Whether the guest has reset and is about to boot again.
    fn is_rebooting(&self) -> bool {
        matches!(self.stage, Stage::Here(_)) && self.stopped_itself == Some(OwnEnd::Reset)
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, LifeOf> {
        self.life.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The stage now. From `Here` and `InDoubt` it does not change while [`order`](Self::order) is held.
    fn stage(&self) -> Stage {
        self.lock().stage.clone()
    }

    /// One order of the operator at a time.
    fn order(&self) -> MutexGuard<'_, ()> {
        self.orders.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a machine is connected to, the first one or the one of this reboot. Its end is told on a vCPU's thread, so
    /// that is only noted.
    fn hooks(self: &Arc<Self>, reboots: u64) -> Hooks {
        let inner = Arc::downgrade(self);
        let on_end = Arc::new(move |end: GuestEnd| {
            if let Some(inner) = inner.upgrade() {
                inner.guest_ended(reboots, &end);
            }
        });
        Hooks { console: self.console.clone(), on_end }
    }

    /// Goes on to a stage, unless all has ended: then whether it did is false.
    fn enter(self: &Arc<Self>, stage: Stage) -> bool {
        let mut life = self.lock();
        if life.ending.is_some() {
            return false;
        }
        if !matches!(stage, Stage::InDoubt(_)) {
            // It was another guest's link, or nobody waits for its other end any more.
            life.migration.lost = None;
        }
        let before = std::mem::replace(&mut life.stage, stage);
        self.follow_own_end(&mut life);
        drop(life);
        self.ended.notify_all();
        drop(before);
        true
    }

    /// Makes a guest's own end the ending or a reboot, unless a migration still has something to tell.
    fn follow_own_end(self: &Arc<Self>, life: &mut LifeOf) {
        if !matches!(life.stage, Stage::Here(_)) || life.ending.is_some() {
            return;
        }
        match life.stopped_itself.take() {
            Some(OwnEnd::Reset) => {
                life.stopped_itself = Some(OwnEnd::Reset);
                let asked = self.reboot.send(Arc::clone(self));
                let died = "the guest cannot boot again: the thread that would do it has died of a defect";
                life.ending = asked.err().map(|_| Ending::Crashed(died.into()));
            }
            Some(OwnEnd::Final(ending)) => life.ending = Some(ending),
            None => {}
        }
    }

    /// Records the end, and frees what is left of the guest.
    fn end(&self, ending: Ending) {
        self.end_in(self.lock(), ending);
    }

    /// The end, when no guest is here (any more): in one step, so that none can arrive meanwhile.
    fn end_waiting(&self) -> bool {
        let life = self.lock();
        let empty = matches!(life.stage, Stage::Waiting | Stage::Ended);
        if empty {
            self.end_in(life, Ending::Stopped);
        }
        empty
    }

    fn end_in(&self, mut life: MutexGuard<'_, LifeOf>, ending: Ending) {
        life.ending.get_or_insert(ending);
        let last = std::mem::replace(&mut life.stage, Stage::Ended);
        drop(life);
        self.ended.notify_all();
        drop(last);
        if let Some(receiver) = self.receiver.get().and_then(Weak::upgrade) {
            receiver.stop();
        }
    }

    /// On a vCPU's thread: the machine must not be waited for, so it is left to whoever hears of the end. A machine's
    /// first word counts: other vCPUs may have run on, until there was the next machine.
    fn guest_ended(self: &Arc<Self>, reboots: u64, end: &GuestEnd) {
        let mut life = self.lock();
        if life.reboots != reboots || life.stopped_itself.is_some() {
            return;
        }
        let boots_again = life.stage.guest().is_some_and(|guest| guest.reboots());
        life.stopped_itself = Some(match end.end {
            End::Reset if boots_again => OwnEnd::Reset,
            End::Shutdown | End::Reset => OwnEnd::Final(Ending::Stopped),
            End::TripleFault | End::Failed(_) => OwnEnd::Final(Ending::Crashed(end.to_string())),
        });
        if let Some(cancel) = &life.cancel {
            // Too late means that the guest has left: its copy here has not run and cannot have ended.
            let _ = cancel.cancel(&end.to_string());
        }
        self.follow_own_end(&mut life);
        drop(life);
        self.ended.notify_all();
    }

    /// Waits a moment; whether all has ended.
    fn ends_within(&self, wait: Duration) -> bool {
        let waited = self.ended.wait_timeout_while(self.lock(), wait, |life| life.ending.is_none());
        waited.unwrap_or_else(PoisonError::into_inner).0.ending.is_some()
    }

    fn wait_ended(&self) -> Ending {
        let life = self.lock();
        let waited = self.ended.wait_while(life, |life| life.ending.is_none());
        waited.unwrap_or_else(PoisonError::into_inner).ending.clone().expect("waited until there is one")
    }
}
