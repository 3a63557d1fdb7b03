//! Sets of pages with one owner.

use std::ops::Range;

use super::{PageRun, for_words};

/// Words looked at together: a cache line.
const CHUNK: usize = 8;

/// A set of guest pages, as a bitmap over frame numbers `0..limit`, with a smaller one that says which words of it are in use:
/// what a pause does with a few pages of a large guest must not take longer the larger the guest is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PageSet {
    words: Vec<u64>,
    /// Bit `b` of word `w` is set where word `w * 64 + b` of the bitmap is not zero.
    used: Vec<u64>,
}

impl PageSet {
    /// An empty set with room for frame numbers below `limit`.
    #[must_use]
    pub fn new(limit: u64) -> Self {
        let words = limit.div_ceil(64) as usize;
        Self { words: vec![0; words], used: vec![0; words.div_ceil(64)] }
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
        self.join((gfn / 64) as usize, 1 << (gfn % 64));
    }

    /// Adds a run of pages. Panics if it reaches beyond [`limit`](Self::limit).
    pub fn insert_run(&mut self, run: PageRun) {
        for_words(run, |index, mask| self.join(index, mask));
    }

    /// Takes a run of pages out.
    pub fn remove_run(&mut self, run: PageRun) {
        for_words(run, |index, mask| self.take_out(index, mask));
    }

    /// Joins bitmap words as KVM's dirty log gives them: bit 0 of `words[0]` is page `first`,
    /// which must be a multiple of 64 (slots start on such a boundary).
    pub fn union_words(&mut self, first: u64, words: &[u64]) {
        debug_assert_eq!(first % 64, 0, "a slot starts on a 64-page boundary");
        let start = (first / 64) as usize;
        for (at, chunk) in words.chunks(CHUNK).enumerate() {
            if chunk.iter().fold(0, |all, word| all | word) == 0 {
                continue;
            }
            for (index, word) in (start + at * CHUNK..).zip(chunk).filter(|(_, word)| **word != 0) {
                self.join(index, *word);
            }
        }
    }

    /// Adds all pages of `other`, which must not be larger.
    pub fn union(&mut self, other: &PageSet) {
        for index in other.in_use() {
            self.join(index, other.words[index]);
        }
    }

    /// Takes out all pages of `other`.
    pub fn subtract(&mut self, other: &PageSet) {
        let words = self.words.len();
        for index in other.in_use().take_while(|index| *index < words) {
            self.take_out(index, other.words[index]);
        }
    }

    /// Those of its pages that are not in `other`.
    #[must_use]
    pub fn without(&self, other: &PageSet) -> PageSet {
        let mut rest = Self::new(self.limit());
        rest.union_without(self, other);
        rest
    }

    /// Adds the pages of `other` that are not in `but`.
    pub fn union_without(&mut self, other: &PageSet, but: &PageSet) {
        for index in other.in_use() {
            let theirs = but.words.get(index).copied().unwrap_or(0);
            self.join(index, other.words[index] & !theirs);
        }
    }

    /// Where at least `dense` of 64 neighbouring pages are in the set, adds all of them that are in `whole`: fewer
    /// and longer runs.
    pub fn join_dense(&mut self, dense: u32, whole: &PageSet) {
        for (mine, all) in self.words.iter_mut().zip(&whole.words) {
            // A word that none of its pages are in stays unused.
            if *mine != 0 && mine.count_ones() >= dense {
                *mine |= all;
            }
        }
    }

    /// How many pages.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.in_use().map(|index| u64::from(self.words[index].count_ones())).sum()
    }

    /// How many pages of `run` are in the set.
    #[must_use]
    pub fn count_within(&self, run: PageRun) -> u64 {
        let mut count = 0;
        for_words(run, |index, mask| {
            let word = self.words.get(index).copied().unwrap_or(0);
            count += u64::from((word & mask).count_ones());
        });
        count
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.used.iter().all(|used| *used == 0)
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
        Runs { set: self, at: window.first, end: window.end().min(self.limit()) }
    }

    /// The words that are not zero, ascending.
    fn in_use(&self) -> impl Iterator<Item = usize> {
        let used = self.used.iter().enumerate().filter(|(_, used)| **used != 0);
        used.flat_map(|(at, used)| {
            let mut left = *used;
            std::iter::from_fn(move || {
                let bit = (left != 0).then(|| left.trailing_zeros())?;
                left &= left - 1;
                Some(at * 64 + bit as usize)
            })
        })
    }

    /// The first of [`words`](Self::words) in `range` that is not zero. Looks at none beyond it.
    #[must_use]
    pub fn next_in_use(&self, range: Range<usize>) -> Option<usize> {
        let (start, end) = (range.start / 64, range.end.div_ceil(64).min(self.used.len()));
        let first = self.used.get(start)? >> (range.start % 64);
        let next = if first != 0 {
            range.start + first.trailing_zeros() as usize
        } else {
            let beyond = self.used.get(start + 1..end)?.iter().position(|used| *used != 0)? + start + 1;
            beyond * 64 + self.used[beyond].trailing_zeros() as usize
        };
        (next < range.end).then_some(next)
    }

    /// Where the word ends with which, from `first` on (a multiple of 64), `pages` of the set have come, or so many `words` that
    /// have any, of either at least one; the [`limit`](Self::limit) where there are fewer.
    #[must_use]
    pub fn end_of(&self, first: u64, pages: u64, words: usize) -> u64 {
        let (mut at, mut count) = ((first / 64) as usize, 0);
        for _ in 0..words.max(1) {
            let Some(next) = self.next_in_use(at..self.words.len()) else { return self.limit() };
            count += u64::from(self.words[next].count_ones());
            at = next + 1;
            if count >= pages {
                break;
            }
        }
        at as u64 * 64
    }

    fn join(&mut self, index: usize, bits: u64) {
        self.words[index] |= bits;
        self.used[index / 64] |= u64::from(bits != 0) << (index % 64);
    }

    fn take_out(&mut self, index: usize, bits: u64) {
        let word = &mut self.words[index];
        *word &= !bits;
        if *word == 0 {
            self.used[index / 64] &= !(1 << (index % 64));
        }
    }
}

/// Iterator over the runs of a [`PageSet`].
#[derive(Debug)]
pub struct Runs<'a> {
    set: &'a PageSet,
    at: u64,
    end: u64,
}

impl Runs<'_> {
    /// The words that the window has a part of. No other is looked at: a walk by windows is to be as long as one walk.
    fn words(&self) -> &[u64] {
        &self.set.words[..self.end.div_ceil(64) as usize]
    }

    /// The first page at or after `at` that is in the set, if there is one in the window's words.
    fn first_in(&self, at: u64) -> Option<u64> {
        let (words, index) = (self.words(), (at / 64) as usize);
        let rest = words.get(index)? >> (at % 64);
        if rest != 0 {
            return Some(at + u64::from(rest.trailing_zeros()));
        }
        let index = self.set.next_in_use(index + 1..words.len())?;
        Some(index as u64 * 64 + u64::from(words[index].trailing_zeros()))
    }

    /// The first page after `at`, which is in the set, that is not, or that the window's words end with.
    fn first_out(&self, at: u64) -> u64 {
        let (words, index, bit) = (self.words(), (at / 64) as usize, at % 64);
        let ones = u64::from((words[index] >> bit).trailing_ones());
        if bit + ones < 64 {
            return at + ones;
        }
        let full = words[index + 1..].iter().take_while(|word| **word == u64::MAX).count();
        let after = index + 1 + full;
        after as u64 * 64 + words.get(after).map_or(0, |word| u64::from(word.trailing_ones()))
    }
}

impl Iterator for Runs<'_> {
    type Item = PageRun;

    fn next(&mut self) -> Option<PageRun> {
        let first = self.first_in(self.at).filter(|first| *first < self.end);
        let Some(first) = first else {
            self.at = self.end;
            return None;
        };
        self.at = self.first_out(first).min(self.end);
        Some(PageRun { first, count: self.at - first })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use proptest::prelude::*;

    fn run() -> impl Strategy<Value = PageRun> {
        (0_u64..9000, 1_u64..400).prop_map(|(first, count)| PageRun { first, count })
    }

    proptest! {
        #[test]
        fn whatever_is_done_to_it_a_set_is_what_its_pages_are(
            steps in proptest::collection::vec((0..6, run(), run()), 0..12),
        ) {
            let limit = 9472;
            let (mut set, mut pages) = (PageSet::new(limit), BTreeSet::new());
            for (step, one, two) in steps {
                let other = PageSet::of_runs(limit, &[one, two]);
                let theirs: BTreeSet<u64> = (one.first..one.end()).chain(two.first..two.end()).collect();
                match step {
                    0 => { set.insert_run(one); pages.extend(one.first..one.end()); }
                    1 => { set.remove_run(one); pages.retain(|page| !(one.first..one.end()).contains(page)); }
                    2 => { set.union(&other); pages.extend(&theirs); }
                    3 => { set.subtract(&other); pages = &pages - &theirs; }
                    4 => { set = set.without(&other); pages = &pages - &theirs; }
                    _ => { set.union_words(64, &other.words()[1..]); pages.extend(theirs.iter().filter(|page| **page >= 64)); }
                }
            }
            prop_assert_eq!(set.runs().flat_map(|run| run.first..run.end()).collect::<Vec<_>>(), pages.iter().copied().collect::<Vec<_>>());
            prop_assert_eq!(set.len(), pages.len() as u64);
            prop_assert_eq!(set.is_empty(), pages.is_empty());
            let mut anew = PageSet::new(limit);
            pages.iter().for_each(|page| anew.insert(*page));
            prop_assert_eq!(set, anew);
        }

        #[test]
        fn runs_within_a_window_are_those_of_its_pages(
            runs in proptest::collection::vec(run(), 0..6), window in run(), limit in prop_oneof![Just(8192_u64), Just(9472)],
        ) {
            let within = |run: &PageRun| PageRun { first: run.first.min(limit), count: run.end().min(limit) - run.first.min(limit) };
            let set = PageSet::of_runs(limit, &runs.iter().map(within).filter(|run| run.count > 0).collect::<Vec<_>>());
            let pages: Vec<u64> = (window.first..window.end()).filter(|page| set.contains(*page)).collect();
            prop_assert_eq!(set.count_within(window), pages.len() as u64);
            let found: Vec<PageRun> = set.runs_within(window).collect();
            prop_assert_eq!(found.iter().flat_map(|run| run.first..run.end()).collect::<Vec<_>>(), pages);
            prop_assert!(found.windows(2).all(|two| two[0].end() < two[1].first), "maximal: {:?}", found);
        }

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
    fn so_many_pages_end_with_the_word_that_has_the_last_of_them() {
        let set = PageSet::of_runs(
            640,
            &[(3, 2), (190, 4), (500, 1)].map(|(first, count)| PageRun { first, count }),
        );
        let ends = [0, 1, 2, 3, 4, 5, 6, 7, 8].map(|pages| set.end_of(0, pages, 10));
        assert_eq!(ends, [64, 64, 64, 192, 192, 256, 256, 512, 640]);
        assert_eq!([0, 1, 2, 3, 4, 5].map(|words| set.end_of(0, 9, words)), [64, 64, 192, 256, 512, 640]);
        assert_eq!(set.end_of(192, 1, 10), 256);
        assert_eq!(set.end_of(512, 1, 10), 640, "there is none");
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
