//! Whether the next frame of pages is packed, and how well: by figures of the frames before. No clock and no link in it.
//!
//! Two rates decide: what the *link* takes, and what *packing* takes, both in bytes of content per second. Where the link is
//! clearly the slower one, packing costs nothing: the network drains its buffers meanwhile. What is not known is tried, but
//! only on a link that could be slower than any processor packs, and the less often the less it brought: a link faster than
//! that sees no try at all, and one almost as fast a few of them. A link to far away is packed for from the first frame on:
//! until it has told its rate it takes little, whatever that is.
//!
//! How well is a matter of time, too: where packing takes little of it, a level of zstd that finds more is worth its time.

use std::time::Duration;

use crate::options::Compression;
use crate::rate::{Rate, TELLING};

/// Levels of zstd, from the fastest on. See docs/decisions/packed-by-zstd.md.
const LEVELS: [i32; 3] = [2, 3, 6];

/// Packed frames that say what a level costs, if they took a while: what shrinks to nothing goes by without a word.
const WEIGHED: u32 = 64;
const A_WHILE: Duration = Duration::from_millis(200);

/// The next level is for links where packing takes less than this of the time.
const LITTLE: f64 = 0.2;

/// … and one that takes more than this is given up for good.
const MUCH: f64 = 0.6;

/// A round trip that no network of one house has: its beginning is slow, however fast it becomes.
const FAR: Duration = Duration::from_millis(15);

/// Bytes per second; on a faster link nothing is tried: few processors pack what is not all alike so fast.
const FASTEST: f64 = 5e8;

/// … within one host: one that takes no more than [`FASTEST`] is busy, which packing makes worse. What takes less than this is
/// a tunnel to somewhere else.
const FASTEST_WITHIN: f64 = 5e7;

/// The link is slow where packing is faster by this.
const SLOW: f64 = 2.0;

/// … and worth packing for where it is faster by this.
const WORTH: f64 = 1.2;

/// Frames that go by after a try that brought nothing on a slow link, at most: they are as good as free.
const SHORT_REST: u32 = 16;

/// The first tries that shrink a frame and yet seem not to pay say little of packing, which has only begun, nor of the link: so few
/// frames go by after each of the first so many.
const BEGINNING: u32 = 4;

/// Frames that go by after the first try that brought nothing on another link; four times as many each time.
const FIRST_REST: u32 = 64;

/// … at most: 1 GiB.
const LONG_REST: u32 = 4096;

/// Packed frames without any wait for the link before it is measured anew by plain ones: it may have become faster. Twice as
/// many each time.
const FIRST_CHECK: u32 = 1024;

/// … at most.
const LAST_CHECK: u32 = 16384;

/// Plain frames that measure the link: more than its buffers have room for.
const CHECK: u32 = 64;

/// How a frame of pages goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// Straight from guest memory.
    Straight,
    /// From a copy, which is kept; packed only where there are differences to something kept before.
    Kept,
    /// From a copy, packed where that makes it smaller.
    Packed,
}

/// What is known of the link before anything is sent.
#[derive(Debug, Clone, Copy)]
pub(crate) struct About {
    pub(crate) round_trip: Duration,
    /// Connections that share it.
    pub(crate) streams: u32,
    /// Whether both ends have the same address.
    pub(crate) is_within_host: bool,
}

/// Decides for all connections of a migration.
#[derive(Debug)]
pub(crate) struct Judge {
    always: bool,
    link: Rate,
    packing: Rate,
    /// Tries so far, up to [`BEGINNING`], and whether the last one made its frame smaller.
    tries: u32,
    shrinks: bool,
    /// Frames that go by before the next try.
    rest: u32,
    /// … after the next try that brings nothing.
    next_rest: u32,
    /// Plain frames still to go that measure the link.
    checking: u32,
    /// Packed frames since the link was waited for last.
    unchecked: u32,
    next_check: u32,
    is_far: bool,
    /// Connections that share the link.
    streams: f64,
    /// Bytes per second; if all connections together take more, nothing is tried.
    fastest: f64,
    level: Level,
    unseen: Unseen,
}

/// Packed frames that the buffers took at once, since one was last waited for: what they say of the link is known when answers
/// to them are waited for.
#[derive(Debug, Clone, Copy, Default)]
struct Unseen {
    frames: u32,
    bytes: usize,
    /// Packing and sending them.
    working: Duration,
    waiting: Duration,
}

/// How much time packing takes, and what follows from it.
#[derive(Debug)]
struct Level {
    /// Into [`LEVELS`].
    now: usize,
    most: usize,
    frames: u32,
    packing: Duration,
    all: Duration,
}

impl Judge {
    /// `None` is for whoever asks nobody.
    pub(crate) fn new(compression: Compression, about: About) -> Self {
        let About { round_trip, streams, is_within_host } = about;
        Self {
            streams: f64::from(streams),
            fastest: if is_within_host { FASTEST_WITHIN } else { FASTEST },
            unseen: Unseen::default(),
            always: compression == Compression::Zstd,
            is_far: round_trip >= FAR,
            level: Level::new(0, LEVELS.len() - 1),
            link: Rate::default(),
            packing: Rate::default(),
            tries: 0,
            shrinks: false,
            rest: 0,
            next_rest: 1,
            checking: 0,
            unchecked: 0,
            next_check: FIRST_CHECK,
        }
    }

    /// How the next frame goes. `hurried`: somebody waits for it, and nothing is tried.
    pub(crate) fn way(&mut self, hurried: bool) -> Way {
        if self.always {
            return Way::Packed;
        }
        let otherwise = if self.is_slow() { Way::Kept } else { Way::Straight };
        if self.checking > 0 {
            self.checking -= 1;
            return otherwise;
        }
        if !self.presumes() && (!self.link.tells() || self.is_fast()) {
            return otherwise;
        }
        // What shrinks needs no further try where it is known to pay by now.
        if self.rest > 0 && !(self.shrinks && self.is_worth(WORTH)) {
            self.rest -= u32::from(!hurried);
            return otherwise;
        }
        if hurried && !self.pays() { otherwise } else { Way::Packed }
    }

    /// The level of zstd at which the next frame is packed.
    pub(crate) fn level(&self) -> i32 {
        LEVELS[self.level.now]
    }

    /// What the link takes, bytes per second, once that is known.
    pub(crate) fn link_rate(&self) -> Option<f64> {
        self.link.tells().then(|| self.link.bytes_per_s())
    }

    /// Whether packing is much faster than the link, as far as is known.
    pub(crate) fn is_slow(&self) -> bool {
        self.always || self.presumes() || self.is_worth(SLOW)
    }

    /// Whether packing is faster than the link.
    fn pays(&self) -> bool {
        self.presumes() || self.is_worth(WORTH)
    }

    /// Whether the link is held to be slow because it is long.
    fn presumes(&self) -> bool {
        self.is_far && !self.link.tells()
    }

    /// Whether all connections together take so much that nothing is tried.
    fn is_fast(&self) -> bool {
        self.streams * self.link.bytes_per_s() > self.fastest
    }

    /// Whether nothing is packed, nor tried, because the link is known to be fast.
    pub(crate) fn is_idle(&self) -> bool {
        !self.always && self.link.tells() && self.is_fast()
    }

    fn is_worth(&self, by: f64) -> bool {
        self.packing.has_begun()
            && self.link.tells()
            && !self.is_fast()
            && self.packing.bytes_per_s() > by * self.link.bytes_per_s()
    }

    /// Packing of `content` bytes was tried: whether it made them smaller, and how long it took.
    pub(crate) fn tried(&mut self, content: usize, smaller: bool, took: Duration) {
        if self.tries == 1 {
            // The first one has made the compressor ready, too.
            self.packing = Rate::default();
        }
        self.packing.note(content, took);
        self.tries = (self.tries + 1).min(BEGINNING);
        self.shrinks = smaller;
        if smaller && self.pays() {
            (self.rest, self.next_rest) = (0, 1);
        } else if self.is_slow() {
            self.rest = self.next_rest.min(SHORT_REST);
            self.next_rest = (2 * self.rest).min(SHORT_REST);
        } else if smaller && self.tries < BEGINNING {
            self.rest = BEGINNING;
        } else {
            self.rest = self.next_rest.max(FIRST_REST);
            self.next_rest = (4 * self.rest).min(LONG_REST);
        }
    }

    /// A packed frame was sent: how long that took.
    pub(crate) fn sent_packed(&mut self, bytes: usize, packing: Duration, sending: Duration) {
        self.level.weigh(packing, packing + sending);
        self.sent(bytes, packing, sending);
    }

    /// A frame of so many bytes was sent, after so long a packing, and had to wait for the link.
    pub(crate) fn sent(&mut self, bytes: usize, packing: Duration, sending: Duration) {
        let all = packing + sending;
        if packing.is_zero() || sending >= all / 4 {
            // Where the link is waited for, it has not been idle while the frame was packed.
            self.link.note(bytes, all);
            self.unchecked = 0;
            self.unseen = Unseen::default();
            return;
        }
        if self.unseen.frames >= TELLING {
            // The link keeps up, as far as can be seen.
            self.unseen = Unseen::default();
        }
        self.unseen.frames += 1;
        self.unseen.bytes += bytes;
        self.unseen.working += all;
        self.unchecked += 1;
        if self.unchecked >= self.next_check {
            (self.unchecked, self.checking) = (0, CHECK);
            self.next_check = (2 * self.next_check).min(LAST_CHECK);
        }
    }

    /// Nothing could be sent for so long, because the destination was waited for.
    pub(crate) fn waited(&mut self, time: Duration) {
        self.level.waited(time);
        let Unseen { frames, bytes, working, waiting } = self.unseen;
        if frames == 0 {
            self.link.waited(time);
            return;
        }
        self.unseen.waiting += time;
        let all = working + waiting + time;
        if waiting + time >= all / 4 {
            self.link.note(bytes, all);
            self.unchecked = 0;
            self.unseen = Unseen::default();
        }
    }
}

impl Level {
    fn new(now: usize, most: usize) -> Self {
        Self { now, most, frames: 0, packing: Duration::ZERO, all: Duration::ZERO }
    }

    /// For the link, after a packed frame.
    fn waited(&mut self, time: Duration) {
        if self.frames > 0 {
            self.all += time;
        }
    }

    fn weigh(&mut self, packing: Duration, all: Duration) {
        self.frames += 1;
        self.packing += packing;
        self.all += all;
        if self.frames < WEIGHED || self.all < A_WHILE {
            return;
        }
        let share = self.packing.as_secs_f64() / self.all.as_secs_f64().max(1e-9);
        *self = if share < LITTLE && self.now < self.most {
            Self::new(self.now + 1, self.most)
        } else if share > MUCH && self.now > 0 {
            Self::new(self.now - 1, self.now - 1)
        } else {
            Self::new(self.now, self.most)
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FRAME: usize = 64 * 4096;

    fn auto(round_trip: Duration, streams: u32) -> Judge {
        Judge::new(Compression::Auto, About { round_trip, streams, is_within_host: false })
    }

    fn judge() -> Judge {
        auto(Duration::from_millis(1), 1)
    }

    /// A link and a processor, both in bytes per second, and what becomes of a frame's bytes.
    struct World {
        link: f64,
        packing: f64,
        shrinks_to: f64,
        /// When what was sent so far will have left the buffers, s, and now.
        drained: f64,
        now: f64,
        buffers: f64,
    }

    impl World {
        fn new(link: f64, packing: f64, shrinks_to: f64) -> Self {
            Self { link, packing, shrinks_to, drained: 0.0, now: 0.0, buffers: 4e6 }
        }

        /// Sends `frames` and says how many were tried, and how many went packed.
        fn send(&mut self, judge: &mut Judge, frames: u32) -> (u32, u32) {
            let (mut tries, mut packed) = (0, 0);
            for _ in 0..frames {
                let (mut bytes, mut took) = (FRAME as f64, 0.0);
                let is_tried = judge.way(false) == Way::Packed;
                if is_tried {
                    let smaller = self.shrinks_to < 0.875;
                    took = FRAME as f64 / self.packing;
                    judge.tried(FRAME, smaller, Duration::from_secs_f64(took));
                    tries += 1;
                    packed += u32::from(smaller);
                    bytes *= if smaller { self.shrinks_to } else { 1.0 };
                }
                self.now += took;
                let sending = self.now;
                self.drained = self.drained.max(self.now) + bytes / self.link;
                // Into the buffers at the speed of memory, then as they drain.
                self.now = (self.now + bytes / 5e9).max(self.drained - self.buffers / self.link);
                let times = [took, self.now - sending].map(Duration::from_secs_f64);
                if is_tried && self.shrinks_to < 0.875 {
                    judge.sent_packed(bytes as usize, times[0], times[1]);
                } else {
                    judge.sent(bytes as usize, times[0], times[1]);
                }
            }
            (tries, packed)
        }
    }

    #[test]
    fn only_a_link_that_is_known_to_be_fast_is_idle() {
        let about = About { round_trip: Duration::from_micros(100), streams: 1, is_within_host: false };
        let after = |compression, frames, us| {
            let mut judge = Judge::new(compression, about);
            (0..frames).for_each(|_| judge.sent(262_144, Duration::ZERO, Duration::from_micros(us)));
            judge.is_idle()
        };
        // 2.6 GB/s, and 87 MB/s.
        assert!(after(Compression::Auto, TELLING, 100) && !after(Compression::Auto, 200, 3_000));
        assert!(!after(Compression::Auto, TELLING - 1, 100), "it is not known yet");
        assert!(!after(Compression::Zstd, 200, 100), "it was asked for");
    }

    #[test]
    fn packed_frames_that_are_answered_fill_a_far_link() {
        const RTT: f64 = 0.05;
        let (link, packing, bytes) = (12.5e6, 530e6, 47_000.0);
        let mut judge = auto(Duration::from_secs_f64(RTT), 1);
        (0..TELLING).for_each(|_| judge.sent(FRAME, Duration::ZERO, Duration::from_millis(21)));
        let (mut now, mut drained) = (0.0_f64, 0.0_f64);
        let mut answers = std::collections::VecDeque::new();
        let frames = 4000;
        for _ in 0..frames {
            let took = FRAME as f64 / packing;
            assert_eq!(judge.way(false), Way::Packed);
            judge.tried(FRAME, true, Duration::from_secs_f64(took));
            now += took + 20e-6;
            judge.sent_packed(bytes as usize, Duration::from_secs_f64(took), Duration::from_micros(20));
            drained = drained.max(now) + bytes / link;
            answers.push_back(drained + RTT);
            let ahead = 2 + (2.0 * judge.link_rate().expect("is known") * RTT / bytes) as usize;
            while answers.len() > ahead {
                let answer = answers.pop_front().expect("there are some").max(now);
                judge.waited(Duration::from_secs_f64(answer - now));
                now = answer;
            }
        }
        let least = f64::from(frames) * bytes / link;
        assert!(now < 1.2 * least, "{now} s where the link takes {least}");
        assert!(judge.level() > LEVELS[0], "it leaves time");
    }

    #[test]
    fn connections_that_are_fast_together_are_left_alone() {
        let mut judge = auto(Duration::from_millis(1), 4);
        assert_eq!(World::new(290e6, 400e6, 0.3).send(&mut judge, 4096), (0, 0));
    }

    #[test]
    fn within_one_host_only_what_is_slower_than_a_busy_one_is_packed_for() {
        let about = About { round_trip: Duration::from_micros(50), streams: 1, is_within_host: true };
        let within = || Judge::new(Compression::Auto, about);
        let mut judge = within();
        assert_eq!(World::new(170e6, 800e6, 0.3).send(&mut judge, 4096), (0, 0));
        assert!(!judge.is_slow(), "nor is anything kept");
        let (_, packed) = World::new(12.5e6, 400e6, 0.3).send(&mut within(), 256);
        assert!(packed > 200, "{packed}");
    }

    #[test]
    fn a_slow_link_is_noticed_within_its_buffers_and_packed_for_from_then_on() {
        let (mut judge, mut world) = (judge(), World::new(12.5e6, 400e6, 0.3));
        let (_, packed) = world.send(&mut judge, 64);
        assert!(packed > 32, "{packed}");
        assert_eq!(world.send(&mut judge, 1000), (1000, 1000));
        assert!(judge.is_slow());
    }

    #[test]
    fn on_a_fast_link_nothing_is_tried() {
        let (mut judge, mut world) = (judge(), World::new(2e9, 400e6, 0.3));
        assert_eq!(world.send(&mut judge, 4096), (0, 0));
    }

    #[test]
    fn on_a_link_faster_than_the_processor_few_frames_are_tried() {
        let (mut judge, mut world) = (judge(), World::new(450e6, 400e6, 0.3));
        let (tries, _) = world.send(&mut judge, 4096);
        assert!((4..=7).contains(&tries), "{tries} of 1 GiB");
        let (tries, _) = world.send(&mut judge, 4096);
        assert!(tries <= 1, "{tries} of the next");
    }

    #[test]
    fn a_link_of_one_gigabit_is_packed_for() {
        let (mut judge, mut world) = (judge(), World::new(125e6, 400e6, 0.4));
        world.send(&mut judge, 256);
        let before = world.now;
        let (_, packed) = world.send(&mut judge, 4096);
        let bytes_per_s = (4096 * FRAME) as f64 / (world.now - before);
        assert!(packed > 3900 && bytes_per_s > 280e6, "{packed} at {bytes_per_s}");
    }

    /// The first try makes a compressor ready, perhaps on a core that others have.
    #[test]
    fn one_slow_try_at_the_beginning_is_not_held_against_packing() {
        let mut judge = judge();
        (0..TELLING).for_each(|_| judge.sent(FRAME, Duration::ZERO, Duration::from_millis(2)));
        assert_eq!(judge.way(false), Way::Packed);
        judge.tried(FRAME, true, Duration::from_millis(10));
        let mut world = World::new(125e6, 400e6, 0.3);
        let (tries, packed) = world.send(&mut judge, 64);
        assert!(tries == packed && packed > 48, "{packed}");
    }

    #[test]
    fn what_shrinks_is_packed_as_soon_as_the_link_is_seen_to_be_slow() {
        let mut judge = judge();
        (0..TELLING).for_each(|_| judge.sent(FRAME, Duration::ZERO, Duration::from_micros(600)));
        let mut tries = 0;
        for _ in 0..64 {
            if judge.way(false) == Way::Packed {
                judge.tried(FRAME, true, Duration::from_micros(700));
                tries += 1;
            }
            judge.sent(FRAME, Duration::ZERO, Duration::from_micros(600));
        }
        assert_eq!(tries, BEGINNING, "the link is faster");
        judge.waited(Duration::from_millis(60));
        assert_eq!(judge.way(false), Way::Packed);
        judge.tried(FRAME, false, Duration::from_micros(700));
        assert_eq!(judge.way(false), Way::Kept, "it does not shrink any more");
    }

    #[test]
    fn what_cannot_be_packed_is_tried_now_and_then_until_it_can() {
        let (mut judge, mut world) = (judge(), World::new(12.5e6, 800e6, 1.0));
        world.send(&mut judge, 256);
        let (tries, packed) = world.send(&mut judge, 1700);
        assert!((95..=105).contains(&tries) && packed == 0, "{tries} tries");
        world.shrinks_to = 0.2;
        let (_, packed) = world.send(&mut judge, 100);
        assert!(packed >= 84, "{packed}");
    }

    #[test]
    fn a_link_that_becomes_faster_is_left_alone_again() {
        let (mut judge, mut world) = (judge(), World::new(12.5e6, 400e6, 0.3));
        world.send(&mut judge, 256);
        world.link = 2e9;
        world.send(&mut judge, 2 * FIRST_CHECK);
        assert_eq!(world.send(&mut judge, 1000), (0, 0));
        world.link = 12.5e6;
        let (_, packed) = world.send(&mut judge, 256);
        assert!(packed > 100, "{packed}");
    }

    #[test]
    fn a_link_to_far_away_is_packed_for_at_once_until_it_is_seen_to_be_fast() {
        let far = || auto(Duration::from_millis(50), 1);
        let (mut judge, mut slow) = (far(), World::new(12.5e6, 400e6, 0.1));
        assert_eq!(slow.send(&mut judge, 2000), (2000, 2000));
        let (mut judge, mut fast) = (far(), World::new(2e9, 400e6, 0.1));
        assert_eq!(fast.send(&mut judge, FIRST_CHECK).1, FIRST_CHECK);
        assert_eq!(fast.send(&mut judge, 4096), (0, 0));
    }

    #[test]
    fn a_link_leaves_time_for_a_higher_level_or_does_not() {
        let level = |link, packing| {
            let mut judge = judge();
            World::new(link, packing, 0.25).send(&mut judge, 2000);
            judge.level()
        };
        assert_eq!([level(1.25e6, 400e6), level(62e6, 400e6), level(125e6, 400e6)], [6, 2, 2]);
        let mut level = Level::new(0, 2);
        let mut weigh = |percent: u64| {
            (0..WEIGHED)
                .for_each(|_| level.weigh(Duration::from_millis(percent), Duration::from_millis(100)));
            level.now
        };
        assert_eq!([weigh(10), weigh(40), weigh(10), weigh(70), weigh(10)], [1, 1, 2, 1, 1]);
    }

    #[test]
    fn whoever_is_waited_for_tries_nothing_but_uses_what_is_known() {
        let mut judge = judge();
        (0..TELLING).for_each(|_| judge.sent(FRAME, Duration::ZERO, Duration::from_millis(20)));
        assert_eq!(judge.way(true), Way::Straight);
        assert_eq!(judge.way(false), Way::Packed);
        judge.tried(FRAME, true, Duration::from_micros(700));
        assert_eq!(judge.way(true), Way::Packed);
        judge.tried(FRAME, false, Duration::from_micros(700));
        assert_eq!(judge.way(true), Way::Kept, "it did not shrink, but may be sent again");
    }

    #[test]
    fn waits_for_answers_are_the_links() {
        let mut judge = judge();
        (0..2 * TELLING).for_each(|_| judge.sent(FRAME, Duration::ZERO, Duration::from_micros(50)));
        assert_eq!(judge.way(false), Way::Straight);
        judge.waited(Duration::from_secs(1));
        assert_eq!(judge.way(false), Way::Packed);
    }

    #[test]
    fn who_asks_for_it_always_gets_it() {
        let about = About { round_trip: Duration::ZERO, streams: 1, is_within_host: true };
        let mut judge = Judge::new(Compression::Zstd, about);
        assert!(judge.is_slow() && judge.way(true) == Way::Packed);
        judge.tried(FRAME, false, Duration::from_secs(1));
        assert_eq!(judge.way(false), Way::Packed);
    }
}
