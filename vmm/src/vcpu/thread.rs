//! A vCPU's thread: obeys orders; while it runs the guest, sends its I/O to the bus.

use std::io;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, TryLockError};
use std::thread;
use std::time::{Duration, Instant};

use kvm_ioctls::{VcpuExit, VcpuFd};

use super::brake::Brake;
use super::cores::Cores;
use super::kick::{self, Kick};
use super::orders::Orders;
use super::state::VcpuImage;
use super::tsc::{Here, StoodStill};
use super::{Bus, GuestEnd, Order, Reply, Surroundings, VcpuError, state};
use crate::devices::End;
use crate::kvm::ioctl;
use crate::memory::layout::HOLE_START;
use crate::sandbox::{self, ThreadKind};

/// Called once on the thread of the vCPU that ended the guest (shutdown, reset, or a failure).
/// It must not wait for the machine.
pub type OnEnd = Arc<dyn Fn(GuestEnd) + Send + Sync>;

/// How long a vCPU's thread that is to run the guest soon waits awake: for ready and commit within one host 0.1 ms go by, in a
/// network of one site a few, or where a disk's last writes are made safe before commit.
const SOON: Duration = Duration::from_millis(5);

/// How long it may take a vCPU's thread to make KVM ready to run it, which takes 0.1 ms: whoever saves or restores a vCPU waits for
/// that, and for nothing else.
const READY_BY: Duration = Duration::from_secs(1);

/// A vCPU. While its thread runs the guest nobody else has it.
pub(super) struct Cpu {
    number: u32,
    fd: Mutex<VcpuFd>,
    surroundings: Surroundings,
}

impl Cpu {
    pub(super) fn new(number: u32, fd: VcpuFd, surroundings: Surroundings) -> Self {
        Self { number, fd: Mutex::new(fd), surroundings }
    }

    /// Writes its section. It is parked.
    pub(super) fn save(&self, buffer: &mut Vec<u8>, base: &OnceLock<Here>) -> Result<(), VcpuError> {
        buffer.clear();
        self.with_parked(|handle| state::save(handle, buffer, base))
    }

    /// Puts its state in place. It is parked.
    pub(super) fn restore(
        &self,
        image: &VcpuImage,
        base: &OnceLock<Here>,
        stood_still: StoodStill,
    ) -> Result<(), VcpuError> {
        self.with_parked(|handle| state::restore(handle, image, base, stood_still))
    }

    fn with_parked<T>(
        &self,
        work: impl FnOnce(&state::Handle<'_>) -> Result<T, VcpuError>,
    ) -> Result<T, VcpuError> {
        let deadline = Instant::now() + READY_BY;
        let fd = loop {
            match self.fd.try_lock() {
                Ok(fd) => break fd,
                Err(TryLockError::Poisoned(fd)) => break fd.into_inner(),
                // Its thread makes it ready to run, which takes a moment.
                Err(TryLockError::WouldBlock) if Instant::now() < deadline => thread::yield_now(),
                Err(TryLockError::WouldBlock) => return Err(VcpuError::Silent { vcpu: self.number }),
            }
        };
        work(&state::Handle { vcpu: self.number, fd: ioctl::borrow(&*fd), with: &self.surroundings })
    }

    fn fd(&self) -> MutexGuard<'_, VcpuFd> {
        self.fd.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a vCPU's thread has.
pub(super) struct Worker {
    cpu: Arc<Cpu>,
    kick: Arc<Kick>,
    brake: Arc<Brake>,
    cores: Arc<Cores>,
    /// The guest has ended on this vCPU: it executes nothing more.
    ended: bool,
}

impl Worker {
    pub(super) fn new(cpu: Arc<Cpu>, kick: Arc<Kick>, brake: Arc<Brake>, cores: Arc<Cores>) -> Self {
        Self { cpu, kick, brake, cores, ended: false }
    }

    /// Obeys until the owner is gone.
    pub(super) fn serve(mut self, orders: &Orders<Order>, replies: &Sender<Reply>) {
        sandbox::confine(ThreadKind::Vcpu);
        // Failing would mean only that a stray signal makes the guest leave once too often.
        let _ = kick::take_only_kicks();
        while let Some(order) = orders.take(self.cpu.number as usize) {
            self.cores.settle();
            let reply = match order {
                Order::Settle => continue,
                Order::Run => {
                    self.run();
                    Reply::Parked
                }
                Order::Save { mut buffer, base } => {
                    let saved = self.cpu.save(&mut buffer, &base);
                    Reply::Saved(buffer, saved)
                }
                Order::WarmUp => Reply::WarmedUp(self.warm_up()),
                Order::StandBy { given, owner } => {
                    if let Some(core) = owner {
                        scheduling::leave(core);
                    }
                    // Best effort.
                    let _ = ioctl::load_mmu(ioctl::borrow(&*self.cpu.fd()), HOLE_START);
                    orders.stand_by(given, SOON);
                    continue;
                }
                Order::Restore { image, base, stood_still } => {
                    Reply::Restored(self.cpu.restore(&image, &base, stood_still))
                }
            };
            if replies.send(reply).is_err() {
                return;
            }
        }
    }

    /// Has KVM make what it makes when a VM is run for the first time, a thread of its own for one. `KVM_RUN` returns before anything
    /// of the guest is executed: it is not let run.
    fn warm_up(&self) -> Result<(), VcpuError> {
        assert!(self.kick.stays_out(), "told to warm up while it may run");
        let error = match self.cpu.fd().run() {
            Err(error) if error.errno() == libc::EINTR => return Ok(()),
            Err(error) => error.into(),
            Ok(exit) => io::Error::other(format!("it was in the guest, and left it: {exit:?}")),
        };
        Err(VcpuError::Refused { vcpu: self.cpu.number, what: "make ready to run it", error })
    }

    /// Runs the guest until the owner asks to leave or the guest ends.
    fn run(&mut self) {
        if self.ended {
            return self.kick.leave();
        }
        // Tells the guest's watchdogs that time was lost. A guest without kvmclock has none (EINVAL).
        let cpu = Arc::clone(&self.cpu);
        let mut fd = cpu.fd();
        let _ = fd.kvmclock_ctrl();
        loop {
            self.brake.wait(&self.kick);
            self.cores.settle();
            let end = match fd.run() {
                Ok(exit) => serve_exit(exit, &cpu.surroundings.bus),
                Err(error) if error.errno() == libc::EINTR && self.kick.agree() => return,
                Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => None,
                Err(error) => Some(End::Failed(format!("KVM_RUN failed: {}", io::Error::from(error)))),
            };
            if let Some(end) = end {
                return self.end(end, &fd);
            }
        }
    }

    fn end(&mut self, mut end: End, fd: &VcpuFd) {
        if let (End::Failed(why), Ok(regs)) = (&mut end, fd.get_regs()) {
            why.push_str(&format!(" (at rip {:#x})", regs.rip));
        }
        self.ended = true;
        self.kick.leave();
        (self.cpu.surroundings.on_end)(GuestEnd { vcpu: self.cpu.number, end });
    }
}

impl Drop for Worker {
    /// A thread that dies of a defect of ours must not leave the guest hanging in silence.
    fn drop(&mut self) {
        if std::thread::panicking() {
            let end = End::Failed("its thread has died of a defect in the VMM".into());
            (self.cpu.surroundings.on_end)(GuestEnd { vcpu: self.cpu.number, end });
        }
    }
}

/// Does what the guest asked for; says so if that was its end.
fn serve_exit(exit: VcpuExit<'_>, bus: &Bus) -> Option<End> {
    match exit {
        VcpuExit::IoOut(port, data) => bus.port_write(port, data),
        VcpuExit::IoIn(port, data) => {
            bus.port_read(port, data);
            None
        }
        VcpuExit::MmioWrite(address, data) => bus.memory_write(address, data),
        VcpuExit::MmioRead(address, data) => {
            bus.memory_read(address, data);
            None
        }
        VcpuExit::Intr | VcpuExit::IrqWindowOpen => None,
        VcpuExit::Shutdown => Some(End::TripleFault),
        VcpuExit::SystemEvent(kvm_bindings::KVM_SYSTEM_EVENT_SHUTDOWN, _) => Some(End::Shutdown),
        VcpuExit::SystemEvent(kvm_bindings::KVM_SYSTEM_EVENT_RESET, _) => Some(End::Reset),
        VcpuExit::InternalError => {
            Some(End::Failed("KVM met an instruction or a state it cannot emulate".into()))
        }
        VcpuExit::FailEntry(reason, cpu) => {
            Some(End::Failed(format!("the host's CPU {cpu} refused to enter the guest, reason {reason:#x}")))
        }
        other => Some(End::Failed(format!("KVM left the guest for a reason not expected here: {other:?}"))),
    }
}
