//! Whether guest memory is backed by huge pages, while it is made ready for a guest that arrives.
//!
//! A huge page is made in a sixth of the time that its small ones take, where the host has it. A host that is itself a virtual
//! machine may have to get it from the one below first, which takes ten times as long as small pages do. Only trying tells: so
//! they are timed, a few at a time, and when those were slow small pages follow for a while; for longer each time, because a
//! core that was away for a moment looks like a slow host, and ought not to cost more than that moment.

use std::time::Duration;

/// Bytes of a huge page.
pub(super) const HUGE: u64 = 2 << 20;

/// Bytes after which it is known how fast huge pages are.
const TRIAL: u64 = 16 << 20;
/// No huge page counts for more than this part of what a trial may take, so four that are slow tell, and fewer do not: a host below that
/// takes free memory back misses a few, at 5 ms each, and a core may be away for a moment.
const ONE_OF: u32 = 4;
/// … unless all of them took so many times as long as a trial may.
const FAR_TOO_LONG: u32 = 5;
/// Bytes of small pages before huge ones are tried again: at first, and at most. Twice as many each time they are slow again.
const RESPITE: u64 = 64 << 20;
const LONGEST_RESPITE: u64 = 512 << 20;
/// Huge pages that are made slower than this are not worth it. Small pages are made at 2 to 4 GB/s, huge ones at 8 to 24, and at
/// 0.5 where they come from below.
const SLOW_BYTES_PER_S: f64 = 1.5e9;

/// Which pages the host is to take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Size {
    Huge,
    Small,
}

/// What is known of the host's pace.
#[derive(Debug)]
pub(super) struct Pace {
    slow: f64,
    size: Size,
    bytes: u64,
    /// Time that they count for, and that they took.
    counted: Duration,
    took: Duration,
    /// Bytes of small pages, the next time huge ones are slow.
    respite: u64,
}

impl Default for Pace {
    fn default() -> Self {
        Self::slow_below(SLOW_BYTES_PER_S)
    }
}

impl Pace {
    /// For a use of huge pages that is not worth it where they are made slower than this.
    pub(super) fn slow_below(bytes_per_s: f64) -> Self {
        let (counted, took) = (Duration::ZERO, Duration::ZERO);
        Self { slow: bytes_per_s, size: Size::Huge, bytes: 0, counted, took, respite: RESPITE }
    }

    /// Which pages to take.
    pub(super) fn size(&self) -> Size {
        self.size
    }

    /// Forgets what is known, and says what the last word was.
    pub(super) fn begin_anew(&mut self) -> Size {
        let fresh = Self::slow_below(self.slow);
        std::mem::replace(self, fresh).size
    }

    /// So many bytes were made ready in this time. Which pages to take from here on, when it changes.
    pub(super) fn note(&mut self, bytes: u64, took: Duration) -> Option<Size> {
        let in_time = |bytes: u64| Duration::from_secs_f64(bytes as f64 / self.slow);
        let most = in_time(TRIAL) / ONE_OF * u32::try_from(bytes.div_ceil(HUGE).max(1)).unwrap_or(u32::MAX);
        self.bytes += bytes;
        self.counted += took.min(most);
        self.took += took;
        // What is left of a trial cannot make up for it.
        let may_take = in_time(self.bytes.max(TRIAL));
        let is_slow = self.counted > may_take || self.took > FAR_TOO_LONG * may_take;
        let (next, respite) = match self.size {
            Size::Huge if is_slow => (Size::Small, self.respite),
            Size::Huge if self.bytes >= TRIAL => (Size::Huge, RESPITE),
            Size::Small if self.bytes >= self.respite => (Size::Huge, LONGEST_RESPITE.min(2 * self.respite)),
            _ => return None,
        };
        let before = std::mem::replace(self, Self { size: next, respite, ..Self::slow_below(self.slow) });
        (before.size != next).then_some(next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    /// Notes `mib` MiB, one by one, that take so long each, and says after how many what changed.
    fn changes(pace: &mut Pace, mib: u64, us_each: u64) -> Vec<(u64, Size)> {
        (1..=mib).filter_map(|at| Some((at, pace.note(MIB, Duration::from_micros(us_each))?))).collect()
    }

    #[test]
    fn a_host_that_has_huge_pages_gives_them_to_the_end() {
        assert_eq!(changes(&mut Pace::default(), 4096, 60), []);
    }

    #[test]
    fn slow_ones_are_left_for_longer_and_longer() {
        let slow = changes(&mut Pace::default(), 2000, 2500);
        let small = |at| (at, Size::Small);
        let huge = |at| (at, Size::Huge);
        let expected =
            [small(5), huge(69), small(74), huge(202), small(207), huge(463), small(468), huge(980)];
        assert_eq!(slow[..8], expected, "a trial ends as soon as it has failed");
        assert_eq!(slow[8..], [small(985), huge(1497), small(1502)], "no longer than half a GiB");
    }

    #[test]
    fn a_moments_absence_costs_little() {
        let mut pace = Pace::default();
        assert_eq!(changes(&mut pace, 3, 15_000), [], "away for 45 ms");
        assert_eq!(changes(&mut pace, 13, 60), [], "and then as fast as ever");
        assert_eq!(changes(&mut pace, 4, 5_000), [], "four slow ones");
        assert_eq!(changes(&mut pace, 1, 60), [(1, Size::Small)], "and another");
        assert_eq!(changes(&mut pace, 64, 60), [(64, Size::Huge)]);
        assert_eq!(changes(&mut pace, 16, 60), []);
        assert_eq!(changes(&mut pace, 2, 30_000), [(2, Size::Small)], "a few that are far too slow");
        assert_eq!(changes(&mut pace, 64, 60), [(64, Size::Huge)], "it was fast meanwhile");
    }

    #[test]
    fn so_many_at_once_count_as_many_times() {
        let mut pace = Pace::default();
        assert_eq!(pace.note(3 * HUGE, Duration::from_millis(30)), None);
        assert_eq!(pace.note(4 * HUGE, Duration::from_millis(30)), Some(Size::Small));
    }

    #[test]
    fn a_host_that_becomes_slow_is_noticed() {
        let mut pace = Pace::default();
        assert_eq!(changes(&mut pace, 160, 60), []);
        assert_eq!(changes(&mut pace, 16, 2500), [(5, Size::Small)]);
    }
}
