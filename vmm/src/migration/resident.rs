//! A guest that lives in this process, and the dirty log beside it.
//!
//! One lock holds the machine in the state it is in: engine threads, the control API and the guest's own end all
//! come through here, and each needs the whole machine for a moment. The guest's vCPUs never take it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use migrate::guest::{Description, GuestError, Packet, Result, Telemetry};
use migrate::pages::{PageRun, PageSet};
use uuid::Uuid;

use crate::devices::virtio::DiskError;
use crate::machine::{Board, Hooks, Machine, MachineDescription, Paused, PausedClock, Running};
use crate::memory::dirty::DirtyLog;
use crate::memory::ram::GuestRam;
use crate::vcpu::{SourceClock, Vcpus};

use super::ram::{EngineRam, runs_of};
use super::{refused, telemetry};

/// Who a guest is, wherever it lives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// For people.
    pub name: String,
    /// Survives every move.
    pub uuid: Uuid,
    /// Which incarnation of it this is: 0 since its boot, more with every move.
    pub epoch: u64,
}

/// A guest living here.
pub struct Resident {
    identity: Identity,
    epoch: AtomicU64,
    description: Description,
    reboots: bool,
    ram: Mutex<Option<Arc<GuestRam>>>,
    log: Mutex<Option<Arc<DirtyLog>>>,
    life: Mutex<Life>,
}

/// The machine, as its type allows.
enum Life {
    Running(Machine<Running>),
    Paused(Machine<Paused>),
    /// Let go of, or lost.
    Gone,
}

impl Resident {
    /// Takes in a machine, paused.
    pub fn new(machine: Machine<Paused>, identity: Identity) -> Arc<Self> {
        let ram = Arc::clone(machine.ram());
        let shape = machine.description();
        let description = Description {
            name: identity.name.clone(),
            uuid: identity.uuid,
            epoch: identity.epoch,
            vcpus: shape.vcpus,
            ram: runs_of(ram.layout()),
            nics: shape.nics.len() as u32,
            machine: opaque(&shape),
        };
        let log = DirtyLog::new(Arc::clone(machine.board().vm()), Arc::clone(&ram));
        Arc::new(Self {
            epoch: AtomicU64::new(identity.epoch),
            identity,
            description,
            reboots: shape.reboots(),
            log: Mutex::new(Some(Arc::new(log))),
            ram: Mutex::new(Some(ram)),
            life: Mutex::new(Life::Paused(machine)),
        })
    }

    /// Who it is.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// What a destination must know of it.
    pub fn description(&self) -> &Description {
        &self.description
    }

    /// The same, with the host's clocks as they are now.
    pub(super) fn description_now(&self) -> Description {
        let shape = match &*self.lock() {
            Life::Running(machine) => machine.description(),
            Life::Paused(machine) => machine.description(),
            Life::Gone => return Description { epoch: self.epoch(), ..self.description.clone() },
        };
        Description { epoch: self.epoch(), machine: opaque(&shape), ..self.description.clone() }
    }

    /// Which incarnation of it this is.
    pub fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::SeqCst)
    }

    /// It was forced to run on here, as this incarnation.
    pub(super) fn set_epoch(&self, epoch: u64) {
        self.epoch.store(epoch, Ordering::SeqCst);
    }

    /// Whether it boots again when it resets.
    pub fn reboots(&self) -> bool {
        self.reboots
    }

    /// The same guest, booted again in a new machine, paused. Nothing of the old one is left, whether this succeeds or
    /// not.
    ///
    /// # Errors
    /// When it is gone or does not stop, or what it boots from cannot be read here.
    pub fn boot_again(&self, hooks: Hooks) -> Result<Arc<Self>> {
        self.pause()?;
        let machine = std::mem::replace(&mut *self.lock(), Life::Gone);
        self.release();
        let Life::Paused(machine) = machine else { return Err(gone()) };
        let identity = Identity { epoch: self.epoch(), ..self.identity.clone() };
        Ok(Self::new(machine.boot_again(hooks).map_err(refused)?, identity))
    }

    /// Bytes of RAM.
    pub fn memory(&self) -> u64 {
        self.description.pages() * migrate::pages::PAGE_SIZE as u64
    }

    /// Whether its vCPUs run.
    pub fn is_running(&self) -> bool {
        matches!(*self.lock(), Life::Running(_))
    }

    /// The guest's own figures, if it keeps any.
    pub fn telemetry(&self) -> Option<Telemetry> {
        telemetry::read(&*self.guest_ram().ok()?)
    }

    /// Asks the guest to start a new measuring window.
    pub fn open_window(&self, wait: Duration) -> bool {
        self.guest_ram().is_ok_and(|ram| telemetry::open_window(&ram, wait))
    }

    /// Ends the running of a guest whose memory does not come. No vCPU runs guest code until it is [run on](Self::run_on).
    pub(super) fn hold(&self) {
        if let Life::Running(machine) = &*self.lock() {
            machine.hold();
        }
    }

    /// Runs a guest on whose memory has come after all.
    ///
    /// # Errors
    /// When a vCPU has not left the kernel, or cannot be started.
    pub(super) fn run_on(&self) -> Result<()> {
        self.pause()?;
        self.resume()
    }

    /// Stops the vCPUs and devices. Idempotent.
    ///
    /// # Errors
    /// When it is gone, or a vCPU does not stop: then it runs on.
    pub fn pause(&self) -> Result<()> {
        self.change(|life| match life {
            Life::Running(machine) => match machine.pause() {
                Ok(machine) => (Life::Paused(machine), Ok(())),
                Err(not) => (Life::Running(not.machine), Err(refused(not.error))),
            },
            life => (life, Ok(())),
        })
    }

    /// Runs it. Idempotent.
    ///
    /// # Errors
    /// When it is gone, or another machine has its disks.
    pub fn resume(&self) -> Result<()> {
        self.change(|life| match life {
            Life::Paused(machine) => match machine.take_disks() {
                Ok(()) => (Life::Running(machine.resume()), Ok(())),
                Err(error) => (Life::Paused(machine), Err(refused(error))),
            },
            life => (life, Ok(())),
        })
    }

    /// Presses its power button.
    ///
    /// # Errors
    /// When it is gone.
    pub fn press_power_button(&self) -> Result<()> {
        match &*self.lock() {
            Life::Running(machine) => machine.press_power_button(),
            Life::Paused(machine) => machine.press_power_button(),
            Life::Gone => return Err(gone()),
        }
        Ok(())
    }

    /// The state of everything but RAM.
    ///
    /// # Errors
    /// When it is not paused, or KVM refuses.
    pub fn save(&self, clock: PausedClock) -> Result<Vec<u8>> {
        match &mut *self.lock() {
            Life::Paused(machine) => machine.save_with(clock).map_err(refused),
            _ => Err(GuestError("state can be saved only while the guest is paused".into())),
        }
    }

    /// Puts on stable storage what it has written by now, as long as `go_on` says so. The machine is not held meanwhile.
    ///
    /// # Errors
    /// When a disk hangs. What cannot be made to last is told when the disks are handed over.
    pub(super) fn settle_disks(&self, go_on: &dyn Fn() -> bool) -> Result<()> {
        match self.board().map(|board| board.sync_disks(go_on)) {
            Some(Err(hangs @ DiskError::Hangs { .. })) => Err(refused(hangs)),
            _ => Ok(()),
        }
    }

    /// Lets the machine in which the guest goes on take its disks. [`resume`](Self::resume) takes them back.
    ///
    /// # Errors
    /// When what it has written cannot be made to last, as long as `go_on` says so.
    pub(super) fn hand_over_disks(&self, go_on: &dyn Fn() -> bool) -> Result<()> {
        // Who holds the machine must not hang: it could not be resumed. After this there is nothing left to wait for.
        self.board().map_or(Ok(()), |board| board.sync_disks(go_on)).map_err(refused)?;
        match &*self.lock() {
            Life::Paused(machine) => machine.hand_over_disks().map_err(refused),
            _ => Ok(()),
        }
    }

    /// Tells the guest's network that it is here now.
    pub(super) fn announce(&self) {
        if let Life::Running(machine) = &*self.lock() {
            machine.announce();
        }
    }

    /// What comes from the network for a guest that runs elsewhere now. The machine is not held while it is waited for.
    pub(super) fn take_packets(&self, wait: Duration, into: &mut Vec<Packet>) {
        let Some(board) = self.board() else { return };
        let mut frames = Vec::new();
        board.take_frames(wait, &mut frames);
        into.extend(frames.into_iter().map(|(nic, bytes)| Packet { nic, bytes }));
    }

    /// A packet that was sent after the guest.
    pub(super) fn deliver_packet(&self, packet: &Packet) {
        if let Some(board) = self.board() {
            board.bring_frame(packet.nic, &packet.bytes);
        }
    }

    fn board(&self) -> Option<Arc<Board>> {
        match &*self.lock() {
            Life::Running(machine) => Some(Arc::clone(machine.board())),
            Life::Paused(machine) => Some(Arc::clone(machine.board())),
            Life::Gone => None,
        }
    }

    /// Frame numbers of pages that the guest of a state just saved touches as soon as it runs.
    pub(super) fn first_pages(&self, state: &[u8]) -> Vec<u64> {
        match &*self.lock() {
            Life::Paused(machine) => machine.first_pages(state),
            _ => Vec::new(),
        }
    }

    /// Puts a saved state in place. `source`: the clock of the host it was saved on, where it was told.
    ///
    /// # Errors
    /// When it is not paused, the state cannot be read, or KVM refuses.
    pub fn restore(&self, state: &[u8], source: Option<SourceClock>) -> Result<()> {
        match &mut *self.lock() {
            Life::Paused(machine) => machine.restore_by(state, source).map_err(refused),
            _ => Err(GuestError("state can be restored only into a paused machine".into())),
        }
    }

    /// The guest will be resumed in a moment.
    pub fn stand_by(&self) {
        if let Life::Paused(machine) = &*self.lock() {
            machine.stand_by();
        }
    }

    /// Ends it and lets go of its memory.
    pub fn release(&self) {
        let gone = std::mem::replace(&mut *self.lock(), Life::Gone);
        drop(gone);
        lock(&self.log).take();
        lock(&self.ram).take();
    }

    /// Its memory, for the engine.
    pub(super) fn engine_ram(&self) -> Result<Arc<EngineRam>> {
        Ok(Arc::new(EngineRam(self.guest_ram()?)))
    }

    pub(super) fn guest_ram(&self) -> Result<Arc<GuestRam>> {
        lock(&self.ram).clone().ok_or_else(gone)
    }

    /// Starts dirty logging.
    pub(super) fn start_dirty_log(&self) -> Result<()> {
        self.with_log(|log| log.start().map_err(refused))?;
        // Which of them write is seen from here on.
        self.with_vcpus(Vcpus::new_faults);
        Ok(())
    }

    /// Its vCPUs, while it has a machine.
    pub(super) fn with_vcpus<T>(&self, work: impl FnOnce(&Vcpus) -> T) -> Option<T> {
        match &*self.lock() {
            Life::Running(machine) => Some(work(machine.vcpus())),
            Life::Paused(machine) => Some(work(machine.vcpus())),
            Life::Gone => None,
        }
    }

    /// Starts dirty logging with no page in the log: only what is written from here on will be.
    pub(crate) fn start_clean_dirty_log(&self) -> Result<()> {
        self.start_dirty_log()?;
        // A log begins with every page in it.
        let mut all = PageSet::new(self.gfn_limit());
        self.harvest(&mut all)?;
        self.description.ram.iter().try_for_each(|region| self.protect(&all, *region))
    }

    /// Adds the pages written since they were last protected.
    pub(crate) fn harvest(&self, set: &mut PageSet) -> Result<()> {
        self.with_log(|log| log.read(|first, words| set.union_words(first, words)).map_err(refused))
    }

    /// Past the last page.
    pub(super) fn gfn_limit(&self) -> u64 {
        self.description.gfn_limit()
    }

    /// Watches the pages of `set` inside `window` anew.
    pub(super) fn protect(&self, set: &PageSet, window: PageRun) -> Result<()> {
        let words = &set.words()[(window.first / 64) as usize..window.end().div_ceil(64) as usize];
        self.with_log(|log| log.protect(window.first, words).map_err(refused))
    }

    /// Stops dirty logging. That can only fail for a VM that is gone, and then nothing is logged.
    pub(crate) fn stop_dirty_log(&self) {
        let _ = self.with_log(|log| log.stop().map_err(refused));
    }

    fn with_log<T>(&self, work: impl FnOnce(&DirtyLog) -> Result<T>) -> Result<T> {
        let log = lock(&self.log).clone().ok_or_else(gone)?;
        work(&log)
    }

    fn change(&self, step: impl FnOnce(Life) -> (Life, Result<()>)) -> Result<()> {
        let mut life = self.lock();
        if matches!(*life, Life::Gone) {
            return Err(gone());
        }
        let (then, result) = step(std::mem::replace(&mut *life, Life::Gone));
        *life = then;
        result
    }

    fn lock(&self) -> MutexGuard<'_, Life> {
        lock(&self.life)
    }
}

/// As the engine carries it.
fn opaque(shape: &MachineDescription) -> serde_json::Value {
    serde_json::to_value(shape).expect("a description is plain data")
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn gone() -> GuestError {
    GuestError("the guest is not here any more".into())
}
