//! Post-copy and hybrid: what will be missing is told ahead of the pause, while the guest still runs here.
//!
//! The destination then discards those pages and begins to catch faults. Both take longer the more RAM there is; the
//! pause is left with the pages written since.

use super::Journey;
use super::connect::Lines;
use super::precopy::{Left, await_round};
use crate::channel::line::Line;
use crate::failure::Failure;
use crate::options::Mode;
use crate::pages::{PageRun, PageSet};
use crate::wire::Message;
use crate::wire::runs::bitmap_frames;

/// Hybrid: of 64 neighbours, from how many stale ones on all are sent again. The destination discards run by run,
/// and each takes microseconds: a guest that writes everywhere would keep it busy for a tenth of a second.
const DENSE: u32 = 8;

/// From so many untold pages on they are told before the pause. Fewer cost it a few milliseconds at most.
const MANY: u64 = 1024;

/// How often more pages are told, because many were written while the ones before were discarded.
const TIMES: u32 = 4;

/// Pages written last are sent first if they are no more than this.
const FEW: u64 = 32;

/// Of so many pages beginning at a multiple of it, all are sent soon after one that is sent first: 64 KiB, as much as
/// Linux maps around a fault in a file. A guest that had just begun to run stood still for 1.8 instead of 2.4 ms.
const AROUND: u64 = 16;

impl Journey<'_> {
    /// Tells what will be missing, until little is untold.
    pub(super) fn miss_ahead(&self, lines: &Lines, mut left: Left) -> Result<Left, Failure> {
        for time in 0..TIMES {
            self.join_dense(&mut left.pages);
            let untold = untold(&left.pages, &left.told);
            if time > 0 && untold.len() <= MANY {
                break;
            }
            tell_missing(&lines.control, &untold)?;
            lines.control.tell(&Message::RoundEnd { round: left.round, last: false })?;
            await_round(lines, left.round)?;
            left.round += 1;
            if self.context.options.mode == Mode::Postcopy {
                // Not for their content, which is sent later: so that the last harvest shows what is written just now.
                self.watch(&untold)?;
            }
            left.told.union(&untold);
            left.pages.union(&self.context.guest.harvest().map_err(Failure::guest("read the dirty log"))?);
        }
        Ok(left)
    }

    /// What the guest will touch first: what its state names, and what it has just written if that is little; then
    /// their neighbours.
    ///
    /// Only what was told ahead: a page that the destination does not know to be missing when it comes would be taken
    /// for one that came before, and be lost.
    pub(super) fn first_pages(&self, state: &[u8], late: &PageSet, told: &PageSet) -> [Vec<PageRun>; 2] {
        let named = self.context.guest.first_pages(state).into_iter();
        let mut runs: Vec<_> = named.map(|first| PageRun { first, count: 1 }).collect();
        if late.len() <= FEW {
            runs.extend(late.runs());
        }
        runs.retain(|run| self.context.description.holds(*run));
        let around = runs.iter().map(|run| PageRun { first: run.first - run.first % AROUND, count: AROUND });
        [
            runs.iter().copied().flat_map(|run| told.runs_within(run)).collect(),
            around.flat_map(|run| told.runs_within(run)).collect(),
        ]
    }

    /// Hybrid: where many of some neighbours are stale, all of them are sent again.
    pub(super) fn join_dense(&self, pages: &mut PageSet) {
        if self.context.options.mode == Mode::Hybrid {
            let whole = PageSet::of_runs(pages.limit(), &self.context.description.ram);
            pages.join_dense(DENSE, &whole);
        }
    }
}

/// Pages that the destination does not know to be missing.
pub(super) fn untold(pages: &PageSet, told: &PageSet) -> PageSet {
    let mut untold = pages.clone();
    untold.subtract(told);
    untold
}

/// Names pages that will be missing.
pub(super) fn tell_missing(control: &Line, pages: &PageSet) -> Result<(), Failure> {
    for (first, words) in bitmap_frames(pages) {
        control.tell(&Message::Missing { first, words: words.to_vec() })?;
    }
    Ok(())
}
