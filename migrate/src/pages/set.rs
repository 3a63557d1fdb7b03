//! Sets of pages with one owner.

use super::{PageRun, for_words};

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

    pub(super) fn of_words(words: Vec<u64>) -> Self {
        Self { words }
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
        Runs::of(&self.words, window.first, window.end().min(self.limit()))
    }
}

/// Iterator over the runs of a [`PageSet`].
#[derive(Debug)]
pub struct Runs<'a> {
    words: &'a [u64],
    at: u64,
    end: u64,
}

impl<'a> Runs<'a> {
    pub(super) fn of(words: &'a [u64], at: u64, end: u64) -> Self {
        Self { words, at, end }
    }

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
}
