//! Who goes first where there are fewer cores than work: the guest, and whoever it waits for; then bulk data.
//!
//! Bulk data moves in portions of a fraction of a millisecond. Between two of them its thread offers the core: a vCPU
//! that waits for it waits for one portion, not for the scheduler's next tick (4 ms where HZ is 250).

use std::num::NonZero;
use std::sync::LazyLock;
use std::thread;
use std::time::{Duration, Instant};

/// How long a guest that has just begun to run there is left alone: nobody is told anything, since whoever hears of an
/// event may take a core for a millisecond; and what nobody asks for is not pushed yet, so that its page requests have the
/// network and the cores to themselves. Measured in docs/decisions/the-core-is-offered.md.
pub(crate) const LEFT_ALONE: Duration = Duration::from_millis(3);

/// Pages of a portion: 256 KiB. A frame of them is sent, received or prepared at once.
pub(crate) const PORTION: u64 = 64;

/// How far the threads that move bulk data step back: they have a third of a vCPU's weight then, and still move a
/// guest whose vCPUs occupy all cores. Measured with as many busy threads as twice the cores: the guest keeps 80 %
/// of its pace instead of 40 %, at the same throughput; ten steps cost a third of that.
const BULK_STEPS_BACK: i32 = 5;

/// Whether there is a core beyond those that so many busy threads occupy.
pub(crate) fn core_beyond(busy: u32) -> bool {
    // Asked once: it reads files of the control group.
    static CORES: LazyLock<usize> = LazyLock::new(|| thread::available_parallelism().map_or(1, NonZero::get));
    *CORES > busy as usize
}

/// The calling thread moves bulk data: it gives way to vCPUs, and to the threads that serve page requests.
pub(crate) fn give_way() {
    // Linux keeps this for each thread, and means the calling one if none is named. Stepping back is always allowed;
    // were it not, bulk data would only be as urgent as the guest.
    let now = rustix::process::getpriority_process(None).unwrap_or(0);
    let _ = rustix::process::setpriority_process(None, now + BULK_STEPS_BACK);
}

/// How many times as long as it works a thread may be away for somebody else.
const AWAY_PER_WORK: i64 = 8;

/// Time to be away that can be saved up, ns: 2 s, which most moves do not need.
const MOST_SAVED: i64 = 2_000_000_000;

/// Threads that move bulk data and take turns are away for less than this, ns; who has met a busy thread for longer.
const LONG: i64 = 2_000_000;

/// When a thread that moves bulk data offers its core.
///
/// On Linux a thread that yields to one that is busy is away for a tick or longer. That is meant where there is another
/// core to go on at. Where vCPUs occupy all of them it gained the guest nothing and cost five sixths of the throughput,
/// so there the scheduler decides; and where something else does, a thread that was away too long offers no more.
#[derive(Debug)]
pub(crate) struct Turns {
    /// Whether there are more cores than the guest has vCPUs.
    to_spare: bool,
    /// How long it may be away, ns; less than nothing when it was away for longer.
    saved: i64,
    /// When it came back last.
    back: Instant,
}

impl Turns {
    /// For a guest with so many vCPUs.
    pub(crate) fn beside(vcpus: u32) -> Self {
        Self { to_spare: core_beyond(vcpus), saved: MOST_SAVED, back: Instant::now() }
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
            thread::yield_now();
            self.back = Instant::now();
            self.was_away(self.back - now);
        }
    }

    fn worked(&mut self, time: Duration) {
        self.saved = MOST_SAVED.min(self.saved.saturating_add(ns(time).saturating_mul(AWAY_PER_WORK)));
    }

    fn was_away(&mut self, time: Duration) {
        if ns(time) >= LONG {
            self.saved -= ns(time);
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
}
