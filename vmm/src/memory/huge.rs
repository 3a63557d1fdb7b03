//! Whether guest memory is backed by huge pages, while it is made ready for a guest that arrives.
//!
//! A huge page is made in a sixth of the time that its small ones take, where the host has it. A host that is itself a virtual
//! machine may have to get it from the one below first, which takes ten times as long as small pages do. Only trying tells: so
//! the first few are timed, and when they are slow small pages follow for a while.

use std::time::Duration;

/// Bytes after which it is known how fast huge pages are.
const TRIAL: u64 = 16 << 20;
/// Bytes of small pages before huge ones are tried again.
const RESPITE: u64 = 512 << 20;
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
    took: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self::slow_below(SLOW_BYTES_PER_S)
    }
}

impl Pace {
    /// For a use of huge pages that is not worth it where they are made slower than this.
    pub(super) fn slow_below(bytes_per_s: f64) -> Self {
        Self { slow: bytes_per_s, size: Size::Huge, bytes: 0, took: Duration::ZERO }
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
        self.bytes += bytes;
        self.took += took;
        let (enough, slow) = match self.size {
            Size::Huge => (TRIAL, self.bytes as f64 / self.took.as_secs_f64() < self.slow),
            Size::Small => (RESPITE, true),
        };
        if self.bytes < enough {
            return None;
        }
        let next = match self.size {
            Size::Huge if slow => Size::Small,
            _ => Size::Huge,
        };
        let before = std::mem::replace(self, Self { size: next, ..Self::slow_below(self.slow) });
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
    fn slow_ones_are_left_for_a_while() {
        let slow = changes(&mut Pace::default(), 600, 2500);
        assert_eq!(slow, [(16, Size::Small), (528, Size::Huge), (544, Size::Small)]);
    }

    #[test]
    fn a_host_that_becomes_slow_is_noticed() {
        let mut pace = Pace::default();
        assert_eq!(changes(&mut pace, 160, 60), []);
        assert_eq!(changes(&mut pace, 16, 2500), [(16, Size::Small)]);
    }
}
