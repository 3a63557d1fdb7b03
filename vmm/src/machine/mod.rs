//! A machine and its life: the only room that starts and stops a guest.
//!
//! ```text
//! boot (a kernel) ──┐                 resume
//!                   ├──> Machine<Paused> ──────> Machine<Running> ──> dropped
//! blank (arriving) ─┘     save, restore  <──────
//!                         boot again      pause
//! ```
//!
//! State can be saved and restored only where no vCPU runs: by type. Nothing here knows why a guest is paused, nor
//! where its state goes.

mod board;
mod chips;
mod description;
mod saved;
mod supply;
#[cfg(test)]
mod tests;
mod virtio;

use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use crate::boot::BootError;
use crate::config::{ConfigError, MachineConfig};
use crate::devices::Console;
use crate::devices::virtio::{DiskError, TapError};
use crate::kvm::{KvmError, KvmHost};
use crate::memory::MemoryError;
use crate::memory::ram::GuestRam;
use crate::state::StateError;
use crate::vcpu::{CpuError, OnEnd, SourceClock, VcpuError, Vcpus};
use board::Parts;
use virtio::VirtioPlan;

pub use board::Board;
pub use chips::PausedClock;
pub use description::{DeviceDescription, MachineDescription};
pub(crate) use saved::{KINDS, Saved};
pub use supply::HostSupply;
pub use virtio::{DiskDescription, NicDescription};

/// How long a vCPU may take to leave the guest. It takes microseconds; only one that waits for memory which does not
/// come (post-copy without its source) takes longer.
const PAUSE_LIMIT: Duration = Duration::from_secs(5);

/// What can go wrong with a machine.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// With the host's KVM.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// With guest memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// With the kernel that is to boot.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// With a vCPU.
    #[error(transparent)]
    Vcpu(#[from] VcpuError),
    /// With the CPU that it is to have.
    #[error(transparent)]
    Cpu(#[from] CpuError),
    /// With a saved state.
    #[error(transparent)]
    State(#[from] StateError),
    /// With a value of the machine's shape.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// With a disk.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// With a tap interface.
    #[error(transparent)]
    Tap(#[from] TapError),
    /// A guest that resets, and what it was booted from is not known.
    #[error("what the guest boots from is not known here: the host that it came from did not say")]
    NothingToBoot,
    /// With the devices of a guest that arrives, or with how many there are.
    #[error("{0}")]
    Devices(String),
    /// More vCPUs than this host can run in one guest.
    #[error("{wanted} vCPUs are more than KVM on this host can run in one guest ({most}): give fewer")]
    TooManyVcpus {
        /// What was asked for.
        wanted: u32,
        /// What is possible.
        most: usize,
    },
}

/// What a machine is connected to outside.
#[derive(Clone)]
pub struct Hooks {
    /// Where its serial port and its virtio console lead.
    pub console: Console,
    /// Told when the guest ends by itself. The machine still is there and must be paused or dropped by its owner.
    pub on_end: OnEnd,
}

impl From<Console> for Hooks {
    fn from(console: Console) -> Self {
        Self { console, on_end: Arc::new(|_| {}) }
    }
}

/// No vCPU runs: state can be saved and restored.
#[derive(Debug)]
pub enum Paused {}

/// The guest runs.
#[derive(Debug)]
pub enum Running {}

/// A machine. Dropping it ends its threads and frees all it has.
#[derive(Debug)]
pub struct Machine<Life> {
    // Dropped first: the threads use what the board holds.
    vcpus: Vcpus,
    board: Arc<Board>,
    life: PhantomData<Life>,
}

/// A machine that has CPUs and memory, and nothing of the guest's yet: most of what it takes to make one.
pub struct Empty(Parts);

impl Empty {
    /// One for this guest. Opens no file of the guest's.
    ///
    /// # Errors
    /// One line: what is missing on this host, or too much.
    pub fn of(config: &MachineConfig) -> Result<Self, MachineError> {
        Ok(Self(Parts::empty(&KvmHost::open()?, config)?))
    }
}

/// A machine that could not be paused: it runs on.
#[derive(Debug, thiserror::Error)]
#[error("the guest cannot be paused: {error}")]
pub struct NotPaused {
    /// The machine, as it was.
    pub machine: Machine<Running>,
    /// Why.
    pub error: VcpuError,
}

impl<Life> Machine<Life> {
    /// What its parts share, for whoever looks at memory and console while it runs.
    #[must_use]
    pub fn board(&self) -> &Arc<Board> {
        &self.board
    }

    /// Its memory.
    #[must_use]
    pub fn ram(&self) -> &Arc<GuestRam> {
        self.board.ram()
    }

    /// Its console.
    #[must_use]
    pub fn console(&self) -> &Console {
        self.board.console()
    }

    /// Its vCPUs.
    pub(crate) fn vcpus(&self) -> &Vcpus {
        &self.vcpus
    }

    /// Presses the guest's power button. If it is paused it hears of it when it runs.
    pub fn press_power_button(&self) {
        self.board.power().press();
    }

    /// What another host must know before it can take the guest.
    #[must_use]
    pub fn description(&self) -> MachineDescription {
        self.board.description()
    }

    fn lives<Other>(self) -> Machine<Other> {
        Machine { vcpus: self.vcpus, board: self.board, life: PhantomData }
    }
}

impl Machine<Paused> {
    /// A machine with a kernel in place, at its first instruction.
    ///
    /// # Errors
    /// One line: what is missing on this host, wrong with the kernel, or too much.
    pub fn boot(config: &MachineConfig, hooks: impl Into<Hooks>) -> Result<Self, MachineError> {
        Self::boot_in(Empty::of(config)?, config, hooks)
    }

    /// The same, in a machine that was made for it before.
    ///
    /// # Errors
    /// One line: what is wrong with the kernel, a disk or an interface.
    pub fn boot_in(
        empty: Empty,
        config: &MachineConfig,
        hooks: impl Into<Hooks>,
    ) -> Result<Self, MachineError> {
        let parts = empty.0.for_boot(config)?;
        parts.load()?;
        Self::assemble(parts, hooks.into())
    }

    /// A new machine of the same shape, at the first instruction of what this one was booted from: after a reset. The
    /// disks stay the guest's. This one is gone before, so that the guest needs no more of the host than it did.
    ///
    /// # Errors
    /// As for [`boot`](Self::boot); the guest is lost then.
    pub fn boot_again(self, hooks: impl Into<Hooks>) -> Result<Self, MachineError> {
        let shape = self.board.shape().clone();
        let virtio = VirtioPlan::for_reboot(&shape, self.board.virtio());
        drop(self);
        let parts = Parts::of_shape(&KvmHost::open()?, &shape, virtio)?;
        parts.load()?;
        Self::assemble(parts, hooks.into())
    }

    /// A machine of the shape described, with empty RAM: for a guest that arrives. All is built, no state is in it.
    ///
    /// # Errors
    /// One line: what this host cannot do. [`MachineDescription::unsupported`] says it all before.
    pub fn blank(shape: &MachineDescription, hooks: impl Into<Hooks>) -> Result<Self, MachineError> {
        let kvm = KvmHost::open()?;
        let machine = Self::assemble(Parts::for_arrival(&kvm, shape)?, hooks.into())?;
        // Now, not in the pause.
        machine.vcpus.warm_up()?;
        Ok(machine)
    }

    /// Takes the guest's disks, all or none: before it runs. A guest that was booted here has them. Again is as good as
    /// once.
    ///
    /// # Errors
    /// One line: which disk another machine has.
    pub fn take_disks(&self) -> Result<(), MachineError> {
        Ok(self.board.virtio().take_disks()?)
    }

    /// Lets another machine take the guest's disks, with all that was written on stable storage. The guest must not run here
    /// any more, or must [take](Self::take_disks) them before.
    ///
    /// # Errors
    /// One line: which disk cannot be made to last. Some may have been let go of.
    pub fn hand_over_disks(&self) -> Result<(), MachineError> {
        Ok(self.board.virtio().hand_over_disks()?)
    }

    fn assemble(parts: Parts, hooks: Hooks) -> Result<Self, MachineError> {
        let (board, vcpus) = parts.assemble(hooks)?;
        Ok(Self { vcpus, board: Arc::new(board), life: PhantomData })
    }

    /// Lets the guest run.
    #[must_use]
    pub fn resume(self) -> Machine<Running> {
        self.board.serial().open();
        self.board.virtio().open();
        self.vcpus.run();
        self.lives()
    }

    /// Everything but RAM, as `docs/state.md` describes it. The dirty log's last harvest comes after this: KVM writes
    /// guest memory while it saves.
    ///
    /// # Errors
    /// When the kernel refuses a part.
    pub fn save(&self) -> Result<Vec<u8>, MachineError> {
        self.save_with(PausedClock::StandsStill)
    }

    /// The same, and what becomes of the guest's clock until it is restored.
    ///
    /// # Errors
    /// When the kernel refuses a part.
    pub fn save_with(&self, clock: PausedClock) -> Result<Vec<u8>, MachineError> {
        saved::save(&self.board, &self.vcpus, clock)
    }

    /// Frame numbers of pages that the guest of a state just saved touches as soon as it runs.
    #[must_use]
    pub fn first_pages(&self, state: &[u8]) -> Vec<u64> {
        saved::first_pages(&self.board, state).unwrap_or_default()
    }

    /// Puts a saved state in place. RAM may still be arriving: KVM writes a few bytes of it here.
    ///
    /// # Errors
    /// When the bytes are not a state of a machine of this shape (then nothing has changed), or the kernel refuses a
    /// part (then the machine is of no use any more).
    pub fn restore(&mut self, state: &[u8]) -> Result<(), MachineError> {
        saved::restore(&self.board, &self.vcpus, state, None)
    }

    /// The same; the guest's TSC, where it has an offset, goes on by the time it stood still by that clock.
    ///
    /// # Errors
    /// As [`restore`](Self::restore).
    pub fn restore_by(&mut self, state: &[u8], source: Option<SourceClock>) -> Result<(), MachineError> {
        saved::restore(&self.board, &self.vcpus, state, source)
    }

    /// It will be resumed in a moment. Its vCPUs' threads wait awake for that where they have the cores to.
    pub fn stand_by(&self) {
        self.vcpus.stand_by();
    }
}

impl Machine<Running> {
    /// The guest has come here from elsewhere: tells its network where it is now, a few times.
    pub fn announce(&self) {
        self.board.virtio().announce();
    }

    /// Ends the running of a guest whose memory cannot come any more. No vCPU runs guest code from here on, though
    /// one may hang in the kernel, waiting for memory, where the host's KVM does not let it be called back.
    pub fn hold(&self) {
        self.board.virtio().hurry();
        self.vcpus.hold();
        self.board.serial().close();
    }

    /// Stops all vCPUs where they are, with their I/O finished.
    ///
    /// # Errors
    /// When one does not leave the guest in time; then all run on.
    pub fn pause(self) -> Result<Machine<Paused>, Box<NotPaused>> {
        // Devices first, while the guest runs: a request of theirs may take its time.
        self.board.virtio().close();
        match self.vcpus.park(PAUSE_LIMIT) {
            Ok(()) => {
                self.board.serial().close();
                Ok(self.lives())
            }
            Err(error) => {
                self.board.virtio().open();
                Err(Box::new(NotPaused { machine: self, error }))
            }
        }
    }
}
