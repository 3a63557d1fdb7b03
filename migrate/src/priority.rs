//! Who goes first where there are fewer cores than work: the guest, and whoever it waits for; then bulk data.
//!
//! Bulk data moves in portions of a fraction of a millisecond. Between two of them its thread offers the core: a vCPU
//! that waits for it waits for one portion, not for the scheduler's next tick (4 ms where HZ is 250).

mod parting;

use std::num::NonZero;
use std::sync::LazyLock;
use std::thread;
use std::time::{Duration, Instant};

use rustix::thread::{CpuSet, sched_getaffinity, sched_getcpu, sched_setaffinity};
use scheduling::{Turn, difference, is_in, only, take_turns};

pub(crate) use parting::Parting;

/// How long a guest that has just begun to run there is left alone: nobody is told anything, since whoever hears of an
/// event may take a core for a millisecond; and what nobody asks for is not pushed yet, so that its page requests have the
/// network and the cores to themselves. Measured in docs/decisions/the-core-is-offered.md.
pub const LEFT_ALONE: Duration = Duration::from_millis(3);

/// Pages of a portion: 256 KiB. So many are sent, received or prepared at once; more where that takes little time (measured in
/// docs/decisions/frames-by-the-link.md).
pub(crate) const PORTION: u64 = 64;

/// How far the threads that move bulk data step back: they have a third of a vCPU's weight then, and still move a
/// guest whose vCPUs occupy all cores. Measured with as many busy threads as twice the cores: the guest keeps 80 %
/// of its pace instead of 40 %, at the same throughput; ten steps cost a third of that.
const BULK_STEPS_BACK: i32 = 5;

/// Cores that this process may use, by its control group's share of time too.
fn cores_here() -> u32 {
    // Asked once: it reads files of the control group.
    static CORES: LazyLock<usize> = LazyLock::new(|| thread::available_parallelism().map_or(1, NonZero::get));
    u32::try_from(*CORES).unwrap_or(u32::MAX)
}

/// Whether there is a core beyond those that so many busy threads occupy.
pub(crate) fn core_beyond(busy: u32) -> bool {
    cores_here() > busy
}

/// Whether sender and receiver, where they are on one host, have to share a core beside a guest's vCPUs.
#[must_use]
pub fn share_a_core(vcpus: u32, streams: u32) -> bool {
    !core_beyond(vcpus.saturating_add(2 * streams))
}

/// The calling thread moves bulk data: it gives way to vCPUs, and to the threads that serve page requests, and takes short turns, so
/// that whoever else needs its core need not wait for the end of a long one.
pub fn give_way() {
    // Linux keeps this for each thread, and means the calling one if none is named. Stepping back is always allowed;
    // were it not, bulk data would only be as urgent as the guest.
    let now = rustix::process::getpriority_process(None).unwrap_or(0);
    let _ = rustix::process::setpriority_process(None, now + BULK_STEPS_BACK);
    take_turns(Turn::Bulk);
}

/// The calling thread brings vCPUs what they wait for, and does nothing else: it has their turns, and where cores are parted theirs.
pub(crate) fn serve_vcpus(parting: Option<&Parting>) {
    take_turns(Turn::Waited);
    parting.into_iter().for_each(Parting::serve_vcpus);
}

/// How many times as long as it works a thread may be away for somebody else.
const AWAY_PER_WORK: i64 = 8;

/// Time to be away that can be saved up, ns: 2 s, which most moves do not need.
const MOST_SAVED: i64 = 2_000_000_000;

/// Threads that move bulk data and take turns are away for less than this, ns; who has met a busy thread for longer.
const LONG: i64 = 2_000_000;

/// When a thread that moves bulk data offers its core.
///
/// On Linux a thread that yields to one that is busy is away for a tick or longer. Where there is another core it goes on at
/// that one, and does not come back to this: the busy one is a vCPU, perhaps, which then has it for itself. Where vCPUs
/// occupy all of them it gained the guest nothing and cost five sixths of the throughput, so there the scheduler decides;
/// and where something else does, a thread that was away too long offers no more.
#[derive(Debug)]
pub(crate) struct Turns {
    /// Whether there are more cores than the guest has vCPUs.
    to_spare: bool,
    /// How long it may be away, ns; less than nothing when it was away for longer.
    saved: i64,
    /// When it came back last.
    back: Instant,
    cores: Cores,
    /// Where it is let be it is to stay.
    is_to_stay: bool,
}

impl Turns {
    /// For a guest with so many vCPUs.
    pub(crate) fn beside(vcpus: u32) -> Self {
        Self {
            to_spare: core_beyond(vcpus),
            saved: MOST_SAVED,
            back: Instant::now(),
            cores: Cores::default(),
            is_to_stay: false,
        }
    }

    /// For a thread that bulk data, or the guest, depends on. On a host without a core for each busy thread of a migration with so
    /// many data connections it stays on the core where it is let be: moved about by the scheduler, it would be on a vCPU's by
    /// turns.
    pub(crate) fn staying(vcpus: u32, streams: u32) -> Self {
        let mut turns = Self::beside(vcpus);
        turns.is_to_stay = turns.to_spare && share_a_core(vcpus, streams);
        turns
    }

    /// From here on cores are parted, if they are: the calling thread keeps to bulk data's until this is dropped. May be said more than once.
    pub(crate) fn part(&mut self, parting: Option<&Parting>) {
        let Some(parting) = parting.filter(|_| self.cores.home.is_none()) else { return };
        if self.cores.keep_to(parting.for_bulk()) {
            // It has its place.
            self.is_to_stay = false;
        }
    }

    /// A portion has been moved: whoever waits for this core has it now.
    pub(crate) fn offer_core(&mut self) {
        if !self.to_spare {
            return;
        }
        let now = Instant::now();
        self.worked(now - self.back);
        self.back = now;
        if self.saved > 0 {
            self.step_aside();
        }
    }

    /// Whoever waits for this core has it now, and if that is for long this thread goes on at another.
    pub(crate) fn step_aside(&mut self) {
        if !self.to_spare {
            return;
        }
        let (core, since) = (sched_getcpu(), Instant::now());
        thread::yield_now();
        self.back = Instant::now();
        if self.was_away(self.back - since) {
            self.cores.leave(core);
        } else if std::mem::take(&mut self.is_to_stay) {
            self.cores.stay(core);
        }
    }

    fn worked(&mut self, time: Duration) {
        self.saved = MOST_SAVED.min(self.saved.saturating_add(ns(time).saturating_mul(AWAY_PER_WORK)));
    }

    /// Whether somebody busy had the core.
    fn was_away(&mut self, time: Duration) -> bool {
        let long = ns(time) >= LONG;
        if long {
            self.saved -= ns(time);
        }
        long
    }
}

/// The cores of a thread that steps aside. It has all of them back when this is dropped.
#[derive(Debug, Default)]
struct Cores {
    /// Where it may run, once it was asked or told.
    all: Option<CpuSet>,
    /// Where it ran before it was told.
    home: Option<CpuSet>,
    /// Where it has met somebody busy.
    left: CpuSet,
}

impl Cores {
    /// The calling thread stays on `core`.
    fn stay(&mut self, core: usize) {
        if is_in(&self.all(), core) {
            let _ = sched_setaffinity(None, &only(core));
        }
    }

    /// The calling thread keeps to `some`, and chooses among them. Whether it may.
    fn keep_to(&mut self, some: &CpuSet) -> bool {
        let home = self.all();
        let may = sched_setaffinity(None, some).is_ok();
        if may {
            (self.all, self.home, self.left) = (Some(*some), Some(home), CpuSet::new());
        }
        may
    }

    fn all(&mut self) -> CpuSet {
        *self.all.get_or_insert_with(|| sched_getaffinity(None).unwrap_or_default())
    }

    /// The calling thread leaves `core` to whoever is busy there. Where it may not, or there is no other, it stays.
    fn leave(&mut self, core: usize) {
        let all = self.all();
        let rest = if is_in(&all, core) { self.without(&all, core) } else { CpuSet::new() };
        if rest.count() > 0 {
            let _ = sched_setaffinity(None, &rest);
        }
    }

    /// Cores left of `all`. Who has met somebody busy everywhere goes where that was longest ago.
    fn without(&mut self, all: &CpuSet, core: usize) -> CpuSet {
        self.left.set(core);
        let rest = difference(all, &self.left);
        if rest.count() > 0 {
            return rest;
        }
        self.left = only(core);
        difference(all, &self.left)
    }
}

impl Drop for Cores {
    fn drop(&mut self) {
        if let Some(all) = self.home.as_ref().or(self.all.as_ref()) {
            // Who may not has not changed them either.
            let _ = sched_setaffinity(None, all);
        }
    }
}

fn ns(time: Duration) -> i64 {
    i64::try_from(time.as_nanos()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_told_its_cores_keeps_to_them_until_it_is_over() {
        // On a thread of its own, which nobody else has.
        thread::scope(|scope| {
            scope.spawn(|| {
                let now = || sched_getaffinity(None).expect("of this thread");
                let all = now();
                let each: Vec<_> = (0..CpuSet::MAX_CPU).filter(|core| all.is_set(*core)).collect();
                for core in &each {
                    let (mut cores, one) = (Cores::default(), only(*core));
                    assert!(cores.keep_to(&one));
                    // Somebody busy is there; but there is no other.
                    cores.leave(*core);
                    assert_eq!(now(), one);
                    drop(cores);
                    assert_eq!(now(), all);
                }
            });
        });
    }

    #[test]
    fn who_has_been_away_too_long_works_until_that_is_made_up_for() {
        let mut turns = Turns::beside(1);
        for _ in 0..600 {
            turns.was_away(Duration::from_millis(4));
            turns.was_away(Duration::from_millis(1));
        }
        assert_eq!(turns.saved, -400_000_000, "turns with others of its kind do not count");
        turns.worked(Duration::from_millis(50));
        assert_eq!(turns.saved, 0);
        turns.worked(Duration::from_secs(5));
        assert_eq!(turns.saved, MOST_SAVED, "a long wait on a socket saves up no more than this");
    }

    #[test]
    fn who_steps_aside_goes_where_nobody_was_met() {
        let (mut cores, mut all) = (Cores::default(), CpuSet::new());
        (2..5).for_each(|core| all.set(core));
        let mut leave = |core| {
            let rest = cores.without(&all, core);
            (0..8).filter(|core| rest.is_set(*core)).collect::<Vec<_>>()
        };
        assert_eq!(leave(3), [2, 4]);
        assert_eq!(leave(2), [4]);
        assert_eq!(leave(4), [2, 3], "all were busy: the others may not be any more");
        assert_eq!(Cores::default().without(&only(7), 7).count(), 0, "there is no other");
    }
}
