//! How much of what a connection has pushed may be unanswered at a time: twice what the link takes up in a round trip, by what was answered.
//! Pure: no clock and no link in it.
//!
//! What is asked for overtakes nothing in a network's buffers, so no more than this may be in them. It must not be less either: where
//! frames wait for answers and the link for frames, it is slower than it could be. How long frames and answers took says nothing
//! then; that more was answered in some round trip than in those before says what the link can do.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::page_server::frames_ahead;

/// Bytes that may be under way when nothing was answered yet, of all connections together.
const FIRST: f64 = (4 << 20) as f64;

/// Answers within a shorter time than this say how they were bundled, not how fast the link is.
const SHORTEST: Duration = Duration::from_millis(1);

/// Of one connection.
#[derive(Debug)]
pub(super) struct Unanswered {
    round_trip: Duration,
    /// This connection's share.
    first: f64,
    /// Bytes of each frame that is unanswered, the oldest first.
    frames: VecDeque<f64>,
    /// … of all.
    bytes: f64,
    /// Bytes per second that were answered, in the round trip with the most.
    rate: Option<f64>,
    trip: Option<Trip>,
}

/// A round trip in which answers are counted.
#[derive(Debug, Clone, Copy)]
struct Trip {
    began: Instant,
    /// Bytes that were under way then.
    under_way: f64,
    answered: f64,
}

impl Unanswered {
    /// Where so many connections push.
    pub(super) fn new(round_trip: Duration, streams: u32) -> Self {
        let first = FIRST / f64::from(streams);
        Self { round_trip, first, frames: VecDeque::new(), bytes: 0.0, rate: None, trip: None }
    }

    /// So many frames were sent, of so many bytes together.
    pub(super) fn sent(&mut self, frames: u64, bytes: u64) {
        let each = bytes as f64 / frames.max(1) as f64;
        self.frames.extend((0..frames).map(|_| each));
        self.bytes += each * frames as f64;
    }

    /// The oldest frame was answered.
    pub(super) fn answered(&mut self, now: Instant) {
        let frame = self.frames.pop_front().unwrap_or_default();
        self.bytes = if self.frames.is_empty() { 0.0 } else { self.bytes - frame };
        // What is counted begins with an answer: before the first nothing can come.
        let Some(trip) = &mut self.trip else { return self.begin(now) };
        trip.answered += frame;
        let (trip, took) = (*trip, now - trip.began);
        if took < self.round_trip.max(SHORTEST) {
            return;
        }
        let rate = trip.answered / took.as_secs_f64();
        let best = self.rate.unwrap_or_default();
        // Less than was seen before means a slower link only where there was enough for it to take.
        let was_enough = trip.under_way.min(self.bytes) > best * self.round_trip.as_secs_f64();
        if rate > best || was_enough {
            self.rate = Some(rate);
        }
        self.begin(now);
    }

    fn begin(&mut self, now: Instant) {
        self.trip = Some(Trip { began: now, under_way: self.bytes, answered: 0.0 });
    }

    /// Whether an answer is to be waited for before more is sent.
    pub(super) fn are_enough(&self) -> bool {
        let frames = self.frames.len() as u64;
        let mean = self.bytes / frames.max(1) as f64;
        frames > frames_ahead(self.round_trip) || frames > 2 && self.bytes > self.most_bytes() + 2.0 * mean
    }

    fn most_bytes(&self) -> f64 {
        self.rate.map_or(self.first, |rate| 2.0 * rate * self.round_trip.as_secs_f64())
    }

    /// Whether all was answered.
    pub(super) fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A link: what it carries, how long it is, and when what was sent so far is through.
    struct Link {
        bytes_per_s: f64,
        round_trip: Duration,
        start: Instant,
        now: f64,
        free: f64,
        answers: VecDeque<f64>,
    }

    impl Link {
        fn new(bytes_per_s: f64, round_trip_ms: u64) -> Self {
            let round_trip = Duration::from_millis(round_trip_ms);
            Self {
                bytes_per_s,
                round_trip,
                start: Instant::now(),
                now: 0.0,
                free: 0.0,
                answers: VecDeque::new(),
            }
        }

        /// Pushes so many frames of this size as it says; how many were under way at most, and seconds until the last was answered.
        fn push(&mut self, pushed: &mut Unanswered, frames: u64, bytes: u64) -> (usize, f64) {
            let (from, mut most) = (self.now, 0);
            for _ in 0..frames {
                pushed.sent(1, bytes);
                self.free = self.free.max(self.now) + bytes as f64 / self.bytes_per_s;
                self.answers.push_back(self.free + self.round_trip.as_secs_f64());
                most = most.max(pushed.frames.len());
                while pushed.are_enough() {
                    self.hear(pushed);
                }
            }
            while !pushed.is_empty() {
                self.hear(pushed);
            }
            (most, self.now - from)
        }

        fn hear(&mut self, pushed: &mut Unanswered) {
            self.now = self.now.max(self.answers.pop_front().expect("what is unanswered"));
            pushed.answered(self.start + Duration::from_secs_f64(self.now));
        }
    }

    #[test]
    fn within_one_host_two_frames_are_under_way() {
        let mut pushed = Unanswered::new(Duration::from_micros(50), 1);
        pushed.sent(2, 2 << 20);
        assert!(!pushed.are_enough());
        pushed.sent(1, 1);
        assert!(pushed.are_enough());
        pushed.answered(Instant::now());
        assert!(!pushed.are_enough() && !pushed.is_empty());
    }

    #[test]
    fn twice_what_a_link_takes_up_is_under_way() {
        let mut link = Link::new(12.5e6, 50);
        let mut pushed = Unanswered::new(link.round_trip, 1);
        let (first, _) = link.push(&mut pushed, 100, 262_144);
        assert!((16..=19).contains(&first), "{first}: nothing is known");
        let (later, took) = link.push(&mut pushed, 200, 262_144);
        // 610 KiB in a round trip.
        assert!((5..=8).contains(&later), "{later}");
        let alone = 200.0 * 262_144.0 / 12.5e6;
        assert!(took < 1.02 * alone + 0.06, "{took} s, {alone} alone");
    }

    #[test]
    fn several_connections_begin_with_a_share_each() {
        let most = |streams| {
            Link::new(12.5e6, 50)
                .push(&mut Unanswered::new(Duration::from_millis(50), streams), 30, 262_144)
                .0
        };
        assert_eq!([most(1), most(4)], [19, 7]);
    }

    /// Packed frames may be of 200 bytes now and of 8000 then.
    #[test]
    fn small_frames_do_not_hold_up_large_ones_after_them() {
        let mut link = Link::new(12.5e6, 50);
        let mut pushed = Unanswered::new(link.round_trip, 1);
        link.push(&mut pushed, 300, 8000);
        let (most, took) = link.push(&mut pushed, 2400, 200);
        // As many as a network of 10 Gbit/s takes up in a round trip.
        assert_eq!(most as u64, frames_ahead(link.round_trip) + 1);
        assert!(took < 0.6, "{took}");
        let (_, took) = link.push(&mut pushed, 1000, 8000);
        assert!(took < 0.64 + 0.1, "{took}: the link takes 0.64 s");
    }

    #[test]
    fn a_link_that_was_never_kept_busy_is_soon_known() {
        let mut link = Link::new(125e6, 20);
        let mut pushed = Unanswered::new(link.round_trip, 1);
        // One frame a round trip says little of a link.
        for _ in 0..20 {
            link.push(&mut pushed, 1, 262_144);
        }
        let (_, took) = link.push(&mut pushed, 1000, 262_144);
        let alone = 1000.0 * 262_144.0 / 125e6;
        assert!(took < alone + 0.2, "{took} s, {alone} alone");
    }

    #[test]
    fn a_link_that_becomes_slower_is_given_less() {
        let mut link = Link::new(125e6, 20);
        let mut pushed = Unanswered::new(link.round_trip, 1);
        let (fast, _) = link.push(&mut pushed, 400, 262_144);
        link.bytes_per_s = 12.5e6;
        link.push(&mut pushed, 100, 262_144);
        let (slow, _) = link.push(&mut pushed, 100, 262_144);
        assert!(fast > 18 && slow <= 5, "{fast}, {slow}");
    }
}
