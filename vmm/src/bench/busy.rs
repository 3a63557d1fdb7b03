//! Threads that are busy in the place of a guest's vCPUs, and what they notice of work beside them: no guest notices less.

use std::sync::{Arc, OnceLock};
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

/// They write over no more memory than this, whatever the guest does: enough for no cache to hold it.
const MOST_BYTES: u64 = 1 << 30;

/// Where a page is written, bytes from its beginning, as the demo guest does.
const STAMPS: [u64; 3] = [0, 2048, 4080];

/// Being late by more than this, and than so many pages, is not made up for, as the demo guest does.
const STALL: Duration = Duration::from_millis(1);
const BATCH: u32 = 8;

/// What one of them noticed, the worst of all of them.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
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

/// When work beside the threads began, and when it was over.
#[derive(Debug, Default)]
struct Window {
    began: OnceLock<Instant>,
    over: OnceLock<Instant>,
}

/// Ends the window, however the work ends: the threads wait for nothing else.
struct Ends<'a>(&'a Window);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        // What never began is over from its beginning.
        self.0.began.get_or_init(Instant::now);
        self.0.over.get_or_init(Instant::now);
    }
}

impl Busy {
    /// Memory for a guest's work.
    pub(super) fn of(guest: &GuestPlan) -> Result<Self, MemoryError> {
        let bytes = written_by(guest);
        let memory = GuestRam::new(Layout::for_bytes(bytes)?)?;
        (0..bytes).step_by(PAGE_SIZE).for_each(|gpa| bulk::copy_in(&memory, gpa, &gpa.to_le_bytes()));
        Ok(Self { threads: guest.cpus.get(), load: guest.load, memory, bytes })
    }

    /// Does some work beside them.
    pub(super) fn beside<T>(&self, work: impl FnOnce() -> T) -> (T, Noticed) {
        let window = Window::default();
        thread::scope(|scope| {
            let window = &window;
            let threads: Vec<_> =
                (0..self.threads).map(|number| scope.spawn(move || self.work(number, window))).collect();
            let ends = Ends(window);
            if self.threads > 0 {
                thread::sleep(BEFORE);
            }
            window.began.get_or_init(Instant::now);
            let result = work();
            drop(ends);
            let worst = threads.into_iter().fold(Noticed::default(), |worst, thread| {
                let noticed = thread.join().expect("a busy thread does not panic");
                Noticed { gap: worst.gap.max(noticed.gap), lost: worst.lost.max(noticed.lost) }
            });
            (result, worst)
        })
    }

    /// What a thread does until it is over. What it misses at either end of the window counts: it may have no core there.
    fn work(&self, number: u32, window: &Window) -> Noticed {
        let mut writer = Writer::new(self, number);
        let from = Instant::now();
        let (mut last, mut alone, mut done, mut gap) = (from, 0, 0, Duration::ZERO);
        loop {
            let now = Instant::now();
            let (began, over) = (window.began.get().copied(), window.over.get().copied());
            let Some(began) = began else {
                last = now;
                alone += writer.turn(now);
                continue;
            };
            let until = over.unwrap_or(now);
            gap = gap.max(until.saturating_duration_since(last.max(began)));
            last = now;
            let Some(over) = over else {
                done += writer.turn(now);
                continue;
            };
            let pace = writer.pace().unwrap_or_else(|| alone as f64 / (began - from).as_secs_f64().max(1e-9));
            return Noticed { gap, lost: lost(over - began, done, pace) };
        }
    }
}

/// Bytes over which they write.
fn written_by(guest: &GuestPlan) -> u64 {
    let written = if guest.load == Load::Idle { 0 } else { guest.working_set_mib << 20 };
    written.clamp(MIN_BYTES, MOST_BYTES).next_multiple_of(2 << 20)
}

/// Time in which as much is done as was not in this time, at so many units a second.
fn lost(took: Duration, done: u64, pace: f64) -> Duration {
    let done = Duration::from_secs_f64(done as f64 / pace.max(1e-9)).min(took);
    took - done
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
            Load::Rate(rate) => Some(Duration::from_secs_f64(f64::from(busy.threads) / rate as f64)),
            Load::Max => Some(Duration::ZERO),
        };
        Self { busy, interval, due: Instant::now(), random: 0x9e37_79b9_7f4a_7c15 ^ u64::from(number) }
    }

    /// Units of work a second, where the load says how many.
    fn pace(&self) -> Option<f64> {
        self.interval.filter(|interval| !interval.is_zero()).map(|interval| 1.0 / interval.as_secs_f64())
    }

    /// Units of work done: pages, or where there are none to write, readings of the clock.
    fn turn(&mut self, now: Instant) -> u64 {
        let Some(interval) = self.interval else { return 1 };
        if now < self.due {
            return 0;
        }
        let gives_up = now - self.due > STALL.max(interval * BATCH);
        self.due = if gives_up { now } else { self.due } + interval;
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
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::*;
    use crate::lab::guest::tests::plan;

    fn guest(load: Load) -> GuestPlan {
        GuestPlan { cpus: "2".parse().unwrap(), working_set_mib: 8, ..plan(load) }
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
        }
    }

    #[test]
    fn a_thread_that_has_no_core_all_the_time_has_lost_all_of_it() {
        let busy = Busy::of(&guest(Load::Max)).unwrap();
        let window = Window::default();
        let began = *window.began.get_or_init(|| Instant::now() - Duration::from_secs(3));
        window.over.get_or_init(|| began + Duration::from_secs(2));
        // It began to work when all was over: the window is longer than it has been there.
        let noticed = busy.work(0, &window);
        assert_eq!(noticed.lost, Duration::from_secs(2));
        assert!(noticed.gap <= Duration::from_secs(2));
    }

    #[test]
    fn what_is_not_done_is_lost() {
        let second = Duration::from_secs(1);
        assert_eq!(lost(second, 100, 100.0), Duration::ZERO);
        assert_eq!(lost(second, 25, 100.0), Duration::from_millis(750));
        assert_eq!(lost(second, 130, 100.0), Duration::ZERO, "more than at its pace is no less than nothing");
        assert_eq!(lost(second, 0, 0.0), second);
    }

    #[test]
    fn work_that_panics_lets_the_threads_go() {
        let busy = Busy::of(&guest(Load::Idle)).unwrap();
        assert!(catch_unwind(AssertUnwindSafe(|| busy.beside(|| panic!("on purpose")))).is_err());
    }

    #[test]
    fn pages_are_written_at_the_pace_of_the_load() {
        let busy = Busy::of(&guest(Load::Rate(1000))).unwrap();
        let mut writer = Writer::new(&busy, 0);
        assert_eq!(writer.pace(), Some(500.0), "two threads share the load");
        let from = writer.due;
        let at = |ms| from + Duration::from_millis(ms);
        let done: Vec<_> = [0, 1, 2, 3, 4].map(|ms| writer.turn(at(ms))).to_vec();
        assert_eq!(done, [1, 0, 1, 0, 1]);
        assert_eq!(writer.turn(at(500)) + writer.turn(at(500)), 1, "what it was late for is not made up for");
        assert_eq!(Writer::new(&Busy::of(&guest(Load::Max)).unwrap(), 0).pace(), None);
    }

    #[test]
    fn a_large_guest_s_work_is_done_over_less_memory() {
        let over = |working_set_mib| written_by(&GuestPlan { working_set_mib, ..guest(Load::Max) });
        // Below where RAM has a hole, too.
        assert_eq!([over(32 << 10), over(513), over(8)], [1 << 30, 514 << 20, 16 << 20]);
    }
}
