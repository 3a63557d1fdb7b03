//! A vCPU's thread: obeys orders; while it runs the guest, sends its I/O to the bus.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::Sender;

use kvm_ioctls::{VcpuExit, VcpuFd};

use super::kick::{self, Kick};
use super::orders::Orders;
use super::{Bus, GuestEnd, Order, Reply, Surroundings, state};
use crate::devices::End;
use crate::sandbox::{self, ThreadKind};

/// Called once on the thread of the vCPU that ended the guest (shutdown, reset, or a failure).
/// It must not wait for the machine.
pub type OnEnd = Arc<dyn Fn(GuestEnd) + Send + Sync>;

/// What a vCPU's thread owns.
pub(super) struct Worker {
    number: u32,
    fd: VcpuFd,
    kick: Arc<Kick>,
    surroundings: Surroundings,
    /// The guest has ended on this vCPU: it executes nothing more.
    ended: bool,
}

impl Worker {
    pub(super) fn new(number: u32, fd: VcpuFd, kick: Arc<Kick>, surroundings: Surroundings) -> Self {
        Self { number, fd, kick, surroundings, ended: false }
    }

    /// Obeys until the owner is gone.
    pub(super) fn serve(mut self, orders: &Orders<Order>, replies: &Sender<Reply>) {
        sandbox::confine(ThreadKind::Vcpu);
        // Failing would mean only that a stray signal makes the guest leave once too often.
        let _ = kick::take_only_kicks();
        while let Some(order) = orders.take(self.number as usize) {
            let reply = match order {
                Order::Run => {
                    self.run();
                    Reply::Parked
                }
                Order::Save { mut buffer, base } => {
                    buffer.clear();
                    let saved = state::save(&self.handle(), &mut buffer, &base);
                    Reply::Saved(buffer, saved)
                }
                Order::Restore { image, base, stood_still } => {
                    Reply::Restored(state::restore(&self.handle(), &image, &base, stood_still))
                }
            };
            if replies.send(reply).is_err() {
                return;
            }
        }
    }

    fn handle(&self) -> state::Handle<'_> {
        state::Handle { vcpu: self.number, fd: crate::kvm::ioctl::borrow(&self.fd), with: &self.surroundings }
    }

    /// Runs the guest until the owner asks to leave or the guest ends.
    fn run(&mut self) {
        if self.ended {
            return self.kick.leave();
        }
        // Tells the guest's watchdogs that time was lost. A guest without kvmclock has none (EINVAL).
        let _ = self.fd.kvmclock_ctrl();
        loop {
            let end = match self.fd.run() {
                Ok(exit) => serve_exit(exit, &self.surroundings.bus),
                Err(error) if error.errno() == libc::EINTR && self.kick.agree() => return,
                Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => None,
                Err(error) => Some(End::Failed(format!("KVM_RUN failed: {}", io::Error::from(error)))),
            };
            if let Some(end) = end {
                return self.end(end);
            }
        }
    }

    fn end(&mut self, mut end: End) {
        if let (End::Failed(why), Ok(regs)) = (&mut end, self.fd.get_regs()) {
            why.push_str(&format!(" (at rip {:#x})", regs.rip));
        }
        self.ended = true;
        self.kick.leave();
        (self.surroundings.on_end)(GuestEnd { vcpu: self.number, end });
    }
}

impl Drop for Worker {
    /// A thread that dies of a defect of ours must not leave the guest hanging in silence.
    fn drop(&mut self) {
        if std::thread::panicking() {
            let end = End::Failed("its thread has died of a defect in the VMM".into());
            (self.surroundings.on_end)(GuestEnd { vcpu: self.number, end });
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
