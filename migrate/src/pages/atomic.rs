//! Sets of pages from which threads claim.

use std::sync::atomic::{AtomicU64, Ordering};

use super::set::PageSet;
use super::{PageRun, for_words, mask};

/// A page set from which threads claim pages: each page is won by exactly one of them.
#[derive(Debug)]
pub struct AtomicPageSet {
    words: Vec<AtomicU64>,
}

impl AtomicPageSet {
    /// A shared copy of `set`.
    #[must_use]
    pub fn from_set(set: &PageSet) -> Self {
        Self { words: set.words().iter().map(|w| AtomicU64::new(*w)).collect() }
    }

    /// An empty set with room for frame numbers below `limit`.
    #[must_use]
    pub fn new(limit: u64) -> Self {
        Self::from_set(&PageSet::new(limit))
    }

    /// Adds a run of pages, and says how many of them were not there before. Pages beyond the set's limit are left out.
    pub fn insert_run(&self, run: PageRun) -> u64 {
        let mut added = 0;
        for_words(run, |index, mask| {
            if let Some(word) = self.words.get(index) {
                let before = word.fetch_or(mask, Ordering::AcqRel);
                added += u64::from((mask & !before).count_ones());
            }
        });
        added
    }

    /// Takes `gfn` out; true if it was there, so that the caller now owns it.
    pub fn claim(&self, gfn: u64) -> bool {
        let Some(word) = self.words.get((gfn / 64) as usize) else { return false };
        let bit = 1 << (gfn % 64);
        word.fetch_and(!bit, Ordering::AcqRel) & bit != 0
    }

    /// Takes out what is left in `run` and returns it as runs.
    pub fn claim_run(&self, run: PageRun) -> Vec<PageRun> {
        let mut won = Vec::new();
        for_words(run, |index, mask| {
            let Some(word) = self.words.get(index) else { return };
            let taken = word.fetch_and(!mask, Ordering::AcqRel) & mask;
            push_bits(&mut won, index as u64 * 64, taken);
        });
        won
    }

    /// Whether `gfn` is still in the set.
    #[must_use]
    pub fn contains(&self, gfn: u64) -> bool {
        let word = self.words.get((gfn / 64) as usize);
        word.is_some_and(|w| w.load(Ordering::Acquire) & (1 << (gfn % 64)) != 0)
    }

    /// How many pages of `run` are in the set at this moment.
    #[must_use]
    pub fn count_within(&self, run: PageRun) -> u64 {
        let mut count = 0;
        for_words(run, |index, mask| {
            let word = self.words.get(index).map_or(0, |word| word.load(Ordering::Acquire));
            count += u64::from((word & mask).count_ones());
        });
        count
    }

    /// The first page at or after `gfn` that is still in the set.
    #[must_use]
    pub fn next_from(&self, gfn: u64) -> Option<u64> {
        let start = (gfn / 64) as usize;
        for (index, word) in self.words.iter().enumerate().skip(start) {
            let mut bits = word.load(Ordering::Acquire);
            if index == start {
                bits &= u64::MAX << (gfn % 64);
            }
            if bits != 0 {
                return Some(index as u64 * 64 + u64::from(bits.trailing_zeros()));
            }
        }
        None
    }

    /// What is in the set at this moment.
    #[must_use]
    pub fn snapshot(&self) -> PageSet {
        let mut set = PageSet::new(self.words.len() as u64 * 64);
        for (index, word) in self.words.iter().enumerate() {
            set.union_words(index as u64 * 64, &[word.load(Ordering::Acquire)]);
        }
        set
    }
}

/// Appends the set bits of `bits` (bit 0 is page `base`) to `runs`, joining neighbours.
fn push_bits(runs: &mut Vec<PageRun>, base: u64, mut bits: u64) {
    while bits != 0 {
        let bit = u64::from(bits.trailing_zeros());
        let count = u64::from((bits >> bit).trailing_ones());
        bits &= !mask(bit, count);
        match runs.last_mut() {
            Some(last) if last.end() == base + bit => last.count += count,
            _ => runs.push(PageRun { first: base + bit, count }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_page_is_claimed_once(first in 0_u64..300, count in 0_u64..300, again in 0_u64..600) {
            let all = PageRun { first: 0, count: 600 };
            let set = AtomicPageSet::from_set(&PageSet::of_runs(640, &[all]));
            let run = PageRun { first, count };
            let won: u64 = set.claim_run(run).iter().map(|r| r.count).sum();
            prop_assert_eq!(won, count);
            prop_assert!(set.claim_run(run).is_empty());
            prop_assert_eq!(set.claim(again), !(run.first..run.end()).contains(&again));
        }
    }

    #[test]
    fn next_from_finds_the_page_or_none() {
        let set = AtomicPageSet::from_set(&PageSet::of_runs(256, &[PageRun { first: 130, count: 2 }]));
        assert_eq!(set.next_from(0), Some(130));
        assert_eq!(set.next_from(131), Some(131));
        assert_eq!(set.next_from(132), None);
    }
}
