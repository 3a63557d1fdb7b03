//! One VMM's guest through its life: what the control API, the command line and the engine share.
//!
//! ```text
//!            ┌──────────── failed ────────────┐
//!   waiting ─┴► arriving ──► here ◄── kept ── leaving ──► ended (moved, stopped, crashed)
//!                               ▲               │
//!                               └─ run here ─ in doubt ── discard ──► ended
//! ```
//! [`Stage`] is that drawing. One lock holds it; whatever the API may ask is answered by what stage the guest is in.
//! The engine decides how a migration ends ([`migrate::handover`]); this room only records it.

mod api;
mod moving;
mod stage;

use std::io;
use std::net::TcpListener;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use migrate::client::types::MigrationStatus;
use migrate::progress::Event;
use migrate::{Cancel, Receiver};
use tokio::sync::broadcast;

use crate::config::MachineConfig;
use crate::control::Ending;
use crate::devices::{Console, End, GuestEnd};
use crate::kvm::{KvmError, KvmHost};
use crate::machine::{Hooks, Machine, MachineError};
use crate::migration::{Identity, Resident};

use stage::Stage;

/// Events a slow listener may be behind before it loses some.
const EVENTS_KEPT: usize = 1024;

/// Why there is no guest.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The host cannot run guests.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// This guest cannot be built.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// Nobody can arrive here: the host refuses the socket or a thread.
    #[error("cannot wait for a guest: {0}")]
    Listen(#[from] io::Error),
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
    /// Read and changed by the API, by the thread of a migration and by the guest's own end.
    life: Mutex<LifeOf>,
    ended: Condvar,
}

struct LifeOf {
    stage: Stage,
    migration: MigrationStatus,
    cancel: Option<Cancel>,
    /// How the guest has ended by itself. Becomes the ending when no migration is under way any more.
    stopped_itself: Option<Ending>,
    /// Set once all events about the end have been told.
    ending: Option<Ending>,
}

impl VmHandle {
    /// Boots a guest and runs it.
    ///
    /// # Errors
    /// When the host cannot, or the kernel is not one.
    pub fn run(name: &str, config: &MachineConfig, console: Console) -> Result<Self, StartError> {
        let handle = Self::new(name, None, console, Stage::Waiting);
        let machine = Machine::boot(config, handle.hooks())?;
        let identity = Identity { name: config.name.to_string(), uuid: config.uuid };
        let resident = Resident::new(machine, identity);
        handle.inner.enter(Stage::Here(Arc::clone(&resident)));
        resident.resume()?;
        Ok(handle)
    }

    /// Listens for a guest and takes it in when it comes.
    ///
    /// # Errors
    /// When the host cannot run guests, or the address cannot be listened on.
    pub fn receive(name: &str, listener: TcpListener, console: Console) -> Result<Self, StartError> {
        let kvm = KvmHost::open()?;
        let receiver = Receiver::on(listener)?;
        let address = receiver.local_addr();
        let handle = Self::new(name, Some(address.to_string()), console, Stage::Waiting);
        moving::receive_in_background(&handle, kvm, receiver)?;
        Ok(handle)
    }

    fn new(name: &str, listen: Option<String>, console: Console, stage: Stage) -> Self {
        let life = LifeOf {
            stage,
            migration: MigrationStatus { active: false, progress: None, report: None },
            cancel: None,
            stopped_itself: None,
            ending: None,
        };
        let inner = Inner {
            name: name.to_owned(),
            listen,
            console,
            events: broadcast::Sender::new(EVENTS_KEPT),
            life: Mutex::new(life),
            ended: Condvar::new(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// What a machine is connected to. Its end is told on a vCPU's thread, so that is only noted.
    fn hooks(&self) -> Hooks {
        let inner = Arc::downgrade(&self.inner);
        let on_end = Arc::new(move |end: GuestEnd| {
            if let Some(inner) = inner.upgrade() {
                inner.guest_ended(&end);
            }
        });
        Hooks { console: self.inner.console.clone(), on_end }
    }
}

impl LifeOf {
    /// Makes a guest's own end the ending, unless a migration still has something to tell.
    fn end_if_stopped(&mut self) {
        if matches!(self.stage, Stage::Here(_)) && self.ending.is_none() {
            self.ending = self.stopped_itself.take();
        }
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, LifeOf> {
        self.life.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enter(&self, stage: Stage) {
        let mut life = self.lock();
        life.stage = stage;
        life.end_if_stopped();
        self.ended.notify_all();
    }

    /// Records the end, and frees what is left of the guest.
    fn end(&self, ending: Ending) {
        let mut life = self.lock();
        life.ending.get_or_insert(ending);
        let last = std::mem::replace(&mut life.stage, Stage::Ended);
        drop(life);
        self.ended.notify_all();
        drop(last);
    }

    /// On a vCPU's thread: the machine must not be waited for, so it is left to whoever hears of the end.
    fn guest_ended(&self, end: &GuestEnd) {
        let ending = match end.end {
            End::Shutdown | End::Reset => Ending::Stopped,
            End::TripleFault | End::Failed(_) => Ending::Crashed(end.to_string()),
        };
        let mut life = self.lock();
        life.stopped_itself = Some(ending);
        if let Some(cancel) = &life.cancel {
            // Too late means that the guest has left: its copy here has not run and cannot have ended.
            let _ = cancel.cancel(&end.to_string());
        }
        life.end_if_stopped();
        self.ended.notify_all();
    }

    fn wait_ended(&self) -> Ending {
        let life = self.lock();
        let waited = self.ended.wait_while(life, |life| life.ending.is_none());
        waited.unwrap_or_else(PoisonError::into_inner).ending.clone().expect("waited until there is one")
    }
}
