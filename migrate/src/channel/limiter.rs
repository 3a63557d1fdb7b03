//! A rate limit shared by all data connections: a bucket of bytes that fills with time.
//!
//! Nobody waits here while the guest waits for the bytes: pages that answer requests are not counted, pushed
//! ones are counted when they have been sent, and the last round before a short pause ends is let through. Waiting
//! there for what earlier rounds owe would make the pause longer by it.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::alarm::{Alarm, Woken};

/// How far ahead of the rate bytes may go: time enough for a wait to be worth its wake-up. A frame that costs more
/// is sent whole, and those after it wait for what it owes.
const BURST: Duration = Duration::from_millis(20);

/// Paces bulk data. Shared by the sending threads: all draw from one bucket.
#[derive(Debug)]
pub(crate) struct Limiter {
    bytes_per_s: f64,
    /// When the bytes sent so far will have been paid for.
    paid_until: Mutex<Instant>,
}

impl Limiter {
    pub(crate) fn new(bytes_per_s: u64) -> Self {
        Self { bytes_per_s: (bytes_per_s as f64).max(1.0), paid_until: Mutex::new(Instant::now()) }
    }

    /// Waits until `bytes` may be sent; at once when the alarm trips.
    pub(crate) fn pace(&self, bytes: usize, alarm: &Alarm) -> Woken {
        alarm.rest(self.draw(bytes, Instant::now()))
    }

    /// Counts `bytes` that are sent at once: those after them wait.
    pub(crate) fn charge(&self, bytes: usize) {
        self.draw(bytes, Instant::now());
    }

    /// Draws `bytes` and says how long to wait before sending them.
    fn draw(&self, bytes: usize, now: Instant) -> Duration {
        let mut paid_until = self.paid_until.lock().unwrap_or_else(PoisonError::into_inner);
        let wait = paid_until.saturating_duration_since(now + BURST);
        let start = (*paid_until).max(now);
        *paid_until = start + Duration::from_secs_f64(bytes as f64 / self.bytes_per_s);
        wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_of_bytes_takes_a_second() {
        let limiter = Limiter::new(1_000_000);
        let start = Instant::now();
        let (mut now, mut waited) = (start, Duration::ZERO);
        for _ in 0..100 {
            let wait = limiter.draw(10_000, now);
            waited += wait;
            now += wait;
        }
        assert!(waited > Duration::from_millis(950) && waited <= Duration::from_secs(1), "{waited:?}");
    }
}
