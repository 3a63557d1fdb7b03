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
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use migrate::client::types::MigrationStatus;
use migrate::progress::Event;
use migrate::{Cancel, Receiver};
use tokio::sync::broadcast;

use crate::config::MachineConfig;
use crate::control::Ending;
use crate::devices::{Console, End, GuestEnd};
use crate::kvm::{KvmError, KvmHost};
use crate::machine::{Machine, MachineError, OnEnd};
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
    /// Nobody can arrive here.
    #[error(transparent)]
    Listen(#[from] migrate::Failure),
    /// It cannot be run.
    #[error("{0}")]
    Guest(#[from] migrate::guest::GuestError),
    /// The host refuses a thread.
    #[error("cannot start a thread: {0}")]
    Thread(#[from] io::Error),
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
    /// Set once all events about the end have been told.
    ending: Option<Ending>,
}

impl VmHandle {
    /// Boots a guest and runs it.
    ///
    /// # Errors
    /// When the host cannot, or the kernel is not one.
    pub fn run(name: &str, config: &MachineConfig, console: Console) -> Result<Self, StartError> {
        let kvm = KvmHost::open()?;
        let handle = Self::new(name, None, console.clone(), Stage::Waiting);
        let machine = Machine::boot(&kvm, config, console, handle.on_end())?;
        let identity = Identity { name: config.name.to_string(), uuid: config.uuid };
        let resident = Resident::new(machine, identity);
        resident.resume()?;
        handle.inner.enter(Stage::Here(resident));
        Ok(handle)
    }

    /// Listens for a guest and takes it in when it comes.
    ///
    /// # Errors
    /// When the host cannot run guests, or the address cannot be listened on.
    pub fn receive(name: Option<&str>, listen: &str, console: Console) -> Result<Self, StartError> {
        let kvm = KvmHost::open()?;
        let receiver = Receiver::bind(listen)?;
        let address = receiver.local_addr();
        let name = name.map_or_else(|| format!("receive-{}", address.port()), str::to_owned);
        let handle = Self::new(&name, Some(address.to_string()), console, Stage::Waiting);
        moving::receive_in_background(&handle, kvm, receiver)?;
        Ok(handle)
    }

    fn new(name: &str, listen: Option<String>, console: Console, stage: Stage) -> Self {
        let life = LifeOf {
            stage,
            migration: MigrationStatus { active: false, progress: None, report: None },
            cancel: None,
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

    /// The VMM's name on this host.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// Where it listens for a guest.
    #[must_use]
    pub fn listen(&self) -> Option<&str> {
        self.inner.listen.as_deref()
    }

    /// What a machine calls when its guest ends by itself: on a vCPU's thread, so it only takes notice.
    fn on_end(&self) -> OnEnd {
        let inner = Arc::downgrade(&self.inner);
        OnEnd::new(move |end: GuestEnd| {
            if let Some(inner) = inner.upgrade() {
                inner.guest_ended(&end);
            }
        })
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, LifeOf> {
        self.life.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enter(&self, stage: Stage) {
        self.lock().stage = stage;
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

    fn guest_ended(&self, end: &GuestEnd) {
        let ending = match end.end {
            End::Shutdown | End::Reset => Ending::Stopped,
            End::TripleFault | End::Failed(_) => Ending::Crashed(end.to_string()),
        };
        let mut life = self.lock();
        if let Some(cancel) = &life.cancel {
            // Too late means that the guest has left: its copy here has not run and cannot have ended.
            let _ = cancel.cancel(&end.to_string());
        }
        life.ending.get_or_insert(ending);
        drop(life);
        self.ended.notify_all();
    }

    fn wait_ended(&self) -> Ending {
        let life = self.lock();
        let waited = self.ended.wait_while(life, |life| life.ending.is_none());
        waited.unwrap_or_else(PoisonError::into_inner).ending.clone().expect("waited until there is one")
    }
}
