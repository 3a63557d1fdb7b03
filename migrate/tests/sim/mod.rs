//! A guest that can be migrated without a kernel: memory, a vCPU that writes it and checks all it wrote, and a host.
//!
//! The guest knows what it has written to each page (its mind, which travels as its state) and compares before it
//! writes again: a page lost, torn or stale on the way is a corruption it finds itself. `Runners` counts how many
//! machines run the guest at once.
#![allow(dead_code, reason = "each test file uses its part")]

pub(crate) mod attempt;
mod broken;
mod host;
pub(crate) mod link;
mod ram;
pub(crate) mod seam;

use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use broken::Broken;
pub(crate) use broken::DiskUse;
pub(crate) use host::SimHost;
use migrate::Cancel;
use migrate::guest::{Departing, Packet, Telemetry};
use migrate::options::{
    ClockPolicy, Compression, DEFAULT_DELTA_CACHE, InFlightPolicy, Mode, OnTimeout, Options,
};
use migrate::pages::{PageRun, PageSet};
use migrate::progress::{Event, Observer};
use migrate::protection::Protection;
use migrate::report::Report;
use migrate::source::{Route, migrate_over};
pub(crate) use ram::SimRam;
use rustix::thread::CpuSet;

pub(crate) const MODES: [Mode; 4] = [Mode::Precopy, Mode::Stopcopy, Mode::Postcopy, Mode::Hybrid];

/// Whether this process may use two cores or three, wholly: more than a guest needs for its vCPU, and none besides two connections.
pub(crate) fn has_few_cores() -> bool {
    let cores = rustix::thread::sched_getaffinity(None).map_or(0, |cores| cores.count());
    let whole = std::thread::available_parallelism().is_ok_and(|given| given.get() == cores as usize);
    whole && (2..=3).contains(&cores)
}

/// What a migration is usually asked for.
pub(crate) fn options(mode: Mode) -> Options {
    Options {
        to: String::new(),
        mode,
        streams: 2,
        // No test fails because the host was slow just then. Hybrid leaves to post-copy what it cannot send in the pause.
        max_downtime: if mode == Mode::Hybrid { Duration::from_micros(1) } else { Duration::from_secs(5) },
        timeout: Some(Duration::from_secs(20)),
        on_timeout: OnTimeout::Cancel,
        throttle: 0,
        pause_before_switchover: false,
        bandwidth: None,
        bandwidth_postcopy: None,
        compression: Compression::None,
        delta_cache: DEFAULT_DELTA_CACHE,
        verify: false,
        in_flight: InFlightPolicy::Forward,
        clock: ClockPolicy::Continue,
        protection: Protection::None,
        recovery: Duration::ZERO,
    }
}

/// A migration whose guest nobody has to recover afterwards.
pub(crate) fn reported(
    guest: &dyn Departing,
    options: &Options,
    route: Route<'_>,
    cancel: &Cancel,
    observer: &dyn Observer,
) -> Report {
    let cores = || rustix::thread::sched_getaffinity(None).expect("of this thread");
    let before = cores();
    let report = migrate_over(guest, options, route, cancel, observer).report;
    assert_eq!(cores(), before, "whoever calls has its cores again");
    report
}

/// Does something at every event.
pub(crate) struct At<F>(pub(crate) F);

impl<F: Fn(&Event) + Send + Sync> Observer for At<F> {
    fn tell(&self, event: Event) {
        (self.0)(&event);
    }
}

/// How many machines run the guest. Never more than one.
#[derive(Clone, Default)]
pub(crate) struct Runners(Arc<AtomicI32>);

impl Runners {
    fn enter(&self) {
        let now = self.0.fetch_add(1, Ordering::SeqCst) + 1;
        assert!(now <= 1, "{now} machines run the guest");
    }

    fn leave(&self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }

    pub(crate) fn count(&self) -> i32 {
        self.0.load(Ordering::SeqCst)
    }
}

/// How the guest behaves.
#[derive(Clone, Copy)]
pub(crate) struct Habit {
    pub(crate) pages: u64,
    /// Pages `0..working_set` are written.
    pub(crate) working_set: u64,
    /// Writes in a burst, and the rest between two bursts; `None`: no rest.
    pub(crate) burst: u64,
    pub(crate) rest: Option<Duration>,
    pub(crate) telemetry: bool,
    /// How long it takes to acknowledge a measuring window.
    pub(crate) acknowledges_after: Duration,
    /// Pages `0..zeros` are touched but zero when it has booted.
    pub(crate) zeros: u64,
    /// Of so many blocks of 2 MiB one was touched.
    pub(crate) blocks: u64,
    /// From here on those that were touched are zero only in part 5 of every second block of 2 MiB.
    pub(crate) solid_from: u64,
    pub(crate) nics: u32,
}

impl Default for Habit {
    fn default() -> Self {
        Self {
            pages: 192,
            working_set: 100,
            burst: 2,
            rest: Some(Duration::from_micros(300)),
            telemetry: false,
            acknowledges_after: Duration::ZERO,
            zeros: 0,
            blocks: 1,
            solid_from: u64::MAX,
            nics: 0,
        }
    }
}

/// What the guest knows: its state.
struct Mind {
    /// The value it wrote last to each page.
    written: Vec<u64>,
    steps: u64,
    corruptions: Vec<String>,
}

struct Cpu {
    run: bool,
    parked: bool,
    off: bool,
}

pub(crate) struct Sim {
    pub(crate) ram: Arc<SimRam>,
    habit: Habit,
    cpu: Mutex<Cpu>,
    changed: Condvar,
    mind: Mutex<Mind>,
    runners: Runners,
    thread: Mutex<Option<JoinHandle<()>>>,
    released: AtomicBool,
    born: Instant,
    window: AtomicU64,
    pub(crate) pauses: AtomicU64,
    settled: AtomicU64,
    pub(crate) epoch: AtomicU64,
    /// Percent of its time that it is held back now.
    pub(crate) held_back: AtomicU32,
    /// Pages told to be missing when faults began to be caught.
    pub(crate) told_first: AtomicU64,
    /// Whether its vCPUs are kept to some cores, and to which they were first.
    pub(crate) is_kept: AtomicBool,
    pub(crate) was_kept: OnceLock<CpuSet>,
    /// To which they were sent first.
    pub(crate) was_sent: OnceLock<CpuSet>,
    /// From the network: not yet taken where it has left, and all that was delivered where it is.
    packets: Mutex<Vec<Packet>>,
    /// What shall fail, for once.
    pub(crate) broken: Broken,
    /// What a pause sets going.
    pub(crate) paused: OnceLock<Box<dyn Fn() + Send + Sync>>,
    /// What watching pages sets going.
    pub(crate) watched: OnceLock<Watched>,
}

/// Told which pages are watched anew, of which window.
pub(crate) type Watched = Box<dyn Fn(&Sim, &PageSet, PageRun) + Send + Sync>;

impl Sim {
    pub(crate) fn blank(habit: Habit, runners: Runners) -> Arc<Self> {
        let mind = Mind { written: vec![0; habit.pages as usize], steps: 0, corruptions: Vec::new() };
        let sim = Arc::new(Self {
            ram: Arc::new(SimRam::new(habit.pages)),
            habit,
            cpu: Mutex::new(Cpu { run: false, parked: true, off: false }),
            changed: Condvar::new(),
            mind: Mutex::new(mind),
            runners,
            thread: Mutex::new(None),
            released: AtomicBool::new(false),
            born: Instant::now(),
            window: AtomicU64::new(0),
            pauses: AtomicU64::new(0),
            settled: AtomicU64::new(0),
            epoch: AtomicU64::new(0),
            held_back: AtomicU32::new(0),
            told_first: AtomicU64::new(0),
            is_kept: AtomicBool::new(false),
            was_kept: OnceLock::new(),
            was_sent: OnceLock::new(),
            packets: Mutex::default(),
            broken: Broken::default(),
            paused: OnceLock::new(),
            watched: OnceLock::new(),
        });
        let vcpu = Arc::clone(&sim);
        *sim.thread.lock().expect("fresh") = Some(std::thread::spawn(move || vcpu.live()));
        sim
    }

    /// A guest that has booted: most of its memory is written, some of it was and is zero again.
    pub(crate) fn booted(habit: Habit, runners: Runners) -> Arc<Self> {
        let sim = Self::blank(habit, runners);
        {
            let mut mind = sim.mind();
            let is_touched = |gfn: &u64| (gfn / 512).is_multiple_of(habit.blocks);
            for gfn in (0..habit.pages * 3 / 4).filter(is_touched) {
                let hollow = if gfn < habit.solid_from { gfn % 7 == 3 } else { gfn % 1024 / 64 == 5 };
                let value = if gfn < habit.zeros || hollow { 0 } else { gfn << 32 | 1 };
                sim.ram.write(gfn, value);
                mind.written[gfn as usize] = value;
            }
        }
        Departing::resume(&*sim).expect("a fresh guest runs");
        sim
    }

    fn mind(&self) -> MutexGuard<'_, Mind> {
        self.mind.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn packets(&self) -> MutexGuard<'_, Vec<Packet>> {
        self.packets.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn cpu(&self) -> MutexGuard<'_, Cpu> {
        self.cpu.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn is_running(&self) -> bool {
        self.cpu().run
    }

    pub(crate) fn is_released(&self) -> bool {
        self.released.load(Ordering::SeqCst)
    }

    pub(crate) fn steps(&self) -> u64 {
        self.mind().steps
    }

    /// Waits until the guest has made `steps` more.
    pub(crate) fn wait_steps(&self, steps: u64) {
        let until = self.steps() + steps;
        let limit = Instant::now() + Duration::from_secs(5);
        while self.steps() < until {
            assert!(Instant::now() < limit, "the guest does not go on");
            std::thread::yield_now();
        }
    }

    pub(crate) fn corruptions(&self) -> Vec<String> {
        self.mind().corruptions.clone()
    }

    /// Checks all of memory against the guest's mind; the guest must stand still or be paused by this.
    pub(crate) fn check_all(&self) {
        self.stop_cpu();
        let mind = self.mind();
        for gfn in 0..self.habit.pages {
            let read = self.ram.read(gfn).expect("nothing is missing");
            assert_eq!(read, Ok(mind.written[gfn as usize]), "page {gfn} after {} steps", mind.steps);
        }
        assert_eq!(mind.corruptions, Vec::<String>::new());
    }

    /// The vCPU's thread.
    fn live(&self) {
        let mut random = 0x2545_f491_4f6c_dd1d_u64;
        loop {
            {
                let mut cpu = self.cpu();
                while !cpu.run && !cpu.off {
                    cpu.parked = true;
                    self.changed.notify_all();
                    cpu = self.changed.wait(cpu).unwrap_or_else(PoisonError::into_inner);
                }
                if cpu.off {
                    cpu.parked = true;
                    self.changed.notify_all();
                    return;
                }
                cpu.parked = false;
            }
            for _ in 0..self.habit.burst {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                if !self.step(random % self.habit.working_set.max(1)) {
                    break;
                }
            }
            if let Some(rest) = self.habit.rest {
                let rest = rest * 100 / (100 - self.held_back.load(Ordering::SeqCst));
                let cpu = self.cpu();
                let idle = |cpu: &mut Cpu| cpu.run && !cpu.off;
                drop(self.changed.wait_timeout_while(cpu, rest, idle));
            }
        }
    }

    /// Checks a page and writes it; false when the guest is being stopped in a fault.
    pub(crate) fn step(&self, gfn: u64) -> bool {
        let Some(read) = self.ram.read(gfn) else { return false };
        let mut mind = self.mind();
        let expected = mind.written[gfn as usize];
        if read != Ok(expected) {
            mind.corruptions.push(format!("page {gfn}: {read:x?} instead of {expected:#x}"));
        }
        mind.steps += 1;
        let value = if mind.steps.is_multiple_of(11) { 0 } else { gfn << 32 | mind.steps };
        mind.written[gfn as usize] = value;
        self.ram.write(gfn, value);
        true
    }

    /// A device writes a page.
    pub(crate) fn receive(&self, gfn: u64, value: u64) {
        let mut mind = self.mind();
        mind.written[gfn as usize] = value;
        self.ram.write_as_vmm(gfn, value);
    }

    fn start_cpu(&self) {
        let mut cpu = self.cpu();
        if !cpu.run {
            self.runners.enter();
            cpu.run = true;
            self.changed.notify_all();
        }
    }

    fn stop_cpu(&self) {
        let mut cpu = self.cpu();
        let ran = std::mem::replace(&mut cpu.run, false);
        self.changed.notify_all();
        while !cpu.parked {
            cpu = self.changed.wait(cpu).unwrap_or_else(PoisonError::into_inner);
        }
        drop(cpu);
        if ran {
            self.runners.leave();
        }
    }

    /// Ends the vCPU's thread.
    pub(crate) fn shut_down(&self) {
        self.ram.stop();
        self.stop_cpu();
        self.cpu().off = true;
        self.changed.notify_all();
        if let Some(thread) = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take() {
            thread.join().expect("the vCPU does not panic");
        }
    }

    fn reading(&self) -> Option<Telemetry> {
        let tsc = self.born.elapsed().as_micros() as u64 + 1_000_000;
        let work = self.steps();
        let window_gap_us = 100.0 * self.window.load(Ordering::SeqCst) as f64;
        let reading =
            Telemetry { tsc, tsc_khz: 1000, work, work_per_s: 5000.0, window_gap_us, ..Telemetry::default() };
        self.habit.telemetry.then_some(reading)
    }
}
