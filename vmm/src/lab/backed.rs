//! Memory that is there. A host that is itself a virtual machine gives memory back to the one below while nobody uses it,
//! and gets it again page by page, which takes longer than all that is measured here: 4 ms for a huge page, instead of
//! 0.1. So what a guest will need is taken, written, and let go of right before it is needed: bit by bit, as the one below
//! takes what is let go of within milliseconds. On a host of iron this changes nothing.
//!
//! In huge pages whatever they cost: a kernel gives out whole free ones first, and those that were put together of small pages
//! after them. And until taking it is fast, because only then is it what is given out next.

use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::LabError;
use super::guest::GuestPlan;
use super::usage::resident_bytes;
use crate::memory::layout::{Layout, RegionSpec};
use crate::memory::ram::GuestRam;
use crate::migration::memory_available;

/// Bytes made ready in one call.
const PIECE: u64 = 32 << 20;

/// Let go of beyond what a process has taken: a thirtieth of a second of it at 4 GB/s.
const AHEAD: u64 = 128 << 20;

/// Let go of at once: 25 µs of a core.
const MORSEL: u64 = 8 << 20;

/// How often it is looked how far the process is: it takes 16 MB in that time.
const LOOKS_EVERY: Duration = Duration::from_millis(4);

/// What a host must have free beside a guest's RAM.
const FREE_BESIDE: u64 = 512 << 20;

/// Memory that is there is taken at 24 GB/s here, and at 0.5 to 2 where it comes from below.
const FAST_BYTES_PER_S: f64 = 5e9;

/// A host that gives no huge pages, or takes memory away as fast as it is let go of, is not asked for ever.
const TIMES: usize = 4;

/// As much memory as a guest has, taken from the host. Dropping it is letting go of it.
#[derive(Debug)]
pub struct BackedMemory {
    ram: Arc<GuestRam>,
    /// RAM of the guest that it is for, if it is for one.
    guest: Option<u64>,
}

impl BackedMemory {
    /// Takes memory of so many bytes, rounded up to what a guest can have.
    ///
    /// # Errors
    /// When the host has no address space for it.
    pub fn take(bytes: u64) -> Result<Self, LabError> {
        let mut taken = Self::take_once(bytes)?;
        for _ in 1..TIMES {
            drop(taken);
            let since = Instant::now();
            taken = Self::take_once(bytes)?;
            if bytes as f64 / since.elapsed().as_secs_f64() > FAST_BYTES_PER_S {
                break;
            }
        }
        Ok(taken)
    }

    /// Lets go of it as process `pid` takes memory, somewhat ahead of it; of the rest when what is returned is dropped. At once
    /// of as much as the host must have free for the guest: a destination looks at that before it takes any.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn make_way_for(self, pid: u32) -> Result<MakingWay, LabError> {
        let wanted = self.guest.map_or(0, |ram| ram + FREE_BESIDE);
        let lacking = memory_available().map_or(0, |available| wanted.saturating_sub(available));
        let (mut morsels, mut given) = (self.morsels().into_iter(), 0);
        while given < lacking
            && let Some(morsel) = morsels.next()
        {
            given += self.let_go(morsel);
        }
        let (end, ended) = channel::<()>();
        let thread = thread::Builder::new().name("backed".to_owned()).spawn(move || {
            for morsel in morsels {
                while resident_bytes(pid).is_some_and(|resident| given >= resident + AHEAD) {
                    if ended.recv_timeout(LOOKS_EVERY) != Err(RecvTimeoutError::Timeout) {
                        return;
                    }
                }
                given += self.let_go(morsel);
            }
        });
        let thread = thread.map_err(LabError::host("start a thread"))?;
        Ok(MakingWay { end: Some(end), thread: Some(thread) })
    }

    fn let_go(&self, (at, bytes): (u64, u64)) -> u64 {
        // What cannot be let go of now is when all of it is.
        let _ = self.ram.discard(at, bytes);
        bytes
    }

    fn morsels(&self) -> Vec<(u64, u64)> {
        let of = |region: &RegionSpec| {
            let (start, bytes) = (region.start, region.bytes);
            (0..bytes).step_by(MORSEL as usize).map(move |at| (start + at, MORSEL.min(bytes - at)))
        };
        self.ram.layout().regions().iter().flat_map(of).collect()
    }

    fn take_once(bytes: u64) -> Result<Self, LabError> {
        let layout = Layout::for_bytes(bytes.next_multiple_of(2 << 20).max(16 << 20));
        let ram = layout.and_then(GuestRam::new).map_err(|error| LabError::Arguments(error.to_string()))?;
        ram.only_huge();
        for region in ram.layout().regions() {
            for at in (0..region.bytes).step_by(PIECE as usize) {
                ram.populate(region.start + at, PIECE.min(region.bytes - at));
            }
        }
        Ok(Self { ram, guest: None })
    }

    /// The same, of as much as a guest will have written, beside other work.
    ///
    /// # Errors
    /// As [`take`](Self::take).
    ///
    /// # Panics
    /// When the thread that takes it does.
    pub async fn for_guest(guest: &GuestPlan) -> Result<Self, LabError> {
        let bytes = guest.written_bytes();
        let taking = tokio::task::spawn_blocking(move || Self::take(bytes));
        let taken = taking.await.expect("taking memory does not panic")?;
        Ok(Self { guest: Some(guest.memory.bytes()), ..taken })
    }
}

/// Memory that is let go of as a process needs it.
#[derive(Debug)]
pub struct MakingWay {
    /// Dropped: no more is to be waited for.
    end: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for MakingWay {
    fn drop(&mut self) {
        drop(self.end.take());
        if let Some(thread) = self.thread.take() {
            // It does not panic; and if it did, nothing depends on it.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn of_more_than_is_ahead_the_rest_is_held_until_nobody_needs_it() {
        let mut small = Command::new("sleep").arg("60").spawn().unwrap();
        let held = BackedMemory::take(AHEAD + 256 * MIB).unwrap();
        let ram = Arc::clone(&held.ram);
        let there = || {
            let mut bytes = 0;
            ram.populated_within(0, AHEAD + 256 * MIB, |_, more| bytes += more).unwrap();
            bytes
        };
        assert_eq!(there(), AHEAD + 256 * MIB);
        drop(held.make_way_for(small.id()).unwrap());
        small.kill().unwrap();
        small.wait().unwrap();
        let left = there() / MIB;
        assert!((200..=256).contains(&left), "{left} MiB");
    }

    #[test]
    fn who_is_gone_is_not_waited_for() {
        let held = BackedMemory::take(AHEAD + 64 * MIB).unwrap();
        let ram = Arc::clone(&held.ram);
        let mut way = held.make_way_for(u32::MAX).unwrap();
        way.thread.take().unwrap().join().unwrap();
        let mut left = 0;
        ram.populated_within(0, AHEAD + 64 * MIB, |_, more| left += more).unwrap();
        assert_eq!(left, 0);
    }
}
