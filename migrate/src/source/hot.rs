//! What the guest writes all the time, found before round 0, which sends it last: `docs/decisions/hot-pages-last.md`.
//!
//! The first write to each page that is watched costs the guest a fault, and what it writes all the time it has written again
//! before the round ends, whenever it was sent. So that is watched last. To find it, one window of each area is
//! watched from the start.

use std::time::{Duration, Instant};

use super::Journey;
use super::crew::WINDOW;
use crate::failure::Failure;
use crate::pages::{PAGE_SIZE, PageRun, PageSet};

/// Windows of an area, 64 MiB, of which one is looked at. A whole one, not a page of each: to watch a page the host may have to
/// split what it maps as a huge page, after which each page of it costs a fault.
const WINDOWS: u64 = 32;
const AREA: u64 = WINDOWS * WINDOW;

/// When to look first. A guest that has written no more than so many of the pages looked at by then has written too little to
/// judge by.
const FIRST_LOOK: Duration = Duration::from_millis(1);
const FEW: u64 = 4;

/// When to judge the others.
const LAST_LOOK: Duration = Duration::from_millis(4);

/// Pages of a window that were written, without which an area is not hot: a counter or a stack makes none.
const SOME: u64 = 8;

/// What a round sends at best, bytes per second: a slower one lasts longer, and more is written again in it.
const SENT_PER_S: f64 = 3e9;

/// What is looked at, to judge areas by: the populated pages of one window of each.
struct Samples(PageSet);

/// Samples that are watched, and since when.
pub(super) struct Watch {
    samples: Samples,
    since: Instant,
}

impl Samples {
    /// Of windows of which more than half is populated; in the middle of their areas if they can be, so that one of them is in
    /// whatever is hot and as large as an area.
    fn of(pages: &PageSet) -> Self {
        let mut samples = PageSet::new(pages.limit());
        for area in areas(pages) {
            let mut windows = (0..WINDOWS).map(|nth| PageRun {
                first: area.first + (WINDOWS / 2 + nth) % WINDOWS * WINDOW,
                count: WINDOW,
            });
            let chosen = windows.find(|window| pages.count_within(*window) > WINDOW / 2);
            chosen
                .iter()
                .flat_map(|window| pages.runs_within(*window))
                .for_each(|run| samples.insert_run(run));
        }
        Self(samples)
    }

    /// Those of them that are in the log.
    fn written(&self, log: &PageSet) -> PageSet {
        self.0.without(&self.0.without(log))
    }

    /// Those of `pages` that are in hot areas: where as many pages are written as there are in the time of a round, at the pace at
    /// which those that are `written` were in `share` of it. And those in the areas beside them, into which what is hot may reach.
    fn hot(&self, written: &PageSet, share: f64, pages: &PageSet) -> PageSet {
        let is_hot = |area: PageRun| {
            let (written, all) = (written.count_within(area), self.0.count_within(area));
            written >= SOME && written as f64 >= all as f64 * share
        };
        let are_hot: Vec<_> = areas(pages).map(is_hot).collect();
        let mut hot = PageSet::new(pages.limit());
        for (nth, area) in areas(pages).enumerate() {
            if are_hot[nth.saturating_sub(1)..are_hot.len().min(nth + 2)].contains(&true) {
                pages.runs_within(area).for_each(|run| hot.insert_run(run));
            }
        }
        hot
    }
}

fn areas(pages: &PageSet) -> impl Iterator<Item = PageRun> + use<> {
    (0..pages.limit()).step_by(AREA as usize).map(|first| PageRun { first, count: AREA })
}

impl Journey<'_> {
    /// Watches a little of `pages`, to which is added what the VMM has written itself until now. `None`: a round takes no longer
    /// than looking.
    pub(super) fn watch_samples(&self, pages: &mut PageSet) -> Result<Option<Watch>, Failure> {
        let samples = Samples::of(pages);
        if samples.0.is_empty() || round_s(pages) <= LAST_LOOK.as_secs_f64() {
            return Ok(None);
        }
        self.context.harvest(pages)?;
        let since = Instant::now();
        self.watch(&samples.0)?;
        Ok(Some(Watch { samples, since }))
    }

    /// Takes what the guest writes all the time out of `pages`, after adding what it has touched first meanwhile.
    pub(super) fn set_hot_aside(&self, watch: &Watch, pages: &mut PageSet) -> Result<PageSet, Failure> {
        let mut written = PageSet::new(pages.limit());
        for look in [FIRST_LOOK, LAST_LOOK] {
            // A cancelled migration is noticed where the round begins.
            self.context.alarm.rest(look.saturating_sub(watch.since.elapsed()));
            let mut log = PageSet::new(pages.limit());
            self.context.harvest(&mut log)?;
            // What the VMM has written itself is told once.
            pages.union(&log);
            written.union(&watch.samples.written(&log));
            if written.len() <= FEW {
                return Ok(PageSet::new(pages.limit()));
            }
        }
        let share = watch.since.elapsed().as_secs_f64() / round_s(pages);
        let hot = watch.samples.hot(&written, share, pages);
        pages.subtract(&hot);
        Ok(hot)
    }
}

/// How long a round of these pages takes at best.
fn round_s(pages: &PageSet) -> f64 {
    (pages.len() * PAGE_SIZE as u64) as f64 / SENT_PER_S
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(first: u64, count: u64) -> PageRun {
        PageRun { first, count }
    }

    #[test]
    fn a_window_of_each_area_is_looked_at_and_only_pages_that_exist() {
        // The second area has its last window alone, the third one page.
        let runs = [run(0, AREA), run(2 * AREA - WINDOW + 100, WINDOW - 100), run(2 * AREA + 7, 1)];
        let samples = Samples::of(&PageSet::of_runs(3 * AREA, &runs));
        let middle = run(WINDOWS / 2 * WINDOW, WINDOW);
        assert_eq!(samples.0.runs().collect::<Vec<_>>(), [middle, runs[1]]);
    }

    #[test]
    fn whatever_is_written_over_and_over_is_hot_with_what_is_beside_it() {
        let pages = PageSet::of_runs(8 * AREA, &[run(0, 8 * AREA)]);
        let samples = Samples::of(&pages);
        // As large as an area, wherever it begins; of what it has in windows that are looked at every tenth page was written.
        for first in (3 * AREA..5 * AREA).step_by(1000) {
            let log: Vec<_> = (first..first + AREA).step_by(10).map(|gfn| run(gfn, 1)).collect();
            let written = samples.written(&PageSet::of_runs(8 * AREA, &log));
            let hot = samples.hot(&written, 0.05, &pages);
            assert!((first..first + AREA).all(|gfn| hot.contains(gfn)), "{first}");
            assert!(hot.len() <= 4 * AREA, "{first}: {}", hot.len());
            // Had that taken a fifth of a round, half of it would be written in one.
            assert!(samples.hot(&written, 0.2, &pages).is_empty());
        }
    }

    #[test]
    fn a_page_or_two_of_a_large_guest_do_not_make_an_area_hot() {
        let pages = PageSet::of_runs(8 * AREA, &[run(0, 8 * AREA)]);
        let samples = Samples::of(&pages);
        let first = samples.0.runs().next().expect("a window").first;
        let hot = |count| samples.hot(&PageSet::of_runs(8 * AREA, &[run(first, count)]), 1e-4, &pages);
        assert!(hot(2).is_empty());
        assert_eq!(hot(SOME).len(), 2 * AREA);
    }
}
