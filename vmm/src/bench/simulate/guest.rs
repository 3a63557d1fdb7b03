//! A guest that exists on paper only: how much of it there is to move, and how it writes.
//!
//! Writes are random and even over a part of RAM. A page counts as dirtied in a round when it is written after the round
//! has protected it, which comes before it is sent, with the part of the round it is in: one of a late part has little time left.

use migrate::pages::PAGE_SIZE;
use migrate::source::{WINDOW, watched_at_once};

/// How closely the pace of a guest that is caught is looked for: to one part of 2^40.
const HALVINGS: u32 = 40;

/// Pages of a word of the dirty log.
const WORD: u32 = 64;

/// Pages that are written at random and evenly.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Writes {
    /// Writes a second, by all vCPUs together.
    pub(super) per_s: f64,
    /// Pages they are spread over: the first ones of RAM.
    pub(super) over: f64,
}

/// The guest.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Guest {
    /// RAM, bytes.
    pub(super) ram: u64,
    /// Pages that exist: all others read as zero and are not sent.
    pub(super) populated: f64,
    /// vCPUs, all of them busy.
    pub(super) vcpus: u32,
    /// All that writes.
    pub(super) writes: Vec<Writes>,
}

/// What a round sends, and so protects as it goes along.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Sent {
    /// All that exists.
    All,
    /// Of each of the guest's writes so many pages.
    Some(Vec<f64>),
    /// Nothing: all pages are protected already.
    Nothing,
}

/// How pages lie in RAM: it decides what they cost beyond their bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Lie {
    pub(super) pages: f64,
    /// Runs of neighbours.
    pub(super) runs: f64,
}

/// Dirty pages, with all neighbours of those that lie close together.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Joined {
    pub(super) pages: f64,
    /// Runs of neighbours.
    pub(super) runs: f64,
    /// Of the pages: those without their neighbours.
    sparse: f64,
    /// Words that are wholly among the pages.
    dense_words: f64,
    /// From how many dirty pages on a word is.
    dense: u32,
}

impl Joined {
    /// Pages that are not in `before`, which was joined when fewer were dirty; and their runs.
    pub(super) fn beyond(&self, before: &Self) -> (f64, f64) {
        let pages = (self.pages - before.pages).max(0.0);
        // What was dirty in a word that is dense now lies between what is not told.
        let dense_runs = (self.dense_words - before.dense_words).max(0.0) * f64::from(self.dense);
        let runs =
            if before.pages > 0.0 { dense_runs + (self.sparse - before.sparse).abs() } else { self.runs };
        (pages, runs.min(pages))
    }

    /// With so many pages besides, none of which has a neighbour among them.
    pub(super) fn with_single(self, pages: f64) -> Self {
        Self { pages: self.pages + pages, runs: self.runs + pages, sparse: self.sparse + pages, ..self }
    }
}

impl Guest {
    /// RAM in GiB, which bitmaps and surveys go by.
    pub(super) fn gib(&self) -> f64 {
        self.ram as f64 / f64::from(1 << 30)
    }

    /// All pages that exist.
    pub(super) fn all(&self) -> Lie {
        let windows = (self.populated / WINDOW as f64).ceil();
        Lie { pages: self.populated, runs: windows }
    }

    /// Of each of the guest's writes the pages that are dirty after `seconds` in which `sent` was sent. Each of them was caught in a
    /// fault, `caught_s` of a vCPU's time: whoever is caught all the time writes little else.
    pub(super) fn dirtied(&self, seconds: f64, sent: &Sent, caught_s: f64) -> Vec<f64> {
        let time = (seconds * f64::from(self.vcpus.max(1))).max(1e-12);
        // The more is written the more is caught, and the less time is left for writing.
        let left =
            |pace: f64| 1.0 - self.dirtied_at(pace, seconds, sent).iter().sum::<f64>() * caught_s / time;
        let (mut slow, mut fast) = (0.0, 1.0);
        if left(1.0) < 1.0 {
            for _ in 0..HALVINGS {
                let pace = f64::midpoint(slow, fast);
                if left(pace) > pace { slow = pace } else { fast = pace }
            }
        }
        self.dirtied_at(fast, seconds, sent)
    }

    /// … where it writes at so much of its pace.
    fn dirtied_at(&self, pace: f64, seconds: f64, sent: &Sent) -> Vec<f64> {
        let one = |(at, writes): (usize, &Writes)| {
            let over = writes.over.max(1.0);
            // Of W pages n writes leave a page out with (1-1/W)^n.
            let written = writes.per_s * pace * seconds;
            let pressure = if over > 1.0 { -(-1.0 / over).ln_1p() } else { 1e6 } * written;
            let pressure = if writes.per_s > 0.0 { pressure } else { 0.0 };
            match sent {
                Sent::All => {
                    let end = (over / self.populated).min(1.0);
                    over * hit(pressure, 0.0, (end - 1.0 / calls(self.populated)).max(0.0))
                }
                Sent::Some(pages) => {
                    let again = pages[at].min(over);
                    let end = 1.0 - 1.0 / calls(pages.iter().sum());
                    (over - again) * hit(pressure, 0.0, 0.0) + again * hit(pressure, 0.0, end)
                }
                Sent::Nothing => over * hit(pressure, 0.0, 0.0),
            }
        };
        self.writes.iter().enumerate().map(one).collect()
    }

    /// How so many pages of each of the guest's writes lie.
    pub(super) fn scattered(&self, pages: &[f64]) -> Lie {
        let lies = self.writes.iter().zip(pages).map(|(writes, pages)| scattered(*pages, writes.over));
        lies.fold(Lie::default(), |sum, lie| Lie { pages: sum.pages + lie.pages, runs: sum.runs + lie.runs })
    }

    /// What hybrid leaves to post-copy where so many pages of each of the guest's writes are dirty.
    pub(super) fn joined(&self, pages: &[f64], dense: u32) -> Joined {
        let all = self.writes.iter().zip(pages).map(|(writes, pages)| join_dense(*pages, writes.over, dense));
        all.fold(Joined::default(), |sum, one| Joined {
            dense,
            pages: sum.pages + one.pages,
            runs: sum.runs + one.runs,
            sparse: sum.sparse + one.sparse,
            dense_words: sum.dense_words + one.dense_words,
        })
    }

    /// How many pages that are `dirtied` are not among the `dirty` ones and neighbours that these are joined with.
    pub(super) fn beside_joined(&self, dirty: &[f64], dirtied: &[f64], dense: u32) -> f64 {
        let both = dirty.iter().zip(dirtied).zip(&self.writes);
        both.map(|((dirty, dirtied), writes)| {
            let joined = join_dense(*dirty, writes.over, dense).pages;
            dirtied * (1.0 - joined / writes.over.max(1.0)).max(0.0)
        })
        .sum()
    }

    /// Dirty pages of each of the guest's writes with those that are `dirtied` besides: some are dirty already.
    pub(super) fn with(&self, dirty: &[f64], dirtied: &[f64]) -> Vec<f64> {
        let both = dirty.iter().zip(dirtied).zip(&self.writes);
        both.map(|((dirty, dirtied), writes)| dirty + dirtied * (1.0 - dirty / writes.over).max(0.0))
            .collect()
    }
}

/// Calls by which a round of so many pages has them protected, each before its part is sent.
pub(super) fn calls(pages: f64) -> f64 {
    (pages / watched_at_once(pages as u64) as f64).ceil().max(1.0)
}

/// Pages of so many bytes.
pub(super) fn pages(bytes: u64) -> f64 {
    (bytes / PAGE_SIZE as u64) as f64
}

/// The share of pages that are hit, where each is hit with `pressure` over the whole time, and those between `from` and `to`
/// (both 0 to 1, evenly) only count from there on.
fn hit(pressure: f64, from: f64, to: f64) -> f64 {
    let (width, left) = (to - from, 1.0 - to);
    if pressure * width < 1e-6 {
        return -(-pressure * (1.0 - f64::midpoint(from, to))).exp_m1();
    }
    1.0 - ((-pressure * left).exp() - (-pressure * (1.0 - from)).exp()) / (pressure * width)
}

fn scattered(pages: f64, over: f64) -> Lie {
    let share = (pages / over.max(1.0)).min(1.0);
    let windows = over / WINDOW as f64 * (1.0 - (1.0 - share).powi(WINDOW as i32));
    let windows = windows.max(pages.min(1.0)).min(pages);
    Lie { pages, runs: (pages * (1.0 - share)).max(windows.min(pages)) }
}

/// Words of the log in which so many of 64 pages are set have a binomial distribution.
fn join_dense(pages: f64, over: f64, dense: u32) -> Joined {
    let share = (pages / over.max(1.0)).min(1.0);
    let words = over / f64::from(WORD);
    if share >= 1.0 {
        return Joined { pages, runs: words.min(1.0), sparse: 0.0, dense_words: words, dense };
    }
    // Of none: (1-p)^64; of k+1: that of k × (64-k)/(k+1) × p/(1-p).
    let (mut likely, mut sparse_words, mut sparse) = ((1.0 - share).powi(WORD as i32), 0.0, 0.0);
    for set in 0..dense {
        sparse_words += words * likely;
        sparse += words * likely * f64::from(set);
        likely *= f64::from(WORD - set) / f64::from(set + 1) * share / (1.0 - share);
    }
    let dense_words = (words - sparse_words).max(0.0);
    // A dense word is a run, unless the one before it is dense as well.
    let runs = sparse + dense_words * (1.0 - dense_words / words);
    Joined { pages: sparse + dense_words * f64::from(WORD), runs, sparse, dense_words, dense }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn guest(per_s: f64, over: f64) -> Guest {
        Guest { ram: 1 << 30, populated: 235_000.0, vcpus: 1, writes: vec![Writes { per_s, over }] }
    }

    #[test]
    fn distinct_pages_are_those_of_the_urn() {
        // 1000 writes over 1000 pages leave (1-1/1000)^1000 of them out.
        let dirtied = guest(1000.0, 1000.0).dirtied(1.0, &Sent::Nothing, 0.0)[0];
        assert!((dirtied - 1000.0 * (1.0 - 0.999_f64.powi(1000))).abs() < 1e-6, "{dirtied}");
        assert!((guest(5.0, 1.0).dirtied(1.0, &Sent::Nothing, 0.0)[0] - 1.0).abs() < 1e-9);
    }

    #[test]
    fn a_page_sent_late_in_the_round_has_little_time_to_be_dirtied() {
        // Few writes over all that is sent: each page counts for half of the round on average, and for half of its part.
        let few = guest(1000.0, 235_000.0);
        let (all, none) = (few.dirtied(1.0, &Sent::All, 0.0)[0], few.dirtied(1.0, &Sent::Nothing, 0.0)[0]);
        assert!((all / none - 0.5 - 0.5 / 29.0).abs() < 0.01, "{all} {none}");
        let again = few.dirtied(1.0, &Sent::Some(vec![235_000.0]), 0.0)[0];
        assert!((again / all - 1.0).abs() < 1e-6);
    }

    #[test]
    fn a_round_of_the_demo_guest_dirties_what_was_measured() {
        // 1 GiB, 10,000 writes a second over 512 MiB; round 0 of 235,685 pages took 487.6 ms and left 3660 pages.
        let guest = Guest { populated: 235_685.0, ..guest(10_000.0, 131_072.0) };
        let dirtied = guest.dirtied(0.4876, &Sent::All, 0.0)[0];
        assert!((dirtied / 3660.0 - 1.0).abs() < 0.06, "{dirtied}");
    }

    #[test]
    fn a_guest_that_is_caught_all_the_time_writes_no_more_than_it_can() {
        let fast = guest(9e6, 131_072.0);
        let caught = |seconds, caught_s| fast.dirtied(seconds, &Sent::Nothing, caught_s)[0];
        // 2.6 us each: 38,462 in 0.1 s at most, and the writes besides take time, too.
        assert!((36_000.0..38_462.0).contains(&caught(0.1, 2.6e-6)), "{}", caught(0.1, 2.6e-6));
        assert!(caught(0.1, 0.0) > 130_000.0 && caught(1.0, 2.6e-6) > 130_000.0);
        let slow = guest(10_000.0, 131_072.0);
        let share = slow.dirtied(0.3, &Sent::All, 2.6e-6)[0] / slow.dirtied(0.3, &Sent::All, 0.0)[0];
        assert!((0.97..1.0).contains(&share), "{share}");
        let many = Guest { vcpus: 4, ..guest(9e6, 131_072.0) };
        assert!(many.dirtied(0.1, &Sent::Nothing, 2.6e-6)[0] > 2.0 * caught(0.1, 2.6e-6));
    }

    proptest! {
        #[test]
        fn no_more_is_dirtied_than_there_is_and_no_more_than_was_written(
            per_s in 0.0..1e8_f64, over in 1.0..1e9_f64, seconds in 0.0..1e3_f64, share in 0.0..1.0_f64,
            caught_us in 0.0..30.0_f64,
        ) {
            let guest = Guest { populated: over * 1.2, ..guest(per_s, over) };
            for sent in [Sent::All, Sent::Some(vec![share * over]), Sent::Nothing] {
                let dirtied = guest.dirtied(seconds, &sent, caught_us / 1e6)[0];
                prop_assert!(dirtied * caught_us / 1e6 <= seconds * 1.000_001, "{dirtied} in {seconds}");
                prop_assert!(dirtied >= 0.0 && dirtied <= over * 1.000_001, "{dirtied} of {over}");
                prop_assert!(dirtied <= per_s * seconds * 1.01 + 1e-3 || over < 100.0, "{dirtied} of {per_s}×{seconds}");
            }
        }

        #[test]
        fn lies_are_possible(over in 64.0..1e9_f64, share in 0.0..=1.0_f64, dense in 1..=8_u32, next in 1..=8_u32) {
            let pages = over * share;
            let lie = scattered(pages, over);
            prop_assert!(lie.runs <= lie.pages + 1e-6, "{lie:?}");
            let joined = join_dense(pages, over, dense);
            prop_assert!(joined.pages >= pages * 0.999 && joined.pages <= over * 1.001, "{joined:?}");
            prop_assert!(joined.runs <= joined.pages + 1.0);
            let (more, runs) = join_dense(over, over, next).beyond(&joined);
            prop_assert!((more + joined.pages - over).abs() <= over * 0.001 && runs <= more, "{joined:?}");
        }
    }
}
