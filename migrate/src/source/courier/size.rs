//! How many pages go in a frame of a round, and in a push within one host: more where the link takes them quickly.
//!
//! Each frame costs both sides a few system calls, and where they share a core two changes of the thread on it. A large one costs
//! that seldom; but whoever waits for the core waits for its end. Measured in docs/decisions/frames-by-the-link.md.

use std::time::Duration;

use crate::pages::PAGE_SIZE;
use crate::priority::PORTION;
use crate::rate::Rate;
use crate::wire::limits::{PAGES_PER_FRAME, PAGES_PER_PUSH};

/// Pages of the largest: 1 MiB.
const MOST: u64 = 4 * PORTION;

/// A frame is to take no longer than this.
const FRAME_TIME: Duration = Duration::from_millis(1);

const _: () = assert!(MOST <= PAGES_PER_FRAME && MOST <= PAGES_PER_PUSH);

/// Goes by what the connection has taken of late.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Size(Rate);

impl Size {
    /// Pages of the next frame.
    pub(super) fn pages(&self) -> u64 {
        if !self.0.tells() {
            return PORTION;
        }
        let in_time = self.0.bytes_per_s() * FRAME_TIME.as_secs_f64() / PAGE_SIZE as f64;
        in_portions(in_time as u64)
    }

    /// Pages of the next push within one host, where so many connections push. As large as may be where nothing was sent yet: answers
    /// tell after some frames whether this way is a slow tunnel. All connections together send no more at a time than one would, down
    /// to a portion each: the destination gathers a few blocks only.
    pub(super) fn pages_of_push(&self, streams: u32) -> u64 {
        let most = in_portions(MOST / u64::from(streams));
        if self.0.tells() { self.pages().min(most) } else { most }
    }

    /// A frame with `pages` pages was sent, in so long.
    pub(super) fn sent(&mut self, pages: u64, took: Duration) {
        self.0.note(pages as usize * PAGE_SIZE, took);
    }

    /// An answer to those before was waited for, so long.
    pub(super) fn waited(&mut self, time: Duration) {
        self.0.waited(time);
    }
}

fn in_portions(pages: u64) -> u64 {
    (pages / PORTION * PORTION).clamp(PORTION, MOST)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rate::TELLING;

    /// Pages a millisecond at so many bits a second.
    fn pages_per_ms(gbit: f64) -> f64 {
        gbit * 1e9 / 8.0 / 4096.0 / 1e3
    }

    /// The sizes of `frames` frames on a link behind a buffer of so many pages, of which a third must be free before a sender that
    /// waited is woken.
    fn sizes(size: &mut Size, frames: u32, gbit: f64, buffer: f64) -> Vec<u64> {
        let (rate, mut waiting) = (pages_per_ms(gbit), 0.0_f64);
        let mut sizes = Vec::new();
        for _ in 0..frames {
            let pages = size.pages();
            let mut ms = 0.02;
            waiting = (waiting - rate * ms).max(0.0) + pages as f64;
            if waiting > buffer {
                ms += (waiting - buffer * 2.0 / 3.0) / rate;
                waiting = buffer * 2.0 / 3.0;
            }
            size.sent(pages, Duration::from_secs_f64(ms / 1e3));
            sizes.push(pages);
        }
        sizes
    }

    #[test]
    fn frames_are_as_large_as_the_link_is_fast() {
        for (gbit, pages) in [(0.1, 64), (1.0, 64), (5.0, 128), (10.0, 256), (40.0, 256)] {
            let sizes = sizes(&mut Size::default(), 200, gbit, 64.0);
            assert_eq!(sizes[199], pages, "{gbit} Gbit/s: {sizes:?}");
            assert!(sizes[..16].iter().all(|first| *first == PORTION), "{sizes:?}");
        }
    }

    #[test]
    fn what_a_buffer_takes_at_once_tells_little() {
        // 4 MiB, which is what Linux gives a connection at most.
        let sizes = sizes(&mut Size::default(), 400, 1.0, 1024.0);
        assert!(sizes[100..].iter().all(|pages| *pages == PORTION), "{sizes:?}");
    }

    #[test]
    fn a_thread_that_was_away_for_a_moment_does_not_change_it() {
        let mut size = Size::default();
        sizes(&mut size, 50, 30.0, 64.0);
        size.sent(MOST, Duration::from_millis(8));
        assert_eq!(size.pages(), MOST);
    }

    #[test]
    fn pushes_are_large_at_first_and_of_all_connections_together_no_larger() {
        let mut size = Size::default();
        assert_eq!([1, 2, 3, 4, 16].map(|streams| size.pages_of_push(streams)), [256, 128, 64, 64, 64]);
        // What is known is what one connection takes.
        (0..TELLING).for_each(|_| size.sent(PORTION, Duration::from_micros(400)));
        assert_eq!([1, 2].map(|streams| size.pages_of_push(streams)), [128, 128]);
        // Sent at once, into a tunnel's buffer, and answered late.
        for _ in 0..TELLING {
            size.sent(MOST, Duration::from_micros(100));
            size.waited(Duration::from_millis(20));
        }
        assert_eq!(size.pages_of_push(1), PORTION);
    }

    #[test]
    fn a_link_that_becomes_slow_has_small_ones_soon() {
        let mut size = Size::default();
        sizes(&mut size, 50, 30.0, 64.0);
        assert_eq!(sizes(&mut size, 5, 0.1, 64.0)[3], PORTION);
    }
}
