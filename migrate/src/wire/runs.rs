//! Run tables and bitmaps: which pages, checked against the map of RAM.
//!
//! A peer's table becomes usable only as [`Admitted`], which only [`RamMap::admit`] makes.

use super::limits::{BITMAP_WORDS, GFN_LIMIT, RAM_REGIONS, RUN_BYTES};
use super::{Error, Kind};
use crate::guest::Description;
use crate::pages::{PageRun, PageSet};

/// Where RAM is: what every page a peer names is checked against.
#[derive(Debug, Clone)]
pub struct RamMap {
    ram: Vec<PageRun>,
}

/// Runs that lie wholly inside RAM.
#[derive(Debug, Clone, Copy)]
pub struct Admitted<'a> {
    runs: &'a [PageRun],
    pages: u64,
}

impl<'a> Admitted<'a> {
    /// The runs.
    #[must_use]
    pub fn runs(&self) -> &'a [PageRun] {
        self.runs
    }

    /// Pages in all of them.
    #[must_use]
    pub fn pages(&self) -> u64 {
        self.pages
    }

    /// The same in pieces of `most` pages at most; where one run has more, it is a piece.
    pub fn pieces(&self, most: u64) -> impl Iterator<Item = Self> {
        let mut rest = self.runs;
        std::iter::from_fn(move || {
            let mut pages = 0;
            let fits = |run: &&PageRun| {
                let fits = pages == 0 || pages + run.count <= most;
                pages += if fits { run.count } else { 0 };
                fits
            };
            let (runs, others) = rest.split_at(rest.iter().take_while(fits).count());
            rest = others;
            (!runs.is_empty()).then_some(Self { runs, pages })
        })
    }

    /// The frame number of the page at this place, counted over all runs.
    ///
    /// # Panics
    /// When there are not so many: the caller's bug.
    #[must_use]
    pub fn gfn(&self, at: usize) -> u64 {
        let mut gfns = self.runs.iter().flat_map(|run| run.first..run.end());
        gfns.nth(at).expect("a page of the table")
    }
}

impl RamMap {
    /// The map of a description, if it can be one: ascending, disjoint, bounded, not empty.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn of(description: &Description) -> Result<Self, String> {
        let ram = &description.ram;
        if ram.is_empty() || ram.len() > RAM_REGIONS {
            return Err(format!("{} RAM regions; 1 to {RAM_REGIONS} are possible", ram.len()));
        }
        let mut below = 0;
        for run in ram {
            let end = run.first.checked_add(run.count).filter(|end| *end <= GFN_LIMIT);
            match end {
                Some(end) if run.count > 0 && run.first >= below => below = end,
                _ => return Err(format!("RAM region of {} pages at frame {:#x}", run.count, run.first)),
            }
        }
        Ok(Self { ram: ram.clone() })
    }

    /// One past the largest frame number.
    #[must_use]
    pub fn limit(&self) -> u64 {
        self.ram.last().map_or(0, PageRun::end)
    }

    /// The regions.
    #[must_use]
    pub fn regions(&self) -> &[PageRun] {
        &self.ram
    }

    /// Whether the run lies wholly inside one region.
    #[must_use]
    pub fn holds(&self, run: PageRun) -> bool {
        let Some(end) = run.first.checked_add(run.count) else { return false };
        self.ram.iter().any(|ram| ram.first <= run.first && end <= ram.end())
    }

    /// Reads a run table into `runs` (cleared first) and admits it if every run lies inside RAM.
    ///
    /// # Errors
    /// When one does not, or is empty.
    pub fn admit<'a>(
        &self,
        kind: Kind,
        table: &[u8],
        runs: &'a mut Vec<PageRun>,
    ) -> Result<Admitted<'a>, Error> {
        runs.clear();
        let mut pages = 0;
        for entry in table.chunks_exact(RUN_BYTES) {
            let (first, count) = entry.split_at(8);
            let run = PageRun { first: le_u64(first), count: u64::from(le_u32(count)) };
            if run.count == 0 || !self.holds(run) {
                let what = format!("{} pages at frame {:#x} are not RAM", run.count, run.first);
                return Err(Error::Value { kind, what });
            }
            pages += run.count;
            runs.push(run);
        }
        Ok(Admitted { runs, pages })
    }

    /// Joins a peer's bitmap to `set`, if all of its pages are RAM. `set` has room for [`limit`](Self::limit).
    ///
    /// # Errors
    /// When a bit lies outside RAM, or `first` is not on a word.
    pub fn admit_bitmap(
        &self,
        kind: Kind,
        first: u64,
        words: &[u64],
        set: &mut PageSet,
    ) -> Result<(), Error> {
        let wrong = |what: String| Err(Error::Value { kind, what });
        let end = first.checked_add(words.len() as u64 * 64).filter(|end| *end <= set.limit());
        if !first.is_multiple_of(64) || end.is_none() {
            return wrong(format!(
                "{} words at frame {first:#x}, with {:#x} frames",
                words.len(),
                set.limit()
            ));
        }
        let mut strays = PageSet::new(words.len() as u64 * 64);
        strays.union_words(0, words);
        for run in &self.ram {
            let (from, to) = (run.first.max(first), run.end().min(first + strays.limit()));
            if from < to {
                strays.remove_run(PageRun { first: from - first, count: to - from });
            }
        }
        if let Some(run) = strays.runs().next() {
            return wrong(format!("frame {:#x} is not RAM", first + run.first));
        }
        set.union_words(first, words);
        Ok(())
    }
}

/// Appends a run table.
pub fn put_runs(runs: &[PageRun], into: &mut Vec<u8>) {
    for run in runs {
        into.extend_from_slice(&run.first.to_le_bytes());
        into.extend_from_slice(&(run.count as u32).to_le_bytes());
    }
}

/// Most words in a bitmap frame as they are sent, for 1 GiB of guest.
const WORDS_SENT: usize = 4096;
const _: () = assert!(WORDS_SENT <= BITMAP_WORDS);

/// Words without a page that are sent rather than another frame: 2 KiB, which take less time than a frame's own handling.
const GAP: usize = 256;

/// A set as bitmap frames: first frame number and words. Each begins and ends with a page.
pub fn bitmap_frames(set: &PageSet) -> impl Iterator<Item = (u64, &[u64])> {
    let all = set.words().len();
    let mut next = set.next_in_use(0..all);
    std::iter::from_fn(move || {
        let first = next?;
        let mut end = first + 1;
        loop {
            next = set.next_in_use(end..all);
            match next {
                Some(more) if more - end <= GAP && more < first + WORDS_SENT => end = more + 1,
                _ => return Some((first as u64 * 64, &set.words()[first..end])),
            }
        }
    })
}

/// The u64s of a payload whose length is a multiple of 8.
#[must_use]
pub fn le_u64s(bytes: &[u8]) -> Vec<u64> {
    bytes.chunks_exact(8).map(le_u64).collect()
}

pub(super) fn le_u64(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte))
}

fn le_u32(bytes: &[u8]) -> u32 {
    bytes.iter().rev().fold(0, |value, byte| value << 8 | u32::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn map() -> RamMap {
        RamMap { ram: vec![PageRun { first: 0, count: 160 }, PageRun { first: 256, count: 100 }] }
    }

    proptest! {
        #[test]
        fn whatever_is_admitted_lies_inside_ram(table in proptest::collection::vec(any::<u8>(), 0..400)) {
            let (map, mut runs) = (map(), Vec::new());
            if let Ok(admitted) = map.admit(Kind::Pages, &table, &mut runs) {
                prop_assert!(admitted.runs().iter().all(|run| map.holds(*run)));
            }
        }

        #[test]
        fn a_table_is_read_as_it_was_written(firsts in proptest::collection::vec((256_u64..356, 1_u64..50), 0..60)) {
            let (map, mut back) = (map(), Vec::new());
            let runs: Vec<_> = firsts.iter().map(|(f, c)| PageRun { first: *f, count: (*c).min(356 - f) }).collect();
            let mut table = Vec::new();
            put_runs(&runs, &mut table);
            prop_assert_eq!(map.admit(Kind::Pages, &table, &mut back).expect("inside RAM").runs(), &runs[..]);
        }

        #[test]
        fn pieces_are_all_of_a_table_in_its_order_and_no_larger_than_need_be(counts in proptest::collection::vec(1_u64..100, 0..20)) {
            let runs: Vec<_> = counts.iter().map(|count| PageRun { first: 256, count: *count }).collect();
            let whole = Admitted { runs: &runs, pages: counts.iter().sum() };
            let pieces: Vec<_> = whole.pieces(64).collect();
            prop_assert_eq!(pieces.iter().flat_map(|piece| piece.runs()).copied().collect::<Vec<_>>(), runs.clone());
            for piece in &pieces {
                prop_assert_eq!(piece.pages(), piece.runs().iter().map(|run| run.count).sum::<u64>());
                prop_assert!(piece.pages() <= 64 || piece.runs().len() == 1);
            }
            prop_assert!(pieces.windows(2).all(|two| two[0].pages() + two[1].runs()[0].count > 64));
        }

        #[test]
        fn a_set_is_read_as_it_was_written(pages in proptest::collection::btree_set(0_u64..1 << 18, 0..20)) {
            // Wide enough for gaps that are left out.
            let map = RamMap { ram: vec![PageRun { first: 0, count: 1 << 18 }] };
            let mut set = PageSet::new(map.limit());
            pages.iter().for_each(|page| set.insert(*page));
            let mut back = PageSet::new(map.limit());
            for (first, words) in bitmap_frames(&set) {
                map.admit_bitmap(Kind::Missing, first, words, &mut back).expect("inside RAM");
            }
            prop_assert_eq!(back, set);
        }

        #[test]
        fn a_bitmap_is_admitted_only_inside_ram(first in 0_u64..10, words in proptest::collection::vec(any::<u64>(), 0..7)) {
            let map = map();
            let mut set = PageSet::new(map.limit());
            if map.admit_bitmap(Kind::Missing, first * 64, &words, &mut set).is_ok() {
                prop_assert!(set.runs().all(|run| map.holds(run)));
            }
        }
    }

    #[test]
    fn pages_far_apart_are_frames_of_their_own_and_no_frame_is_too_long() {
        let page = |word: usize| PageRun { first: word as u64 * 64 + 5, count: 1 };
        // More words than a frame is to carry lie between the first two; as many as it may, between the last two.
        let (second, third) = (4 + GAP + 1, 4 + 2 * (GAP + 1) + 1);
        let whole = PageRun { first: 640_000, count: 64 * (WORDS_SENT as u64 + 1) };
        let set =
            PageSet::of_runs(1 << 20, &[page(3), page(second), page(third), page(third + 1 + GAP), whole]);
        let frames: Vec<_> =
            bitmap_frames(&set).map(|(first, words)| (first as usize / 64, words.len())).collect();
        let long = (10_000, WORDS_SENT);
        assert_eq!(frames, [(3, 1), (second, 1), (third, GAP + 2), long, (10_000 + WORDS_SENT, 1)]);
        assert_eq!(bitmap_frames(&PageSet::new(1 << 20)).count(), 0);
    }

    #[test]
    fn a_description_that_cannot_be_is_refused() {
        let of = |ram: &[(u64, u64)]| {
            let ram = ram.iter().map(|(first, count)| PageRun { first: *first, count: *count }).collect();
            let machine = serde_json::Value::Null;
            RamMap::of(&Description {
                epoch: 0,
                name: String::new(),
                uuid: uuid::Uuid::nil(),
                vcpus: 1,
                ram,
                nics: 0,
                machine,
            })
        };
        assert!(of(&[(0, 10), (10, 5)]).is_ok());
        for wrong in
            [&[][..], &[(0, 0)], &[(10, 5), (0, 3)], &[(0, 10), (9, 5)], &[(u64::MAX, 2)], &[(0, 1 << 40)]]
        {
            assert!(of(wrong).is_err(), "{wrong:?}");
        }
    }
}
