//! Post-copy and hybrid: what will be missing is told ahead of the pause, while the guest still runs here.
//!
//! The destination then discards those pages and begins to catch faults. Both take longer the more RAM there is; the
//! pause is left with the pages written since.

use std::sync::Arc;

use super::Journey;
use super::connect::Lines;
use super::page_server::Unsent;
use super::precopy::{Left, await_round};
use crate::channel::line::Line;
use crate::failure::Failure;
use crate::options::Mode;
use crate::pages::{PageRun, PageSet};
use crate::wire::Message;
use crate::wire::runs::bitmap_frames;

/// Hybrid: of 64 neighbours, from how many stale ones on all are sent again, at first. The destination discards run by run,
/// and each takes microseconds: a guest that writes everywhere would keep it busy for a tenth of a second.
pub const DENSE: u32 = 8;

/// So many untold pages make a pause longer by tens of milliseconds.
const TOO_MANY: u64 = 16 * MANY;

/// From so many untold pages on they are told before the pause. Fewer cost it a few milliseconds at most.
pub const MANY: u64 = 1024;

/// From how many on the next time, when so many pages were `told` last and so many are `untold` now. Fewer, where a guest
/// writes about as fast as it is told and the pause would suffer: what it wrote during the last telling is told in the pause,
/// and discarded then. Where whole neighbourhoods are told it writes to what was told already.
#[must_use]
pub fn dense_after(dense: u32, told: u64, untold: u64) -> u32 {
    let gets_ahead = untold <= told / 2 || untold <= TOO_MANY;
    if gets_ahead { dense } else { (dense / 2).max(1) }
}

/// How often more pages are told, because many were written while the ones before were discarded.
pub const TIMES: u32 = 4;

/// Pages written last are sent first if they are no more than this.
const FEW: u64 = 32;

/// Of so many pages beginning at a multiple of it, all are sent soon after one that is sent first: 64 KiB, as much as
/// Linux maps around a fault in a file. A guest that had just begun to run stood still for 1.8 instead of 2.4 ms.
const AROUND: u64 = 16;

/// Most runs of neighbours: 1 MiB, a millisecond at 10 Gb/s.
const MOST_AROUND: usize = 16;

/// Pages sent ahead of all others, while the destination restores. Only such as were told ahead: a page that the
/// destination does not know to be missing when it comes would be taken for one that came before, and be lost.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct FirstPages {
    /// The guest will touch them at once.
    pub(super) wanted: Vec<PageRun>,
    /// Their neighbours, which it may touch soon: pushed after them.
    pub(super) around: Vec<PageRun>,
}

impl FirstPages {
    fn of(runs: &[PageRun], told: &PageSet) -> Self {
        let block = |run: &PageRun| {
            let first = run.first / AROUND * AROUND;
            PageRun { first, count: run.end().next_multiple_of(AROUND) - first }
        };
        let mut blocks: Vec<_> = runs.iter().map(block).collect();
        blocks.dedup();
        let told_of =
            |runs: &[PageRun]| runs.iter().flat_map(|run| told.runs_within(*run)).collect::<Vec<_>>();
        let mut around = told_of(&blocks);
        around.truncate(MOST_AROUND);
        Self { wanted: told_of(runs), around }
    }
}

/// Pages that follow after the guest, so far as they are known before the pause. Made before it: of a large guest this takes long.
pub(super) struct Missing {
    pub(super) unsent: Arc<Unsent>,
    /// How many.
    pub(super) pages: u64,
    /// Those of them that the destination does not know to be missing.
    pub(super) untold: PageSet,
    /// Those that it does.
    pub(super) told: PageSet,
}

impl Missing {
    pub(super) fn of(left: Left) -> Self {
        let Left { pages, told, .. } = left;
        Self { unsent: Arc::new(Unsent::new(&pages)), pages: pages.len(), untold: pages.without(&told), told }
    }

    /// The pages written last follow as well.
    pub(super) fn add(&mut self, late: &PageSet) {
        self.pages += self.unsent.add(late);
        self.untold.union_without(late, &self.told);
    }
}

impl Journey<'_> {
    /// Tells what will be missing, until little is untold.
    pub(super) fn miss_ahead(&mut self, lines: &Lines, mut left: Left) -> Result<Left, Failure> {
        let hybrid = self.mode() == Mode::Hybrid;
        let whole = hybrid.then(|| PageSet::of_runs(left.pages.limit(), &self.context.description.ram));
        let (mut dense, mut before) = (DENSE, u64::MAX);
        let mut turns = self.context.turns_of_bulk(lines.control.link());
        for time in 0..TIMES {
            let mut untold = join_dense(&mut left, dense, whole.as_ref());
            if time > 0 && untold.len() <= MANY {
                break;
            }
            let fewer = dense_after(dense, before, untold.len());
            if fewer < dense {
                dense = fewer;
                untold = join_dense(&mut left, dense, whole.as_ref());
            }
            before = untold.len();
            tell_missing(&lines.control, &untold)?;
            if time == 0 && untold.is_empty() {
                // Nothing, but said: it tells a destination that did not know that this is post-copy.
                lines.control.tell(&Message::Missing { first: 0, words: vec![0] })?;
            }
            lines.control.tell(&Message::RoundEnd { round: left.round, last: false })?;
            await_round(lines, left.round)?;
            turns.step_aside();
            left.round += 1;
            if self.mode() == Mode::Postcopy {
                // Not for their content, which is sent later: so that the last harvest shows what is written just now.
                self.watch(&untold)?;
            }
            left.told.union(&untold);
            self.context.harvest(&mut left.pages)?;
        }
        Ok(left)
    }

    /// What the guest will touch first: what its state names, and what it has just written if that is little.
    pub(super) fn first_pages(&self, state: &[u8], late: &PageSet, told: &PageSet) -> FirstPages {
        let named = self.context.guest.first_pages(state).into_iter();
        let mut runs: Vec<_> = named.map(|first| PageRun { first, count: 1 }).collect();
        if late.len() <= FEW {
            runs.extend(late.runs());
        }
        runs.retain(|run| self.context.description.holds(*run));
        FirstPages::of(&runs, told)
    }
}

/// Pages that the destination does not know to be missing, after those of `whole` that are neighbours of many have been joined
/// to them.
fn join_dense(left: &mut Left, dense: u32, whole: Option<&PageSet>) -> PageSet {
    if let Some(whole) = whole {
        left.pages.join_dense(dense, whole);
    }
    left.pages.without(&left.told)
}

/// Names pages that will be missing.
pub(super) fn tell_missing(control: &Line, pages: &PageSet) -> Result<(), Failure> {
    for (first, words) in bitmap_frames(pages) {
        control.tell(&Message::Missing { first, words: words.to_vec() })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn run(first: u64, count: u64) -> PageRun {
        PageRun { first, count }
    }

    #[test]
    fn whole_neighbourhoods_are_told_where_telling_does_not_get_ahead() {
        let after = |times: &[(u64, u64)]| {
            times.iter().fold(DENSE, |dense, (told, untold)| dense_after(dense, *told, *untold))
        };
        assert_eq!(after(&[(u64::MAX, 90_000), (90_000, 45_000), (45_000, 1025)]), DENSE);
        // A constant time each, far away: as many pages each time.
        assert_eq!(after(&[(u64::MAX, 90_000), (90_000, 4500), (4500, 4500), (4500, 4500)]), DENSE);
        assert_eq!(after(&[(u64::MAX, 90_000), (90_000, 80_000), (80_000, 70_000), (70_000, 60_000)]), 1);
        assert_eq!(dense_after(1, 1 << 20, 1 << 20), 1);
    }

    #[test]
    fn what_is_written_last_is_missing_too_and_told_once() {
        let set = |runs: &[PageRun]| PageSet::of_runs(8192, runs);
        let (pages, told) = (set(&[run(0, 4096)]), set(&[run(0, 4000)]));
        let left = Left { pages, told: told.clone(), estimate: Duration::ZERO, round: 0 };
        let mut missing = Missing::of(left);
        missing.add(&set(&[run(10, 5), run(4090, 10), run(8000, 2)]));
        assert_eq!(missing.pages, 4096 + 4 + 2);
        assert_eq!(missing.untold, set(&[run(4000, 100), run(8000, 2)]));
        assert_eq!(missing.told, told);
    }

    #[test]
    fn neighbours_follow_as_far_as_they_were_told() {
        let told = PageSet::of_runs(4096, &[run(3, 90), run(200, 1), run(1000, 3096)]);
        let first = FirstPages::of(&[run(5, 1), run(7, 1), run(14, 6), run(300, 1), run(4095, 1)], &told);
        assert_eq!(first.wanted, [run(5, 1), run(7, 1), run(14, 6), run(4095, 1)]);
        assert_eq!(
            first.around,
            [run(3, 13), run(3, 29), run(4080, 16)],
            "claimed once, named twice at worst"
        );
        let many: Vec<_> = (0..100).map(|n| run(1000 + n * 20, 1)).collect();
        let first = FirstPages::of(&many, &told);
        assert_eq!((first.wanted.len(), first.around.len()), (100, MOST_AROUND));
    }
}
