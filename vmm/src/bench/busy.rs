//! Threads that are busy in the place of a guest's vCPUs, and what they notice of work beside them: no guest notices less.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use migrate::pages::PAGE_SIZE;

use crate::lab::guest::{GuestPlan, Load};
use crate::memory::MemoryError;
use crate::memory::bulk;
use crate::memory::layout::{Layout, MIN_BYTES};
use crate::memory::ram::GuestRam;

/// How long their pace is measured before the work begins.
const BEFORE: Duration = Duration::from_millis(300);

/// Where a page is written, bytes from its beginning, as the demo guest does.
const STAMPS: [u64; 3] = [0, 2048, 4080];

/// Being late by more is not made up for.
const GIVES_UP_AFTER: Duration = Duration::from_millis(1);

/// What the threads are told.
const ALONE: u32 = 0;
const BESIDE: u32 = 1;
const OVER: u32 = 2;

/// What one of them noticed, the worst of all of them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Noticed {
    /// The longest time it stood still.
    pub(super) gap: Duration,
    /// Work it did not do, in time at its own pace.
    pub(super) lost: Duration,
}

/// What threads in the place of vCPUs do: the guest's load, over as much memory.
#[derive(Debug)]
pub(super) struct Busy {
    threads: u32,
    load: Load,
    memory: Arc<GuestRam>,
    bytes: u64,
}

impl Busy {
    /// Memory for a guest's work.
    pub(super) fn of(guest: &GuestPlan) -> Result<Self, MemoryError> {
        let written = if guest.load == Load::Idle { 0 } else { guest.working_set_mib << 20 };
        let bytes = written.max(MIN_BYTES).next_multiple_of(2 << 20);
        let memory = GuestRam::new(Layout::for_bytes(bytes)?)?;
        (0..bytes).step_by(PAGE_SIZE).for_each(|gpa| bulk::copy_in(&memory, gpa, &gpa.to_le_bytes()));
        Ok(Self { threads: guest.cpus.get(), load: guest.load, memory, bytes })
    }

    /// Does some work beside them.
    pub(super) fn beside<T>(&self, work: impl FnOnce() -> T) -> (T, Noticed) {
        let now = AtomicU32::new(ALONE);
        thread::scope(|scope| {
            let told = &now;
            let threads: Vec<_> =
                (0..self.threads).map(|number| scope.spawn(move || self.work(number, told))).collect();
            if self.threads > 0 {
                thread::sleep(BEFORE);
            }
            now.store(BESIDE, Ordering::Relaxed);
            let result = work();
            now.store(OVER, Ordering::Relaxed);
            let none = Noticed { gap: Duration::ZERO, lost: Duration::ZERO };
            let worst = threads.into_iter().fold(none, |worst, thread| {
                let noticed = thread.join().expect("a busy thread does not panic");
                Noticed { gap: worst.gap.max(noticed.gap), lost: worst.lost.max(noticed.lost) }
            });
            (result, worst)
        })
    }

    /// What a thread does until it is over.
    fn work(&self, number: u32, told: &AtomicU32) -> Noticed {
        let mut writer = Writer::new(self, number);
        let alone = spell(&mut writer, told, ALONE);
        let beside = spell(&mut writer, told, BESIDE);
        let lost = beside.took.as_secs_f64() * (1.0 - beside.pace() / alone.pace()).max(0.0);
        Noticed { gap: beside.gap, lost: Duration::from_secs_f64(lost) }
    }
}

/// A time of work.
struct Spell {
    took: Duration,
    gap: Duration,
    done: u64,
}

impl Spell {
    /// Units a second. Who was told of the end before the beginning has a pace of nearly none, and lost nothing.
    fn pace(&self) -> f64 {
        self.done.max(1) as f64 / self.took.as_secs_f64().max(1e-9)
    }
}

/// Works for as long as this is what it is told.
fn spell(writer: &mut Writer<'_>, told: &AtomicU32, what: u32) -> Spell {
    let began = Instant::now();
    let (mut last, mut gap, mut done) = (began, Duration::ZERO, 0);
    while told.load(Ordering::Relaxed) == what {
        let now = Instant::now();
        gap = gap.max(now - last);
        last = now;
        done += writer.turn(now);
    }
    Spell { took: began.elapsed(), gap, done }
}

/// Writes pages at random, as fast as the load says.
struct Writer<'a> {
    busy: &'a Busy,
    /// Between two pages; none where there is nothing to write.
    interval: Option<Duration>,
    due: Instant,
    random: u64,
}

impl<'a> Writer<'a> {
    fn new(busy: &'a Busy, number: u32) -> Self {
        let interval = match busy.load {
            Load::Idle | Load::Rate(0) => None,
            Load::Rate(rate) => Some(Duration::from_secs(1) * busy.threads / rate as u32),
            Load::Max => Some(Duration::ZERO),
        };
        Self { busy, interval, due: Instant::now(), random: 0x9e37_79b9_7f4a_7c15 ^ u64::from(number) }
    }

    /// Units of work done: pages, or where there are none to write, readings of the clock. What could not be done in time is
    /// given up, as a guest does.
    fn turn(&mut self, now: Instant) -> u64 {
        let Some(interval) = self.interval else { return 1 };
        if now < self.due {
            return 0;
        }
        self.due = if now - self.due > GIVES_UP_AFTER { now } else { self.due } + interval;
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let pages = self.busy.bytes / PAGE_SIZE as u64;
        let page = (((self.random >> 32) * pages) >> 32) * PAGE_SIZE as u64;
        let stamp = self.random.to_le_bytes();
        STAMPS.iter().for_each(|at| bulk::copy_in(&self.busy.memory, page + at, &stamp));
        1
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::guest::Content;

    fn guest(load: Load) -> GuestPlan {
        GuestPlan {
            memory: "64M".parse().unwrap(),
            cpus: "2".parse().unwrap(),
            fill_mib: 16,
            content: Content::Random,
            working_set_mib: 8,
            load,
        }
    }

    #[test]
    fn whoever_is_busy_beside_it_sees_itself_stand_still() {
        for load in [Load::Idle, Load::Rate(1000), Load::Max] {
            let (result, noticed) = Busy::of(&guest(load)).unwrap().beside(|| {
                thread::sleep(Duration::from_millis(50));
                7
            });
            assert_eq!(result, 7);
            // A clock does not tick between two readings that follow each other at once.
            assert!(!noticed.gap.is_zero(), "{load:?}");
            assert!(noticed.lost < Duration::from_secs(10), "{load:?} {noticed:?}");
        }
    }

    #[test]
    fn work_that_is_not_done_is_lost() {
        let spell = |done| Spell { took: Duration::from_secs(1), gap: Duration::ZERO, done };
        assert_eq!((spell(100).pace(), spell(0).pace()), (100.0, 1.0));
    }

    #[test]
    fn pages_are_written_at_the_pace_of_the_load() {
        let busy = Busy::of(&guest(Load::Rate(1000))).unwrap();
        let mut writer = Writer::new(&busy, 0);
        let from = writer.due;
        let at = |ms| from + Duration::from_millis(ms);
        // Two threads share the load.
        let done: Vec<_> = [0, 1, 2, 3, 4].map(|ms| writer.turn(at(ms))).to_vec();
        assert_eq!(done, [1, 0, 1, 0, 1]);
        assert_eq!(writer.turn(at(500)) + writer.turn(at(500)), 1, "what it was late for is not made up for");
    }
}
