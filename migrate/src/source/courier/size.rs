//! How many pages go in a frame that has time: more where the link takes them at once.
//!
//! Each frame costs both sides a few system calls, and where they share a core two changes of the thread on it. A large one costs
//! that seldom; but whoever waits for the core, or to cut the round short, waits for its end. Measured in
//! docs/decisions/frames-by-the-link.md.

use std::time::Duration;

use crate::priority::PORTION;

/// Pages of the largest: 1 MiB.
const MOST: u64 = 4 * PORTION;

/// A frame that took less is followed by one of twice as many pages …
const QUICK: Duration = Duration::from_micros(500);
/// … and one that took more by one of half as many.
const SLOW: Duration = Duration::from_millis(2);

const _: () = assert!(MOST <= crate::wire::limits::PAGES_PER_FRAME);

/// Pages of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Size(u64);

impl Default for Size {
    fn default() -> Self {
        Self(PORTION)
    }
}

impl Size {
    pub(super) fn pages(self) -> u64 {
        self.0
    }

    /// A frame of `pages` pages was sent, in so long.
    pub(super) fn sent(&mut self, pages: u64, took: Duration) {
        if took > SLOW {
            self.0 = PORTION.max(self.0 / 2);
        } else if took < QUICK && pages >= self.0 {
            self.0 = MOST.min(2 * self.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// After `frames` full ones by a link that takes so many pages a millisecond.
    fn settled(frames: u32, pages_per_ms: f64) -> u64 {
        let mut size = Size::default();
        for _ in 0..frames {
            size.sent(size.pages(), Duration::from_secs_f64(size.pages() as f64 / pages_per_ms / 1e3));
        }
        size.pages()
    }

    #[test]
    fn frames_are_as_large_as_the_link_is_fast() {
        // 1, 10 and 25 Gbit/s, and loopback.
        assert_eq!([30.0, 300.0, 750.0, 1100.0].map(|rate| settled(8, rate)), [64, 256, 256, 256]);
        assert_eq!(settled(8, 130.0), 128, "4 Gbit/s");
        assert_eq!(settled(1, 1100.0), 128, "each twice the one before");
    }

    #[test]
    fn a_link_that_becomes_slow_has_small_ones_soon() {
        let mut size = Size(MOST);
        size.sent(MOST, Duration::from_millis(30));
        size.sent(MOST / 2, Duration::from_millis(15));
        assert_eq!(size, Size::default());
        size.sent(PORTION, Duration::from_millis(8));
        assert_eq!(size.pages(), PORTION, "never smaller");
    }

    #[test]
    fn what_is_not_full_says_nothing_of_larger_ones() {
        let mut size = Size::default();
        size.sent(PORTION - 1, Duration::from_micros(10));
        assert_eq!(size, Size::default());
    }
}
