//! The seam: what the engine must be able to ask of a guest that leaves and of a host where it arrives.
//!
//! A VMM implements [`Departing`] and [`Host`]/[`Arriving`] (plus [`Ram`], which both share) and gets
//! every mode of migration. The engine knows no KVM: it sees page sets, an opaque state, and byte streams.
//! Each half mirrors the other: what `Departing` saves, `Arriving` restores.

mod faults;

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::thread::CpuSet;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::options::ClockPolicy;
use crate::pages::{PageRun, PageSet};

pub use faults::{BLOCK_PAGES, BLOCK_PARTS, Faults, PART_PAGES, Stage};

/// What a guest's side (VMM, kernel) can fail with. The text names the thing, the value and the way out.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct GuestError(pub String);

/// Result of an operation on a guest.
pub type Result<T> = std::result::Result<T, GuestError>;

impl From<io::Error> for GuestError {
    fn from(error: io::Error) -> Self {
        Self(error.to_string())
    }
}

/// What the source tells the destination about its guest before any RAM moves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Description {
    /// The guest's name, for people.
    pub name: String,
    /// The guest's identity: survives every move.
    pub uuid: Uuid,
    /// Which incarnation of it this is: 0 since its boot, more with every move.
    #[serde(default)]
    pub epoch: u64,
    /// Number of vCPUs.
    pub vcpus: u32,
    /// RAM, ascending and disjoint.
    pub ram: Vec<PageRun>,
    /// Number of network interfaces.
    #[serde(default)]
    pub nics: u32,
    /// What the VMM wants to judge itself (CPUID, MSRs, devices, state versions): opaque to the engine.
    pub machine: serde_json::Value,
}

impl Description {
    /// One past the largest frame number of RAM.
    #[must_use]
    pub fn gfn_limit(&self) -> u64 {
        self.ram.last().map_or(0, PageRun::end)
    }

    /// Pages of RAM.
    #[must_use]
    pub fn pages(&self) -> u64 {
        self.ram.iter().map(|run| run.count).sum()
    }

    /// Whether the run lies wholly inside RAM. Every run named by a peer is checked with this.
    #[must_use]
    pub fn holds(&self, run: PageRun) -> bool {
        let Some(end) = run.first.checked_add(run.count) else { return false };
        self.ram.iter().any(|ram| ram.first <= run.first && end <= ram.end())
    }
}

/// Guest RAM as bulk data. The runs given are always inside RAM: the engine has checked them.
///
/// Reads race with a running guest by design: the dirty log says which pages must be read again.
pub trait Ram: Send + Sync {
    /// Pages that were ever written, others among them perhaps; all that are not in it read as zero and need not be sent.
    ///
    /// # Errors
    /// When the host cannot say.
    fn populated(&self) -> Result<PageSet>;

    /// The part of `run` whose pages are all zero, appended to `zeros`; the rest to `data`.
    fn split_zeros(&self, run: PageRun, zeros: &mut Vec<PageRun>, data: &mut Vec<PageRun>);

    /// Writes `head` and then the pages of `runs` to a socket, straight from guest memory, wholly.
    /// At most [`crate::wire::limits::RUNS_PER_FRAME`] runs.
    ///
    /// # Errors
    /// As the socket fails; `WouldBlock` or `TimedOut` after the socket's own time limit.
    fn send(&self, head: &[u8], runs: &[PageRun], socket: BorrowedFd<'_>) -> io::Result<()>;

    /// Fills the pages of `runs` from a socket, straight into guest memory, wholly.
    ///
    /// # Errors
    /// As for [`send`](Self::send); `UnexpectedEof` when the peer closed.
    fn receive(&self, runs: &[PageRun], socket: BorrowedFd<'_>) -> io::Result<()>;

    /// Copies pages out, for links without a socket. `into` is `run.bytes()` long.
    fn copy_out(&self, run: PageRun, into: &mut [u8]);

    /// Copies pages in. `from` is `run.bytes()` long.
    fn copy_in(&self, run: PageRun, from: &[u8]);

    /// Makes the pages read as zero.
    ///
    /// # Errors
    /// When the host refuses.
    fn clear(&self, run: PageRun) -> Result<()>;

    /// Makes host memory ready for pages that will be received soon, so that landing them is a mere copy.
    fn prepare(&self, run: PageRun);

    /// A 64-bit hash (xxh3) of each page of `run`, appended to `into`; untouched pages hash like zero pages,
    /// and are not touched by it.
    fn hash(&self, run: PageRun, into: &mut Vec<u64>);
}

/// What a guest that keeps its own telemetry (the demo guest) says of itself at one moment.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Telemetry {
    /// The guest's TSC when it wrote this, in kHz ticks of [`tsc_khz`](Self::tsc_khz).
    pub tsc: u64,
    /// TSC frequency.
    pub tsc_khz: u64,
    /// Units of work done since boot (pages dirtied, or units of the guest's other workloads).
    pub work: u64,
    /// Work per second over the last second or so of the guest's own history.
    pub work_per_s: f64,
    /// Largest gap between two TSC readings in ring 3 since the measuring window was opened, µs.
    pub window_gap_us: f64,
    /// The TSC at which it began.
    #[serde(default)]
    pub window_gap_from: u64,
    /// Largest gap between two timer ticks since then, µs.
    pub window_tick_gap_us: f64,
    /// Violations the guest's oracle has found.
    pub corruptions: u64,
}

impl Telemetry {
    /// Seconds by the guest's own clock since it said `before`.
    #[must_use]
    pub fn seconds_since(&self, before: &Self) -> f64 {
        self.tsc.saturating_sub(before.tsc) as f64 / (before.tsc_khz.max(1) as f64 * 1e3)
    }

    /// Units of work done since then.
    #[must_use]
    pub fn work_since(&self, before: &Self) -> f64 {
        self.work.saturating_sub(before.work) as f64
    }

    /// … a second; 0 where no time has passed.
    #[must_use]
    pub fn pace_since(&self, before: &Self) -> f64 {
        let seconds = self.seconds_since(before);
        if seconds > 0.0 { self.work_since(before) / seconds } else { 0.0 }
    }
}

/// What came from the network for a guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packet {
    /// For which of its network interfaces, from 0.
    pub nic: u32,
    /// An Ethernet frame.
    pub bytes: Vec<u8>,
}

/// The guest that may leave: what the source asks of its VMM.
pub trait Departing: Send + Sync {
    /// What the destination must know.
    fn description(&self) -> Description;

    /// Its memory.
    fn ram(&self) -> Arc<dyn Ram>;

    /// Starts dirty logging. From here every write is seen by [`harvest`](Self::harvest).
    ///
    /// # Errors
    /// When the kernel refuses.
    fn start_dirty_log(&self) -> Result<()>;

    /// Adds the pages written since they were last [`protect`](Self::protect)ed to `set`, which has room for all. Forgets nothing
    /// the kernel logs; the VMM's own writes are moved into it, so the caller must send them or keep them.
    ///
    /// # Errors
    /// When the kernel refuses.
    fn harvest(&self, set: &mut PageSet) -> Result<()>;

    /// Starts watching the pages of `set` inside `window` anew. Comes before they are read: what is written from here on shows in
    /// the next harvest. `window` starts and ends on a multiple of 64 pages; parts of it may be no RAM, where `set` has no pages.
    ///
    /// # Errors
    /// When the kernel refuses.
    fn protect(&self, set: &PageSet, window: PageRun) -> Result<()>;

    /// Stops dirty logging: the guest is as fast as before.
    fn stop_dirty_log(&self);

    /// Holds those vCPUs back that have `written` so many pages since dirty logging began, or since this was called last, for so many
    /// percent of their time, below 100; 0: none any more. Whoever cannot tell them apart holds all of them back. In a pause that
    /// ends by itself.
    ///
    /// # Errors
    /// When the host refuses what it takes.
    fn throttle(&self, percent: u8, written: u64) -> Result<()>;

    /// The cores of the host that the vCPUs are on, as far as that is known.
    fn vcpus_are_on(&self) -> CpuSet {
        CpuSet::new()
    }

    /// Has the vCPUs go to these cores of the host, from where they may go on to any other. Best effort.
    fn send_vcpus_to(&self, _cores: &CpuSet) {}

    /// Puts on stable storage what the guest has written outside of its memory, as far as it can be now: while it runs,
    /// so that little is left for the pause, and in the pause, while the destination is at work. What fails is told by
    /// [`hand_over`](Self::hand_over). Storage may hang: it is waited for only as long as `go_on` says so.
    ///
    /// # Errors
    /// Only when it was given up: what hangs, and for how long.
    fn settle(&self, go_on: &dyn Fn() -> bool) -> Result<()>;

    /// Lets the destination take what the guest has outside of its memory (disks), all of it on stable storage. Comes last
    /// before commit. [`resume`](Self::resume) takes it back.
    ///
    /// # Errors
    /// When what was written cannot be made to last, or hangs until `go_on` says no more.
    fn hand_over(&self, go_on: &dyn Fn() -> bool) -> Result<()>;

    /// Stops the vCPUs and devices. Idempotent.
    ///
    /// # Errors
    /// When a vCPU cannot be stopped; the guest is then running.
    fn pause(&self) -> Result<()>;

    /// This host's clock, by which a state says when it was saved, ns. Not stopped by a pause.
    fn clock_ns(&self) -> u64;

    /// The state of everything but RAM. Only from a paused guest. `clock`: what becomes of its clock until it is restored.
    ///
    /// # Errors
    /// When the kernel refuses; or the guest is not paused.
    fn save(&self, clock: ClockPolicy) -> Result<Vec<u8>>;

    /// Frame numbers of pages that the guest of a state just saved touches as soon as it runs: where its vCPUs
    /// execute, their stacks, the page tables that lead there. A hint: post-copy sends them first.
    fn first_pages(&self, state: &[u8]) -> Vec<u64>;

    /// Runs the guest on where it is. Only `handover` may lead here. Idempotent.
    ///
    /// # Errors
    /// When the guest has already been given up.
    fn resume(&self) -> Result<()>;

    /// From here on the guest is this incarnation: it was forced to run on here.
    fn set_epoch(&self, epoch: u64);

    /// The guest runs elsewhere: takes what has come from the network for it here since it was paused, and what still
    /// comes. Waits for the first, not much longer than `wait`.
    fn take_packets(&self, wait: Duration, into: &mut Vec<Packet>);

    /// The guest runs elsewhere and all of it has arrived: lets go of it and its memory.
    fn release(&self);

    /// The guest's own figures, if it keeps any.
    fn telemetry(&self) -> Option<Telemetry>;

    /// Asks the guest to start a new measuring window; true when it has acknowledged.
    fn open_window(&self, wait: Duration) -> bool;
}

/// A place where a guest can arrive.
pub trait Host: Send + Sync {
    /// Every reason why this guest cannot run here. Empty: it can.
    fn examine(&self, guest: &Description, postcopy: bool) -> Vec<String>;

    /// Builds the machine, paused and blank, with all that can be done before the state comes. The guest's
    /// [epoch](Description::epoch) is the one it will have here.
    ///
    /// # Errors
    /// When it cannot be built after all.
    fn build(&self, guest: &Description) -> Result<Arc<dyn Arriving>>;
}

/// A machine that waits for its guest's memory and state.
pub trait Arriving: Send + Sync {
    /// Its memory.
    fn ram(&self) -> Arc<dyn Ram>;

    /// How long a save and a restore take here, from rehearsing both on the blank machine.
    fn rehearse(&self) -> Rehearsal;

    /// Keeps the vCPUs to these cores of the host, while pages are missing; none: lets them run wherever they could before. Best
    /// effort: a vCPU that may use none of them stays where it is.
    fn keep_vcpus_to(&self, _cores: Option<&CpuSet>) {}

    /// Post-copy: discards `missing` and from here on catches every touch of a page that does not exist, of these or
    /// of any never populated, by the guest or by the kernel on its behalf. Nothing lands any more.
    ///
    /// # Errors
    /// When the kernel cannot catch faults.
    fn catch_faults(&self, missing: &PageSet) -> Result<Arc<dyn Faults>>;

    /// Puts the saved state in place. The guest stays paused. `source`: by which clock it was saved, where that was told.
    ///
    /// # Errors
    /// When the state cannot be read or the kernel refuses a part of it.
    fn restore(&self, state: &[u8], source: Option<HeardClock>) -> Result<()>;

    /// The guest is complete, and will be resumed in a moment if all goes well.
    fn stand_by(&self) {}

    /// Runs the guest. Only `handover` may lead here.
    ///
    /// # Errors
    /// When a vCPU cannot be started.
    fn resume(&self) -> Result<()>;

    /// The source has sent a packet after the guest.
    fn deliver_packet(&self, packet: &Packet);

    /// Pauses a guest that runs but whose memory does not come (post-copy with a lost source).
    fn suspend(&self);

    /// Runs a suspended guest on: its memory has come after all.
    ///
    /// # Errors
    /// When a vCPU cannot be started.
    fn run_on(&self) -> Result<()>;

    /// Throws the machine away: the migration ended before the guest was here.
    fn discard(&self);

    /// Starts logging writes, so that verification after post-copy knows which pages are unchanged.
    ///
    /// # Errors
    /// When the kernel refuses.
    fn start_dirty_log(&self) -> Result<()>;

    /// Pages written since [`start_dirty_log`](Self::start_dirty_log).
    ///
    /// # Errors
    /// When the kernel refuses.
    fn harvest(&self) -> Result<PageSet>;

    /// Stops logging writes.
    fn stop_dirty_log(&self);

    /// The guest's own figures, if it keeps any.
    fn telemetry(&self) -> Option<Telemetry>;
}

/// The [source's clock](Departing::clock_ns) as the destination heard it: it can tell how long ago the guest was saved without
/// a clock that both hosts agree on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeardClock {
    /// What it showed when it was told, shortly before the pause, ns.
    pub shown_ns: u64,
    /// When that was heard here: later, by as long as it was on its way.
    pub heard: Instant,
}

/// Measured durations of state save and restore.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rehearsal {
    /// Saving the state of a blank machine of this shape, µs.
    pub save_us: u64,
    /// Restoring it, µs.
    pub restore_us: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pace_is_work_by_the_guest_s_own_clock() {
        let told = |ms: u64, work| Telemetry {
            tsc: ms * 2_000_000,
            tsc_khz: 2_000_000,
            work,
            ..Telemetry::default()
        };
        let (from, to) = (told(1000, 500), told(3000, 4500));
        assert_eq!(
            (to.seconds_since(&from), to.work_since(&from), to.pace_since(&from)),
            (2.0, 4000.0, 2000.0)
        );
        assert_eq!(from.pace_since(&from), 0.0);
    }
}
