//! The guest's time stamp counter across hosts.
//!
//! The guest reads *base + offset*: base is the host's TSC at the guest's frequency. One pair of base and wall clock is
//! taken for all vCPUs of a machine, by whichever comes first, so that the offsets on the destination keep the
//! differences they had (the kernel's recipe, Documentation/virt/kvm/devices/vcpu.rst, section KVM_VCPU_TSC_OFFSET,
//! with the base measured in guest cycles so that it holds for scaled TSCs too).
//!
//! How long it stood still is told by one clock wherever possible, that of the host it left: two hosts' wall clocks
//! may differ by anything, and the guest would see the difference as time.

use std::io;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::msrs;
use crate::kvm::ioctl;

/// IA32_TIME_STAMP_COUNTER.
pub(super) const IA32_TSC: u32 = 0x10;
/// IA32_TSC_DEADLINE.
pub(super) const IA32_TSC_DEADLINE: u32 = 0x6e0;

/// A moment, as the TSC and as the wall clock see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Base {
    /// The host's TSC in guest cycles.
    pub(super) tsc: u64,
    /// `CLOCK_REALTIME`, ns.
    pub(super) realtime_ns: u64,
}

/// This host's pair. In this order, so that time lost between them is never counted: `at`, the TSC, the wall clock.
#[derive(Debug, Clone, Copy)]
pub(super) struct Here {
    pub(super) at: Instant,
    pub(super) base: Base,
}

/// The clock of the host that a guest leaves, as it was told here while the guest still ran there.
#[derive(Debug, Clone, Copy)]
pub struct SourceClock {
    /// What it showed when it was told: `CLOCK_REALTIME` there, ns.
    pub shown_ns: u64,
    /// When that was heard here.
    pub heard: Instant,
}

/// What says how long a guest whose state is restored has stood still.
#[derive(Debug, Clone, Copy)]
pub enum StoodStill {
    /// Nothing: its TSC goes on from where it stopped.
    Untold,
    /// The clock of the host it left.
    By(SourceClock),
    /// The wall clocks of both hosts, as far as they agree.
    ByWallClocks,
}

impl StoodStill {
    /// The time from `saved_ns` of the other host's `CLOCK_REALTIME` to `here`. Never negative, and by the source's clock
    /// never more than it was: what was told took its way here, and a clock that is set meanwhile is not believed beyond
    /// the time since then.
    fn time(self, saved_ns: u64, here: Here) -> Duration {
        let since = |now_ns: u64| Duration::from_nanos(now_ns.saturating_sub(saved_ns));
        match self {
            Self::Untold => Duration::ZERO,
            Self::By(source) => {
                let told = here.at.saturating_duration_since(source.heard);
                since(source.shown_ns.saturating_add(told.as_nanos() as u64)).min(told)
            }
            Self::ByWallClocks => since(here.base.realtime_ns),
        }
    }
}

/// A vCPU's TSC as it travels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SavedTsc {
    /// Added to the base: what the guest reads.
    pub(super) offset: u64,
    /// When.
    pub(super) base: Base,
}

impl SavedTsc {
    pub(super) const BYTES: usize = 24;

    pub(super) fn to_bytes(self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        for (place, value) in
            bytes.chunks_exact_mut(8).zip([self.offset, self.base.tsc, self.base.realtime_ns])
        {
            place.copy_from_slice(&value.to_le_bytes());
        }
        bytes
    }

    pub(super) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; Self::BYTES] = bytes.try_into().ok()?;
        let (words, _) = bytes.as_chunks::<8>();
        let [offset, tsc, realtime_ns] = [words[0], words[1], words[2]].map(u64::from_le_bytes);
        Some(Self { offset, base: Base { tsc, realtime_ns } })
    }

    /// The offset with which the guest's TSC goes on at `here`, the time it stood still included.
    pub(super) fn offset_at(self, here: Here, stood_still: StoodStill, khz: u32) -> u64 {
        let passed = stood_still.time(self.base.realtime_ns, here);
        let cycles = passed.as_nanos() * u128::from(khz) / 1_000_000;
        self.offset.wrapping_add(self.base.tsc).wrapping_sub(here.base.tsc).wrapping_add(cycles as u64)
    }
}

/// Takes the pair through a vCPU.
pub(super) fn sample(fd: BorrowedFd<'_>) -> io::Result<Here> {
    let at = Instant::now();
    let guest = msrs::read_one(fd, IA32_TSC)?;
    let realtime_ns = realtime_ns();
    Ok(Here { at, base: Base { tsc: guest.wrapping_sub(ioctl::tsc_offset(fd)?), realtime_ns } })
}

/// `CLOCK_REALTIME` in ns.
pub(crate) fn realtime_ns() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const KHZ: u32 = 2_000_000;
    /// Where the source's clock stands when it is told.
    const SHOWN_NS: u64 = 1 << 60;

    /// A guest that is moved: what happens how long after the source's clock was told, by a clock that is right.
    #[derive(Debug, Clone, Copy)]
    struct Move {
        heard: Duration,
        saved: Duration,
        restored: Duration,
        /// The destination's wall clock is ahead of the source's by so much.
        ahead_ms: i64,
        /// The source's wall clock is set forward by so much between telling and saving.
        set_ms: i64,
    }

    fn shifted(ns: u64, by_ms: i64) -> u64 {
        ns.checked_add_signed(by_ms * 1_000_000).unwrap()
    }

    impl Move {
        /// How far the guest's TSC goes on while it stands still.
        fn jump(self, by: impl FnOnce(SourceClock) -> StoodStill) -> Duration {
            let told = Instant::now();
            let wall = |after: Duration, by_ms| shifted(SHOWN_NS + after.as_nanos() as u64, by_ms);
            let there = Base { tsc: 77, realtime_ns: wall(self.saved, self.set_ms) };
            let base = Base { tsc: 1_000_000_007, realtime_ns: wall(self.restored, self.ahead_ms) };
            let here = Here { at: told + self.restored, base };
            let saved = SavedTsc { offset: 5, base: there };
            let source = SourceClock { shown_ns: SHOWN_NS, heard: told + self.heard };
            let after = base.tsc.wrapping_add(saved.offset_at(here, by(source), KHZ));
            Duration::from_nanos(after.wrapping_sub(there.tsc.wrapping_add(saved.offset)) / 2)
        }
    }

    /// Any, of hosts whose clocks differ by up to `apart_ms`.
    fn any_move(apart_ms: i64) -> impl Strategy<Value = Move> {
        let us = |most: u64| (0..most).prop_map(Duration::from_micros);
        (us(500_000), us(500_000), us(5_000_000), -apart_ms..=apart_ms).prop_map(
            |(heard, saved, restored, ahead_ms)| {
                let restored = heard.max(saved) + restored;
                Move { heard, saved, restored, ahead_ms, set_ms: 0 }
            },
        )
    }

    proptest! {
        #[test]
        fn the_tsc_goes_on_by_the_pause_whatever_the_hosts_clocks_say(it in any_move(1 << 40)) {
            let jump = it.jump(StoodStill::By);
            let pause = it.restored - it.saved;
            prop_assert!(jump <= pause && jump + it.heard >= pause, "{jump:?} of {pause:?}");
        }

        #[test]
        fn a_clock_that_is_set_in_the_pause_moves_the_tsc_by_no_more_than_since_it_was_told(
            it in any_move(0), set_ms in -100_000_000_i64..100_000_000,
        ) {
            let jump = Move { set_ms, ..it }.jump(StoodStill::By);
            prop_assert!(jump <= it.restored, "{jump:?}");
        }

        #[test]
        fn by_wall_clocks_that_agree_it_goes_on_by_the_pause(it in any_move(0)) {
            prop_assert_eq!(it.jump(|_| StoodStill::ByWallClocks), it.restored - it.saved);
            prop_assert_eq!(it.jump(|_| StoodStill::Untold), Duration::ZERO);
        }
    }

    #[test]
    fn ten_seconds_between_the_hosts_are_none_for_the_guest() {
        let ms = Duration::from_millis;
        for ahead_ms in [-10_000, 0, 10_000] {
            let it = Move { heard: ms(1), saved: ms(3), restored: ms(33), ahead_ms, set_ms: 0 };
            assert_eq!(it.jump(StoodStill::By), ms(29), "the pause of 30 ms less what the telling took");
        }
        let it = Move { heard: ms(1), saved: ms(3), restored: ms(33), ahead_ms: -10_000, set_ms: 0 };
        assert_eq!(it.jump(|_| StoodStill::ByWallClocks), ms(0), "not back, at least");
    }

    #[test]
    fn bytes_there_and_back() {
        let saved = SavedTsc { offset: u64::MAX, base: Base { tsc: 2, realtime_ns: 3 } };
        assert_eq!(SavedTsc::from_bytes(&saved.to_bytes()), Some(saved));
        assert_eq!(SavedTsc::from_bytes(&[0; 23]), None);
    }
}
