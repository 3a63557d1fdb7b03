//! vCPUs: one thread each, which alone runs it.
//!
//! The owner (`machine`) gives orders to all at once and gets one reply for each: so all vCPUs save and restore at
//! the same time, and the state of N costs the time of one. The last one's state the owner reads and writes itself meanwhile, where
//! there is a core besides: a guest with one vCPU waits for no thread to wake up, twice. A thread parks only when `KVM_RUN` has returned `EINTR`
//! on request: then the guest's pending I/O is finished and every register is what the guest will go on with.

mod brake;
mod choice;
mod cores;
mod cpuid;
mod error;
mod faults;
mod features;
mod host;
mod kick;
mod level;
mod msrs;
mod offer;
mod orders;
mod reach;
mod state;
mod template;
#[cfg(test)]
mod tests;
mod thread;
mod tsc;
mod xsave;

use std::cell::{Cell, RefCell};
use std::io;
use std::num::NonZero;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use kvm_ioctls::VcpuFd;
use scheduling::{Turn, near, take_turns};
use vmm_sys_util::signal::Killable;

use crate::devices::{Bus, GuestEnd};
use crate::memory::ram::GuestRam;
use crate::state::StreamWriter;
use brake::{Brake, Throttle};
use cores::Cores;
use faults::Faults;
use kick::Kick;
use orders::Orders;

pub use choice::{CpuChoice, CpuError};
pub use cpuid::CpuidEntry;
pub use error::VcpuError;
pub use features::{Feature, lacking, missing_features};
pub use host::{Common, HostCpu, NothingCommon, common};
pub use level::Level;
pub use msrs::{probe_msrs, supported_msrs};
pub use offer::{always_shown, offer};
pub(crate) use offer::{give, listed, more_than, offer_by, shown_to_all, throwaway};
#[cfg(test)]
pub(crate) use state::with_every_field;
pub use state::{KIND, VcpuImage};
pub use template::{FeatureMsr, Template};
pub use thread::OnEnd;
pub(crate) use tsc::realtime_ns;
pub use tsc::{SourceClock, StoodStill};
pub(crate) use xsave::user_components;

/// How long a vCPU's thread may take to finish what it is asked, other than to leave the guest: far more than it ever needs. Whoever
/// restores one itself may hang in a touch of memory that has yet to come, as long as that is waited for at all.
const PATIENCE: Duration = Duration::from_secs(10);

/// What the threads of all vCPUs of a machine share.
#[derive(Clone)]
pub struct Surroundings {
    /// Where the guest's I/O goes.
    pub bus: Arc<Bus>,
    /// Told when the guest ends by itself.
    pub on_end: OnEnd,
    /// Size of the extended FPU state on this VM.
    pub xsave_bytes: usize,
    /// Components of it that the guest's CPU has.
    pub components: u64,
    /// MSRs to save, in order.
    pub msrs: Arc<[u32]>,
    /// TSC frequency of the guest.
    pub tsc_khz: u32,
    /// Whether TSC offsets can be set on this host.
    pub tsc_offset: bool,
    /// The guest's memory, kept for as long as any thread may run the guest in it.
    pub ram: Arc<GuestRam>,
}

/// What a vCPU's thread can be asked. It ends when its owner is gone.
enum Order {
    Run,
    /// To go to its cores. Not answered.
    Settle,
    /// All that KVM makes at the first run.
    WarmUp,
    /// To run is the next order, and soon. Not answered.
    StandBy {
        /// How often orders were given by then, this one included.
        given: u64,
        /// The owner's core, if it is to be left.
        owner: Option<usize>,
    },
    Save {
        buffer: Vec<u8>,
        base: Arc<OnceLock<tsc::Here>>,
    },
    Restore {
        image: Box<VcpuImage>,
        base: Arc<OnceLock<tsc::Here>>,
        stood_still: StoodStill,
    },
}

/// What it answers: one for each order but to stand by and to settle.
enum Reply {
    Parked,
    WarmedUp(Result<(), VcpuError>),
    Saved(Vec<u8>, Result<(), VcpuError>),
    Restored(Result<(), VcpuError>),
}

/// The owner's side of one vCPU.
struct Vcpu {
    cpu: Arc<thread::Cpu>,
    kick: Arc<Kick>,
    brake: Arc<Brake>,
    cores: Arc<Cores>,
    /// Where the host counts them.
    faults: Option<Faults>,
    /// How many there were when they were looked at last.
    seen: Cell<u64>,
    replies: Receiver<Reply>,
    /// Shared with whoever holds the vCPU back.
    thread: Option<Arc<JoinHandle<()>>>,
    buffer: Cell<Vec<u8>>,
}

/// All vCPUs of a machine. Parked when made. Dropping them ends their threads.
pub struct Vcpus {
    all: Vec<Vcpu>,
    /// Cores beyond one for each of them.
    cores_besides: usize,
    orders: Arc<Orders<Order>>,
    /// While some are held back.
    throttle: RefCell<Option<Throttle>>,
}

impl Vcpus {
    /// Starts a thread for each vCPU, in the order of their numbers.
    ///
    /// # Errors
    /// When the host refuses a thread or the signal.
    pub fn start(vcpus: Vec<VcpuFd>, surroundings: &Surroundings) -> io::Result<Self> {
        kick::install_handler()?;
        let orders = Arc::new(Orders::new(vcpus.len()));
        let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
        let cores_besides = cores.saturating_sub(vcpus.len());
        let throttle = RefCell::default();
        let mut all = Self { all: Vec::new(), cores_besides, orders: Arc::clone(&orders), throttle };
        for (index, fd) in vcpus.into_iter().enumerate() {
            all.all.push(Vcpu::start(index as u32, fd, surroundings.clone(), Arc::clone(&orders))?);
        }
        Ok(all)
    }

    /// Lets all run.
    pub fn run(&self) {
        self.all.iter().for_each(|vcpu| vcpu.kick.let_run());
        self.orders.give(|_| Some(Order::Run));
    }

    /// Has KVM make now what it would at the first run. All are parked.
    ///
    /// # Errors
    /// When the kernel refuses, or a vCPU does not answer.
    pub fn warm_up(&self) -> Result<(), VcpuError> {
        self.orders.give(|_| Some(Order::WarmUp));
        outcomes(&self.all, |_, reply| match reply {
            Reply::WarmedUp(outcome) => Some(outcome),
            _ => None,
        })
    }

    /// All are parked and will be let run in a moment: where there is a core besides, none of them has to be woken then, perhaps
    /// on the core of whoever lets it run.
    pub fn stand_by(&self) {
        if self.cores_besides > 0 {
            let given = self.orders.given() + 1;
            // With more cores to choose from the scheduler finds one.
            let owner = (self.cores_besides == 1).then(rustix::thread::sched_getcpu);
            self.orders.give(|_| Some(Order::StandBy { given, owner }));
        }
    }

    /// Makes all leave the guest and waits until they have, at most `limit`. On failure all run on.
    ///
    /// # Errors
    /// The vCPU that did not leave.
    pub fn park(&self, limit: Duration) -> Result<(), VcpuError> {
        self.throttle.borrow().iter().for_each(Throttle::rest);
        self.all.iter().for_each(Vcpu::ask_to_leave);
        let deadline = Instant::now() + limit;
        let late = self.all.iter().position(|vcpu| !vcpu.has_left_by(deadline));
        let Some(late) = late else { return Ok(()) };
        // Those before it have answered; of the others, each that cannot be called back will.
        let has_left = |number: usize, vcpu: &Vcpu| {
            number < late || (!vcpu.kick.withdraw() && vcpu.has_left_by(Instant::now() + PATIENCE))
        };
        let left: Vec<bool> =
            self.all.iter().enumerate().map(|(number, vcpu)| has_left(number, vcpu)).collect();
        self.all.iter().zip(&left).filter(|(_, left)| **left).for_each(|(vcpu, _)| vcpu.kick.let_run());
        self.orders.give(|number| left[number].then_some(Order::Run));
        Err(VcpuError::Silent { vcpu: late as u32 })
    }

    /// Makes all leave the guest and stay out, without waiting: one that hangs in the kernel until memory comes
    /// leaves when it has it, before it runs anything. To be made to run again they are parked first.
    pub fn hold(&self) {
        self.all.iter().for_each(Vcpu::ask_to_leave);
    }

    /// Writes one section for each vCPU. All are parked.
    ///
    /// # Errors
    /// When the kernel refuses a part of the state.
    pub fn save(&self, stream: &mut StreamWriter) -> Result<(), VcpuError> {
        let base = Arc::default();
        let Some((mine, others)) = self.all.split_last() else { return Ok(()) };
        self.orders.give(|number| {
            let buffer = others.get(number)?.buffer.take();
            Some(Order::Save { buffer, base: Arc::clone(&base) })
        });
        let mut buffer = mine.buffer.take();
        let saved = mine.cpu.save(&mut buffer, &base);
        let all = outcomes(others, |vcpu, reply| match reply {
            Reply::Saved(buffer, outcome) => {
                stream.append(1, &buffer);
                vcpu.buffer.set(buffer);
                Some(outcome)
            }
            _ => None,
        });
        stream.append(1, &buffer);
        mine.buffer.set(buffer);
        all.and(saved)
    }

    /// Puts the state of each in place; `images` has one for each. All are parked, and were `stood_still` before.
    ///
    /// # Errors
    /// When the kernel refuses a part of it; the others are restored all the same.
    pub fn restore(&self, mut images: Vec<Box<VcpuImage>>, stood_still: StoodStill) -> Result<(), VcpuError> {
        assert_eq!(images.len(), self.all.len(), "one image for each vCPU");
        let base = Arc::default();
        // Who has restored is better the one to run, too, where nobody can stand by.
        let mine = self.all.last().filter(|_| self.cores_besides > 0);
        let mine = mine.and_then(|vcpu| Some((vcpu, images.pop()?)));
        let others = &self.all[..images.len()];
        let mut images = images.into_iter();
        self.orders
            .give(|_| Some(Order::Restore { image: images.next()?, base: Arc::clone(&base), stood_still }));
        let restored = mine.map_or(Ok(()), |(vcpu, image)| vcpu.cpu.restore(&image, &base, stood_still));
        let all = outcomes(others, |_, reply| match reply {
            Reply::Restored(outcome) => Some(outcome),
            _ => None,
        });
        all.and(restored)
    }
}

/// Waits for one reply of each vCPU and takes the outcome out of it. The first failure, after all have answered.
fn outcomes(
    vcpus: &[Vcpu],
    mut of: impl FnMut(&Vcpu, Reply) -> Option<Result<(), VcpuError>>,
) -> Result<(), VcpuError> {
    let mut all = Ok(());
    for (number, vcpu) in vcpus.iter().enumerate() {
        let silent = VcpuError::Silent { vcpu: number as u32 };
        let reply = vcpu.replies.recv_timeout(PATIENCE).ok().and_then(|reply| of(vcpu, reply));
        all = all.and(reply.unwrap_or(Err(silent)));
    }
    all
}

impl Drop for Vcpus {
    fn drop(&mut self) {
        self.throttle.take();
        self.orders.close();
        self.all.iter().for_each(Vcpu::ask_to_leave);
        for vcpu in &mut self.all {
            vcpu.end();
        }
    }
}

impl Vcpu {
    fn start(
        number: u32,
        fd: VcpuFd,
        surroundings: Surroundings,
        orders: Arc<Orders<Order>>,
    ) -> io::Result<Self> {
        let (kick, faults) = (Arc::new(Kick::new(&fd)?), Faults::of(&fd));
        let (outgoing, replies) = channel();
        let cpu = Arc::new(thread::Cpu::new(number, fd, surroundings));
        let (brake, cores) = (Arc::new(Brake::default()), Arc::new(Cores::default()));
        let worker =
            thread::Worker::new(Arc::clone(&cpu), Arc::clone(&kick), Arc::clone(&brake), Arc::clone(&cores));
        let (work, _here) = near(move || {
            take_turns(Turn::Waited);
            worker.serve(&orders, &outgoing);
        });
        let thread = std::thread::Builder::new().name(format!("vcpu{number}")).spawn(work)?;
        let (thread, seen) = (Some(Arc::new(thread)), Cell::default());
        Ok(Self { cpu, kick, brake, cores, faults, seen, replies, thread, buffer: Cell::default() })
    }

    fn ask_to_leave(&self) {
        self.kick.ask();
        self.brake.release();
        self.call_out();
    }

    /// Its thread looks up from the guest.
    fn call_out(&self) {
        if let Some(thread) = &self.thread {
            // Fails only for a thread that has ended, which has left the guest too.
            let _ = thread.kill(kick::signal());
        }
    }

    fn has_left_by(&self, deadline: Instant) -> bool {
        let wait = deadline.saturating_duration_since(Instant::now());
        matches!(self.replies.recv_timeout(wait), Ok(Reply::Parked))
    }

    /// Waits for the end of the thread, which gets no more orders. One that is stuck in the kernel is left behind
    /// with what it holds rather than waited for without end.
    fn end(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        while let Some(wait) = deadline.checked_duration_since(Instant::now()) {
            if let Err(RecvTimeoutError::Disconnected) = self.replies.recv_timeout(wait) {
                let _ = self.thread.take().and_then(Arc::into_inner).map(JoinHandle::join);
                return;
            }
        }
    }
}

impl std::fmt::Debug for Vcpus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} vCPUs", self.all.len())
    }
}
