//! What to do after a round of pre-copy: another, switch over, or give up. A pure function of figures.
//!
//! Two numbers decide. *Left*: the pages dirtied during the last round, which a pause now would have to send.
//! *Next*: what a further round would leave, if the guest goes on at its pace: dirty rate × (time to send
//! what is left + what a round costs anyway). While *next* is clearly smaller another round is worth it,
//! even though the allowed downtime would be met already: rounds cost the guest nothing, the pause does.
//! When nothing more is to be gained, the estimate of the downtime is held against what is allowed. Where it is too long the
//! guest is slowed down, if that is allowed, by as much as the figures say that it takes. Hybrid never gives up: what rounds do not
//! make smaller follows the guest, unless it is so little that it may as well come in the pause. A page that follows, and that the
//! guest touches before it has come, costs more than one in a round; and to have the destination discard it first costs as much as sending it.

use std::time::Duration;

use crate::options::MOST_THROTTLE;
use crate::pages::PAGE_SIZE;
use crate::report::Round;

/// A further round is worth it when it leaves less than this part of what is left now.
const CLEARLY_SMALLER: f64 = 0.6;

/// … and less than this part, when the round is so short that nobody notices it, or in hybrid no [long](LONG_IN_HYBRID) one: it costs
/// less than to have what is left told, discarded and waited for.
const SOMEWHAT_SMALLER: f64 = 0.85;
const SHORT_ROUND: Duration = Duration::from_millis(10);

/// Hybrid sends what is left in the pause when it is a handful, or expected to take no longer than this: as long as it takes to tell the
/// destination of some hundreds of missing pages, and to have these discarded.
const IN_THE_PAUSE: Duration = Duration::from_millis(2);

/// … or than this, or than the rest of the pause, where the guest writes so many pages a second: while some are discarded, at 1 to 4 µs
/// each, it writes as many others, so that telling them does not get ahead of it.
const FAST_WRITES_PER_S: f64 = 150e3;
const IN_THE_PAUSE_IF_FAST: Duration = Duration::from_millis(3);

/// … or than this, if it is less than one of so many pages that the first round has left: they are scattered then, and telling
/// their neighbours as well, which would get ahead, would be to send nearly all again.
const IN_THE_PAUSE_IF_SCATTERED: Duration = Duration::from_millis(50);
const SCATTERED: u64 = 16;

/// A round of fewer pages with content says nothing about throughput.
const TELLING_ROUND: u64 = 256;

/// Taken for the throughput until a round has told: 1 Gb/s.
const ASSUMED_BYTES_PER_S: f64 = 125e6;

/// Sending so few pages in the pause costs less than what else happens in it, unless the network is slow.
const HANDFUL: u64 = 64;

/// A round costs this much beyond its bytes and the harvest: wake-ups, the barrier.
const ROUND_OVERHEAD: Duration = Duration::from_micros(300);

/// What a pause costs beyond pages, harvest, save and restore: stopping vCPUs, starting them.
const PAUSE_OVERHEAD: Duration = Duration::from_micros(400);

/// Messages that follow each other in the pause, as round trips.
const ROUND_TRIPS: u32 = 3;

/// Where vCPUs are held back, a round is to leave this part of what is left.
const HALF: f64 = 0.5;

/// They are held back for so many percent of their time more, at least.
const LEAST_MORE: u8 = 10;

/// Rounds that brought no improvement before the policy gives up.
const PATIENCE: u32 = 3;

/// The same in hybrid, where nothing has to get better.
const HYBRID_PATIENCE: u32 = 1;

/// Rounds of hybrid however long they are. After these none that takes longer than this, and than this part of all before: a guest
/// that writes half as fast as it is sent over a slow network would be sent more than twice else, before its time is up.
const HYBRID_ROUNDS: u32 = 2;
const LONG_IN_HYBRID: Duration = Duration::from_millis(100);
const LONG_OF_ALL: u32 = 10;

/// Most rounds of all.
const MOST_ROUNDS: u32 = 30;

/// What is known of this migration before the first round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terms {
    /// The pause must be expected to be shorter.
    pub max_downtime: Duration,
    /// Save and restore of the state, as rehearsed.
    pub state: Duration,
    /// Round trip of the control connection.
    pub round_trip: Duration,
    /// Whether pages may follow after the switchover.
    pub hybrid: bool,
    /// Whether all memory is compared where pages come in the pause: a longer pause than any of them makes.
    pub verify: bool,
    /// Most that vCPUs which write may be held back, percent of their time; 0: not at all.
    pub max_throttle: u8,
}

/// One round, as it went.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Figures {
    /// Until it had landed.
    pub took: Duration,
    /// Bytes per second that landed.
    pub bytes_per_s: f64,
    /// Pages per second dirtied meanwhile.
    pub dirty_per_s: f64,
    /// Pages to be sent again.
    pub left: u64,
    /// Reading the dirty log, which the pause does once more: a bit for each page of RAM. The shortest so far, as any may be
    /// disturbed.
    pub harvest: Duration,
    /// How much of their time vCPUs that write were held back, percent.
    pub throttle: u8,
}

/// What to do.
#[derive(Debug, Clone, PartialEq)]
pub enum Decision {
    /// Another round.
    Again {
        /// How much of their time vCPUs that write are held back in it, percent.
        throttle: u8,
        /// Why, in words.
        why: String,
    },
    /// Pause now.
    SwitchOver {
        /// Expected downtime.
        estimate: Duration,
        /// Whether what is left follows the guest, by post-copy.
        follows: bool,
        /// Why, in words.
        why: String,
    },
    /// It will not end.
    GiveUp {
        /// Figures, and what would help.
        why: String,
    },
}

impl Figures {
    /// A round's figures. A round of few pages, or one that mostly found zeros, keeps the throughput that `before`, the
    /// round before it, has told: finding zeros is faster than any network. What a round takes without a page is not its throughput's.
    #[must_use]
    pub fn of(round: &Round, before: Option<&Self>, round_trip: Duration) -> Self {
        let took = Duration::from_micros(round.us);
        let sending = took.saturating_sub(ROUND_OVERHEAD + round_trip).max(took / 4);
        let measured = (round.pages * PAGE_SIZE as u64) as f64 / sending.as_secs_f64().max(1e-6);
        let known = before.map_or(ASSUMED_BYTES_PER_S, |before| before.bytes_per_s);
        let telling = round.pages >= TELLING_ROUND && round.pages >= round.zero_pages;
        Self {
            took,
            bytes_per_s: if telling { measured } else { known },
            dirty_per_s: round.dirty_rate,
            left: round.dirtied,
            harvest: Duration::from_micros(round.harvest_us)
                .min(before.map_or(Duration::MAX, |before| before.harvest)),
            throttle: round.throttle,
        }
    }
}

impl Terms {
    /// Decides after the rounds so far, the last of which is `rounds.last()`.
    ///
    /// # Panics
    /// Without a round.
    #[must_use]
    pub fn decide(&self, rounds: &[Figures]) -> Decision {
        let now = rounds.last().expect("a round has ended");
        let estimate = self.downtime(now);
        let round = self.round(now);
        let next = now.dirty_per_s * round.as_secs_f64();
        let settled = now.left <= HANDFUL && sending(now) <= self.fixed(now);
        let enough = rounds.len() as u32 >= MOST_ROUNDS;
        let patience = if self.hybrid { HYBRID_PATIENCE } else { PATIENCE };
        // Where the pause is too long still, vCPUs may have to be held back, and that must not wait for rounds that bring little.
        let allowed = self.hybrid || estimate <= self.max_downtime;
        let short = if self.hybrid { LONG_IN_HYBRID } else { SHORT_ROUND };
        let smaller = if allowed && round <= short { SOMEWHAT_SMALLER } else { CLEARLY_SMALLER };
        let worth = next < smaller * now.left as f64;
        let long = self.hybrid && is_long_in_hybrid(rounds, round);
        if worth && !settled && !enough && !long && fruitless(rounds) < patience {
            let why = format!("{} pages left, about {next:.0} after it", now.left);
            return Decision::Again { throttle: now.throttle, why };
        }
        let little = settled || sending(now) <= self.most_in_hybrids_pause(rounds);
        let in_the_pause = little && !self.verify && estimate <= self.max_downtime;
        if self.hybrid && !in_the_pause {
            let why = format!("{} pages are left to post-copy", now.left);
            return Decision::SwitchOver { estimate: self.fixed(now), follows: true, why };
        }
        if estimate <= self.max_downtime {
            let why = format!("{} pages left", now.left);
            return Decision::SwitchOver { estimate, follows: false, why };
        }
        if let Some(throttle) = self.harder(now, next).filter(|_| !enough) {
            let estimate = ms(estimate);
            let why = format!(
                "a pause now would take {estimate}, so vCPUs that write stand still for {throttle} % of the time"
            );
            return Decision::Again { throttle, why };
        }
        if fruitless(rounds) >= PATIENCE || enough || settled {
            return Decision::GiveUp { why: self.hopeless(rounds.len(), now, estimate) };
        }
        Decision::Again { throttle: now.throttle, why: format!("a pause now would take {}", ms(estimate)) }
    }

    /// How much vCPUs are to be held back from now on, if more than now is possible: so much that the next round leaves half of
    /// what is left, when what they write goes with the time that they run. A working set that is written over and over in a
    /// round looks smaller than it is; then it takes another step.
    fn harder(&self, now: &Figures, next: f64) -> Option<u8> {
        if now.throttle >= self.max_throttle || self.fixed(now) > self.max_downtime {
            return None;
        }
        let runs = f64::from(100 - now.throttle.min(MOST_THROTTLE)) * HALF * now.left as f64 / next.max(1.0);
        let enough = 100 - runs.clamp(1.0, 100.0) as u8;
        Some(enough.max(now.throttle.saturating_add(LEAST_MORE)).min(self.max_throttle))
    }

    /// Downtime if the guest were paused now.
    #[must_use]
    pub fn downtime(&self, now: &Figures) -> Duration {
        self.fixed(now) + sending(now)
    }

    /// The part of the downtime that does not depend on the pages left.
    #[must_use]
    pub fn fixed(&self, now: &Figures) -> Duration {
        PAUSE_OVERHEAD + self.state + now.harvest + self.round_trip * ROUND_TRIPS
    }

    /// How long sending what is left may take for hybrid to send it in the pause.
    fn most_in_hybrids_pause(&self, rounds: &[Figures]) -> Duration {
        let (first, now) = (&rounds[0], &rounds[rounds.len() - 1]);
        if now.dirty_per_s < FAST_WRITES_PER_S {
            IN_THE_PAUSE
        } else if now.left.saturating_mul(SCATTERED) <= first.left {
            IN_THE_PAUSE_IF_SCATTERED
        } else {
            IN_THE_PAUSE_IF_FAST.max(self.fixed(now))
        }
    }

    /// How long a further round would take.
    fn round(&self, now: &Figures) -> Duration {
        sending(now) + now.harvest + ROUND_OVERHEAD + self.round_trip
    }

    fn hopeless(&self, rounds: usize, now: &Figures, estimate: Duration) -> String {
        if self.fixed(now) > self.max_downtime {
            return format!(
                "the pause cannot be as short as asked for: saving and restoring the state, reading the dirty log, \
                 stopping and starting alone cost {}, and {} are allowed; allow more with --max-downtime",
                ms(self.fixed(now)),
                ms(self.max_downtime),
            );
        }
        let mib = |bytes: f64| bytes / f64::from(1 << 20);
        let slowed = match self.max_throttle {
            0 => ", or slow the guest down with --throttle".to_owned(),
            most if now.throttle == most && most < MOST_THROTTLE => {
                format!(", or slow the guest down by more than {most} % with --throttle")
            }
            _ => String::new(),
        };
        format!(
            "it does not converge: after {rounds} rounds {} pages are left, {:.0} MiB/s are dirtied and {:.0} MiB/s \
             sent, so a pause would take {}, and {} are allowed; --mode hybrid or postcopy always ends, or allow \
             more with --max-downtime{slowed}",
            now.left,
            mib(now.dirty_per_s * PAGE_SIZE as f64),
            mib(now.bytes_per_s),
            ms(estimate),
            ms(self.max_downtime),
        )
    }
}

/// Whether a further round of that length is too long for hybrid, which can do without.
fn is_long_in_hybrid(rounds: &[Figures], round: Duration) -> bool {
    let so_far: Duration = rounds.iter().map(|before| before.took).sum();
    rounds.len() as u32 >= HYBRID_ROUNDS && round > LONG_IN_HYBRID.max(so_far / LONG_OF_ALL)
}

/// Time to send what is left.
fn sending(now: &Figures) -> Duration {
    let seconds = (now.left * PAGE_SIZE as u64) as f64 / now.bytes_per_s.max(1.0);
    Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX / 4).min(Duration::MAX / 4)
}

/// Rounds since the least was left: none when the last round is the best so far. Those from before vCPUs were held back as they are
/// now do not count.
fn fruitless(rounds: &[Figures]) -> u32 {
    let throttle = rounds.last().map(|now| now.throttle);
    let since =
        rounds.iter().rposition(|round| Some(round.throttle) != throttle).map_or(0, |before| before + 1);
    let rounds = &rounds[since..];
    let best = rounds.iter().enumerate().min_by_key(|(_, figures)| figures.left);
    best.map_or(0, |(at, _)| (rounds.len() - 1 - at) as u32)
}

fn ms(duration: Duration) -> String {
    format!("{:.1} ms", duration.as_secs_f64() * 1e3)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GB: f64 = 1e9;

    /// Of a round that took no time and left nothing.
    const NOTHING: Figures = Figures {
        took: Duration::ZERO,
        bytes_per_s: GB,
        dirty_per_s: 0.0,
        left: 0,
        harvest: Duration::ZERO,
        throttle: 0,
    };

    fn terms(max_downtime_ms: u64) -> Terms {
        Terms {
            max_downtime: Duration::from_millis(max_downtime_ms),
            state: Duration::from_micros(700),
            round_trip: Duration::from_micros(50),
            hybrid: false,
            verify: false,
            max_throttle: 0,
        }
    }

    /// Plays a guest that dirties `rate` distinct pages a second, at most `working_set`, over a link.
    fn play(
        terms: &Terms,
        bytes_per_s: f64,
        rate: impl Fn(usize) -> f64,
        working_set: u64,
    ) -> (usize, Decision) {
        let (mut rounds, mut sent, mut held): (Vec<Figures>, _, _) = (Vec::new(), 262_144_u64, 0);
        loop {
            let aside = ROUND_OVERHEAD + terms.round_trip;
            let took = (sent * PAGE_SIZE as u64) as f64 / bytes_per_s + aside.as_secs_f64();
            let runs = f64::from(100 - held) / 100.0;
            let left = ((rate(rounds.len()) * runs * took) as u64).min(working_set);
            let round = Round {
                pages: sent,
                us: (took * 1e6) as u64,
                dirtied: left,
                dirty_rate: left as f64 / took,
                throttle: held,
                ..Round::default()
            };
            rounds.push(Figures::of(&round, rounds.last(), terms.round_trip));
            match terms.decide(&rounds) {
                Decision::Again { throttle, .. } => {
                    assert!((held..=terms.max_throttle).contains(&throttle), "{throttle} after {held}");
                    (sent, held) = (left, throttle);
                }
                end => return (rounds.len(), end),
            }
        }
    }

    #[test]
    fn only_a_round_of_data_tells_the_throughput() {
        let told = |pages, zero_pages| {
            let round = Round { pages, zero_pages, us: 1_350, ..Round::default() };
            Figures::of(&round, None, Duration::from_micros(50)).bytes_per_s
        };
        assert!((told(1_000, 900) - 4.096e9).abs() < 1e3);
        for (pages, zero_pages) in [(255, 0), (300, 100_000)] {
            assert!((told(pages, zero_pages) - ASSUMED_BYTES_PER_S).abs() < 1e-3, "{pages} {zero_pages}");
        }
    }

    #[test]
    fn a_quiet_guest_switches_over_after_the_first_round() {
        let (rounds, end) = play(&terms(300), 2.0 * GB, |_| 10.0, 131_072);
        assert_eq!(rounds, 1);
        assert!(
            matches!(end, Decision::SwitchOver { estimate, .. } if estimate < Duration::from_millis(2)),
            "{end:?}"
        );
    }

    #[test]
    fn a_guest_that_can_be_caught_is_not_paused_at_the_first_chance() {
        let (rounds, end) = play(&terms(300), 2.0 * GB, |_| 50_000.0, 131_072);
        assert!((2..8).contains(&rounds), "{rounds} rounds");
        assert!(
            matches!(end, Decision::SwitchOver { estimate, .. } if estimate < Duration::from_millis(3)),
            "{end:?}"
        );
    }

    #[test]
    fn hybrid_makes_rounds_for_less_than_precopy_does() {
        let rate = |_| 0.7 * 3.0 * GB / PAGE_SIZE as f64;
        let (precopy, _) = play(&terms(300), 3.0 * GB, rate, 65_536);
        let (hybrid, end) = play(&Terms { hybrid: true, ..terms(300) }, 3.0 * GB, rate, 65_536);
        assert!(precopy <= 4 && hybrid >= precopy + 4, "{precopy} and {hybrid} rounds");
        assert!(matches!(end, Decision::SwitchOver { follows: false, .. }), "{end:?}");
    }

    #[test]
    fn a_guest_that_cannot_be_caught_is_paused_when_that_is_allowed() {
        let (rounds, end) = play(&terms(300), 2.0 * GB, |_| 2_000_000.0, 131_072);
        assert!(rounds <= 4, "{rounds} rounds");
        assert!(matches!(end, Decision::SwitchOver { .. }), "{end:?}");
    }

    #[test]
    fn a_hopeless_guest_is_given_up_with_figures_and_a_way_out() {
        let (rounds, end) = play(&terms(20), 1.0 * GB, |_| 2_000_000.0, 131_072);
        assert!(rounds <= 6, "{rounds} rounds");
        let Decision::GiveUp { why } = end else { panic!("{end:?}") };
        assert!(why.contains("131072 pages are left") && why.contains("--mode hybrid"), "{why}");
    }

    #[test]
    fn a_hopeless_guest_that_may_be_slowed_down_is_caught() {
        let terms = Terms { max_throttle: 99, ..terms(20) };
        for rate in [300_000.0, 2_000_000.0, 10_000_000.0] {
            let (rounds, end) = play(&terms, 1.0 * GB, |_| rate, 131_072);
            assert!(rounds <= 20, "{rounds} rounds at {rate}");
            assert!(
                matches!(end, Decision::SwitchOver { estimate, .. } if estimate < Duration::from_millis(20)),
                "{rate}: {end:?}"
            );
        }
    }

    #[test]
    fn a_guest_that_may_not_be_slowed_down_enough_is_given_up() {
        let (rounds, end) =
            play(&Terms { max_throttle: 60, ..terms(20) }, 1.0 * GB, |_| 20_000_000.0, 131_072);
        assert!(rounds <= 10, "{rounds} rounds");
        let Decision::GiveUp { why } = end else { panic!("{end:?}") };
        assert!(why.contains("by more than 60 % with --throttle"), "{why}");
    }

    #[test]
    fn what_is_advised_can_be_done() {
        let terms = Terms { max_throttle: 99, ..terms(20) };
        let (_, end) = play(&terms, 1.0 * GB, |_| 200_000_000.0, 131_072);
        let Decision::GiveUp { why } = end else { panic!("{end:?}") };
        assert!(!why.contains("--throttle"), "{why}");
    }

    #[test]
    fn a_handful_is_too_much_for_a_slow_network_and_less_is_tried_for() {
        let slow = Figures { bytes_per_s: 1e6, dirty_per_s: 250.0, left: 60, ..NOTHING };
        let decide = |max_throttle| Terms { max_throttle, ..terms(100) }.decide(&[slow]);
        assert!(matches!(decide(99), Decision::Again { throttle: 30.., .. }), "{:?}", decide(99));
        assert!(matches!(decide(0), Decision::Again { throttle: 0, .. }), "{:?}", decide(0));
    }

    #[test]
    fn a_guest_is_slowed_down_by_no_more_than_it_takes() {
        let now = |throttle, left, dirty_per_s| Figures { dirty_per_s, left, throttle, ..NOTHING };
        let throttle = |now: Figures| match (Terms { max_throttle: 80, ..terms(20) }).decide(&[now]) {
            Decision::Again { throttle, .. } => throttle,
            end => panic!("{end:?}"),
        };
        // As much is written as is sent: half of that is to be left.
        assert!((49..=52).contains(&throttle(now(0, 100_000, GB / 4096.0))));
        assert!((74..=76).contains(&throttle(now(50, 100_000, GB / 4096.0))));
        assert_eq!(throttle(now(0, 100_000, 0.7 * GB / 4096.0)), 29, "…");
        assert_eq!(throttle(now(75, 100_000, GB / 4096.0)), 80, "no more than is allowed");
        assert_eq!(throttle(now(20, 100_000, 0.1 * GB / 4096.0)), 20, "it converges");
    }

    #[test]
    fn an_oscillating_guest_is_paused_in_a_lull() {
        let rate = |round: usize| if round.is_multiple_of(3) { 1_000.0 } else { 400_000.0 };
        let (_, end) = play(&terms(20), 1.0 * GB, rate, 131_072);
        assert!(
            matches!(end, Decision::SwitchOver { estimate, .. } if estimate < Duration::from_millis(20)),
            "{end:?}"
        );
    }

    #[test]
    fn hybrid_always_ends_and_soon() {
        let (rounds, end) = play(&Terms { hybrid: true, ..terms(1) }, 0.1 * GB, |_| 2_000_000.0, 131_072);
        assert!(rounds <= 2 && matches!(end, Decision::SwitchOver { .. }), "{rounds} {end:?}");
    }

    /// A guest that writes as fast as it can, and is slower than rounds.
    #[test]
    fn hybrid_sends_in_the_pause_what_rounds_have_made_small() {
        let hybrid = Terms { hybrid: true, ..terms(20) };
        let (rounds, end) = play(&hybrid, 3.0 * GB, |_| 400_000.0, 131_072);
        let Decision::SwitchOver { estimate, follows: false, why } = end else { panic!("{end:?}") };
        assert!((5..=15).contains(&rounds) && estimate < Duration::from_millis(3), "{rounds} {estimate:?}");
        let left: u64 = why.split(' ').next().and_then(|left| left.parse().ok()).expect("how many");
        assert!(left < 600, "{why}");
        // Memory would be compared in the pause; and a pause that is not allowed.
        for other in [Terms { verify: true, ..hybrid }, Terms { hybrid: true, ..terms(1) }] {
            let (_, end) = play(&other, 3.0 * GB, |_| 400_000.0, 131_072);
            assert!(matches!(end, Decision::SwitchOver { follows: true, .. }), "{end:?}");
        }
    }

    #[test]
    fn hybrid_makes_no_third_round_that_is_long() {
        let hybrid = Terms { hybrid: true, ..terms(20) };
        let link = 0.01 * GB;
        let pages_per_s = 0.55 * link / PAGE_SIZE as f64;
        let (rounds, end) = play(&hybrid, link, |_| pages_per_s, 1 << 20);
        assert_eq!(rounds, 2);
        assert!(matches!(end, Decision::SwitchOver { follows: true, .. }), "{end:?}");
        // A guest that writes a quarter as fast: the third is short beside the first two.
        let (rounds, end) = play(&hybrid, link, |_| pages_per_s * 0.45, 1 << 20);
        assert!(rounds > 2 && matches!(end, Decision::SwitchOver { .. }), "{rounds} {end:?}");
    }

    /// Telling them would not get ahead of the guest, and all their neighbours are nearly all that it writes.
    #[test]
    fn in_hybrid_scattered_pages_of_a_fast_guest_come_in_the_pause() {
        let hybrid = Terms { hybrid: true, ..terms(300) };
        let after = |left, dirty_per_s| Figures {
            took: Duration::from_secs(1),
            bytes_per_s: 10.0 * GB,
            dirty_per_s,
            left,
            ..NOTHING
        };
        let follows = |first, left, rate| {
            let decision = hybrid.decide(&[after(first, rate), after(left, rate)]);
            matches!(decision, Decision::SwitchOver { follows: true, .. })
        };
        assert!(!follows(50_000_000, 100_000, 2.3e6), "41 ms of them");
        assert!(follows(50_000_000, 200_000, 2.3e6), "82 ms");
        assert!(follows(1_000_000, 100_000, 2.3e6), "dense");
    }

    #[test]
    fn in_hybrid_what_rounds_do_not_make_smaller_follows_the_guest() {
        let hybrid = Terms { hybrid: true, ..terms(20) };
        let (_, faster) = play(&hybrid, 1.0 * GB, |_| 400_000.0, 131_072);
        assert!(matches!(faster, Decision::SwitchOver { follows: true, .. }), "{faster:?}");
        let after = |left| Figures { left, ..NOTHING };
        let worse = [after(90_000), after(20_000), after(25_000)];
        let end = hybrid.decide(&worse);
        assert!(matches!(end, Decision::SwitchOver { follows: true, .. }), "a round in vain: {end:?}");
        let other = Terms { hybrid: false, ..hybrid }.decide(&worse);
        assert!(matches!(other, Decision::Again { .. }), "{other:?}");
    }

    /// 1 TiB has 32 MiB of it, to be read once more in the pause.
    #[test]
    fn a_dirty_log_slow_to_read_is_part_of_the_pause() {
        let after = |harvest_ms| Figures {
            bytes_per_s: 2.0 * GB,
            harvest: Duration::from_millis(harvest_ms),
            ..NOTHING
        };
        let fits = terms(20).decide(&[after(15)]);
        assert!(
            matches!(fits, Decision::SwitchOver { estimate, .. } if estimate > Duration::from_millis(15)),
            "{fits:?}"
        );
        let Decision::GiveUp { why } = terms(20).decide(&[after(40)]) else { panic!("40 ms fit into 20") };
        assert!(why.contains("reading the dirty log"), "{why}");
    }

    #[test]
    fn a_harvest_that_was_disturbed_does_not_count() {
        let calm = Figures::of(&Round { harvest_us: 30, ..Round::default() }, None, Duration::ZERO);
        let disturbed =
            Figures::of(&Round { harvest_us: 50_000, ..Round::default() }, Some(&calm), Duration::ZERO);
        let end = terms(20).decide(&[calm, disturbed]);
        assert!(matches!(end, Decision::SwitchOver { .. }), "{end:?}");
    }

    #[test]
    fn a_state_slower_than_the_limit_cannot_be_helped_by_rounds() {
        let slow = Terms { state: Duration::from_millis(50), ..terms(20) };
        let (rounds, end) = play(&slow, 2.0 * GB, |_| 0.0, 131_072);
        assert_eq!(rounds, 1);
        let Decision::GiveUp { why } = end else { panic!("{end:?}") };
        assert!(why.contains("stopping and starting alone cost 50.") && !why.contains("hybrid"), "{why}");
    }
}
