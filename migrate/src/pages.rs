//! Sets and runs of guest pages, by guest frame number.
//!
//! A [`PageSet`] is the one currency for "which pages": a harvest of the dirty log, what a round
//! must send, what post-copy still misses. It is a bitmap: a guest of 1 TiB costs 32 MiB.
//! An [`AtomicPageSet`] is the same with concurrent claims: whoever clears a bit owns the page.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

/// Bytes in a page. x86-64's base page: the dirty log, userfaultfd and the wire all count in it.
pub const PAGE_SIZE: usize = 4096;

/// A run of consecutive guest pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PageRun {
    /// The first guest frame number (guest-physical address / 4096).
    pub first: u64,
    /// How many pages.
    pub count: u64,
}

impl PageRun {
    /// The frame number just past the run.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.first + self.count
    }

    /// Bytes in the run.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.count * PAGE_SIZE as u64
    }
}

/// A set of guest pages, as a bitmap over frame numbers `0..limit`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PageSet {
    words: Vec<u64>,
}

impl PageSet {
    /// An empty set with room for frame numbers below `limit`.
    #[must_use]
    pub fn new(limit: u64) -> Self {
        Self { words: vec![0; limit.div_ceil(64) as usize] }
    }

    /// Every page of `runs`.
    #[must_use]
    pub fn of_runs(limit: u64, runs: &[PageRun]) -> Self {
        let mut set = Self::new(limit);
        for run in runs {
            set.insert_run(*run);
        }
        set
    }

    /// One past the largest frame number that fits.
    #[must_use]
    pub fn limit(&self) -> u64 {
        self.words.len() as u64 * 64
    }

    /// Whether `gfn` is in the set.
    #[must_use]
    pub fn contains(&self, gfn: u64) -> bool {
        self.words.get((gfn / 64) as usize).is_some_and(|w| w & (1 << (gfn % 64)) != 0)
    }

    /// Adds one page. Panics if it is beyond [`limit`](Self::limit).
    pub fn insert(&mut self, gfn: u64) {
        self.words[(gfn / 64) as usize] |= 1 << (gfn % 64);
    }

    /// Adds a run of pages. Panics if it reaches beyond [`limit`](Self::limit).
    pub fn insert_run(&mut self, run: PageRun) {
        for_words(run, |index, mask| self.words[index] |= mask);
    }

    /// Takes a run of pages out.
    pub fn remove_run(&mut self, run: PageRun) {
        for_words(run, |index, mask| self.words[index] &= !mask);
    }

    /// Joins bitmap words as KVM's dirty log gives them: bit 0 of `words[0]` is page `first`,
    /// which must be a multiple of 64 (slots start on such a boundary).
    pub fn union_words(&mut self, first: u64, words: &[u64]) {
        debug_assert_eq!(first % 64, 0, "a slot starts on a 64-page boundary");
        let start = (first / 64) as usize;
        for (mine, theirs) in self.words[start..].iter_mut().zip(words) {
            *mine |= theirs;
        }
    }

    /// Adds all pages of `other`, which must not be larger.
    pub fn union(&mut self, other: &PageSet) {
        self.union_words(0, &other.words);
    }

    /// Takes out all pages of `other`.
    pub fn subtract(&mut self, other: &PageSet) {
        for (mine, theirs) in self.words.iter_mut().zip(&other.words) {
            *mine &= !theirs;
        }
    }

    /// Where at least `dense` of 64 neighbouring pages are in the set, adds all of them that are in `whole`: fewer
    /// and longer runs.
    pub fn join_dense(&mut self, dense: u32, whole: &PageSet) {
        for (mine, all) in self.words.iter_mut().zip(&whole.words) {
            if mine.count_ones() >= dense {
                *mine |= all;
            }
        }
    }

    /// How many pages.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.words.iter().map(|w| u64::from(w.count_ones())).sum()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.words.iter().all(|w| *w == 0)
    }

    /// The bitmap's words: bit `b` of word `w` is frame number `w * 64 + b`.
    #[must_use]
    pub fn words(&self) -> &[u64] {
        &self.words
    }

    /// The maximal runs, ascending.
    pub fn runs(&self) -> Runs<'_> {
        self.runs_within(PageRun { first: 0, count: self.limit() })
    }

    /// The runs inside `window`, ascending, cut at its edges.
    pub fn runs_within(&self, window: PageRun) -> Runs<'_> {
        Runs { words: &self.words, at: window.first, end: window.end().min(self.limit()) }
    }
}

/// Calls `f(word index, mask)` for each word that `run` touches.
fn for_words(run: PageRun, mut f: impl FnMut(usize, u64)) {
    let mut gfn = run.first;
    while gfn < run.end() {
        let bit = gfn % 64;
        let count = (64 - bit).min(run.end() - gfn);
        f((gfn / 64) as usize, mask(bit, count));
        gfn += count;
    }
}

/// `count` (1..=64) ones starting at `bit`.
fn mask(bit: u64, count: u64) -> u64 {
    (u64::MAX >> (64 - count)) << bit
}

/// Iterator over the runs of a [`PageSet`].
#[derive(Debug)]
pub struct Runs<'a> {
    words: &'a [u64],
    at: u64,
    end: u64,
}

impl Runs<'_> {
    /// The next frame number at or after `self.at` whose bit, xored with `flip`, is set.
    fn seek(&self, flip: u64) -> u64 {
        let mut gfn = self.at;
        while gfn < self.end {
            let word = (self.words[(gfn / 64) as usize] ^ flip) >> (gfn % 64);
            if word != 0 {
                return (gfn + u64::from(word.trailing_zeros())).min(self.end);
            }
            gfn = (gfn / 64 + 1) * 64;
        }
        self.end
    }
}

impl Iterator for Runs<'_> {
    type Item = PageRun;

    fn next(&mut self) -> Option<PageRun> {
        self.at = self.seek(0);
        let first = self.at;
        if first >= self.end {
            return None;
        }
        self.at = self.seek(u64::MAX);
        Some(PageRun { first, count: self.at - first })
    }
}

/// A page set from which threads claim pages: each page is won by exactly one of them.
#[derive(Debug)]
pub struct AtomicPageSet {
    words: Vec<AtomicU64>,
}

impl AtomicPageSet {
    /// A shared copy of `set`.
    #[must_use]
    pub fn from_set(set: &PageSet) -> Self {
        Self { words: set.words.iter().map(|w| AtomicU64::new(*w)).collect() }
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
        PageSet { words: self.words.iter().map(|w| w.load(Ordering::Acquire)).collect() }
    }
}

/// Appends the set bits of `bits` (bit 0 is page `base`) to `runs`, joining neighbours.
fn push_bits(runs: &mut Vec<PageRun>, base: u64, bits: u64) {
    for run in (Runs { words: &[bits], at: 0, end: 64 }) {
        let first = base + run.first;
        match runs.last_mut() {
            Some(last) if last.end() == first => last.count += run.count,
            _ => runs.push(PageRun { first, count: run.count }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn runs_describe_exactly_the_inserted_pages(pages in proptest::collection::btree_set(0_u64..700, 0..300)) {
            let mut set = PageSet::new(700);
            pages.iter().for_each(|p| set.insert(*p));
            let from_runs: Vec<u64> = set.runs().flat_map(|r| r.first..r.end()).collect();
            prop_assert_eq!(from_runs, pages.iter().copied().collect::<Vec<_>>());
            prop_assert_eq!(set.len(), pages.len() as u64);
        }

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
    fn runs_within_are_cut_at_the_window() {
        let set = PageSet::of_runs(256, &[PageRun { first: 10, count: 200 }]);
        let runs: Vec<_> = set.runs_within(PageRun { first: 64, count: 70 }).collect();
        assert_eq!(runs, [PageRun { first: 64, count: 70 }]);
    }

    #[test]
    fn dense_neighbourhoods_are_joined_within_bounds() {
        let (sparse, dense) = (PageRun { first: 3, count: 7 }, PageRun { first: 130, count: 8 });
        let whole = PageSet::of_runs(192, &[PageRun { first: 0, count: 190 }]);
        let mut set = PageSet::of_runs(192, &[sparse, dense]);
        set.join_dense(8, &whole);
        assert_eq!(set.runs().collect::<Vec<_>>(), [sparse, PageRun { first: 128, count: 62 }]);
    }

    #[test]
    fn next_from_finds_the_page_or_none() {
        let set = AtomicPageSet::from_set(&PageSet::of_runs(256, &[PageRun { first: 130, count: 2 }]));
        assert_eq!(set.next_from(0), Some(130));
        assert_eq!(set.next_from(131), Some(131));
        assert_eq!(set.next_from(132), None);
    }
}
