//! Pushed pages that are at hand and not in place yet: blocks that the host can place whole, without a copy.
//!
//! ```text
//!   push of a part ──► [`Placing::reserve`] ──► received into its block's stage ──► [`Placing::settle`]
//!                                          all parts at hand: the block is placed whole, as one huge page
//!          a page of it is touched, asked for, or comes otherwise: the block is broken up, and what is at hand copied
//! ```
//! Invariants: only a block of which nothing had been taken out is opened, and as long as it is open all that is not at hand is
//! still missing, so it is completed or broken up in the end. Whoever takes a block out of the list places what is at hand of it.
//! The lock is held for looking and noting, never while anything is received or placed.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::fault::Placing;
use crate::failure::Failure;
use crate::guest::{self, BLOCK_PAGES, BLOCK_PARTS, Stage};
use crate::pages::{PAGE_SIZE, PageRun};

const PART_PAGES: u64 = BLOCK_PAGES / BLOCK_PARTS;

/// Blocks that are gathered at a time. A request moves the place where the source pushes, and leaves one behind.
const OPEN: usize = 4;

/// The open blocks, the oldest first. Streams fill them side by side, and faults look into them: hence the lock.
#[derive(Default)]
pub(super) struct Gathering(Mutex<Vec<Block>>);

struct Block {
    first: u64,
    stage: Arc<dyn Stage>,
    /// Parts somebody has reserved, a bit each.
    reserved: u8,
    /// Those of them that are at hand.
    here: u8,
}

/// Room for one part of a block.
pub(super) struct Part {
    run: PageRun,
    stage: Arc<dyn Stage>,
}

impl Part {
    /// Has its content written.
    pub(super) fn fill<T>(&self, mut receive: impl FnMut(&mut [u8]) -> T) -> T {
        let mut received = None;
        self.stage.with_part(part_of(self.run.first), &mut |bytes| received = Some(receive(bytes)));
        received.expect("a stage shows its bytes")
    }
}

impl Block {
    fn reserve(&mut self, run: PageRun) -> Option<Part> {
        let bit = 1 << part_of(run.first);
        let free = self.reserved & bit == 0;
        self.reserved |= bit;
        free.then(|| Part { run, stage: Arc::clone(&self.stage) })
    }

    fn pages(&self) -> PageRun {
        PageRun { first: self.first, count: BLOCK_PAGES }
    }

    fn holds(&self, gfn: u64) -> bool {
        block_of(gfn) == self.first && self.here & 1 << part_of(gfn) != 0
    }

    /// What is at hand, run by run; a page that somebody waits for first.
    fn at_hand(&self, awaited: Option<u64>) -> Vec<PageRun> {
        let mut runs: Vec<PageRun> = awaited.map(|first| PageRun { first, count: 1 }).into_iter().collect();
        for first in (self.first..self.first + BLOCK_PAGES).step_by(PART_PAGES as usize) {
            let end = first + PART_PAGES;
            match awaited {
                _ if !self.holds(first) => {}
                Some(gfn) if (first..end).contains(&gfn) => {
                    runs.extend(
                        [(first, gfn), (gfn + 1, end)]
                            .map(|(from, to)| PageRun { first: from, count: to - from }),
                    );
                }
                _ => runs.push(PageRun { first, count: PART_PAGES }),
            }
        }
        runs.retain(|run| run.count > 0);
        runs
    }
}

impl Placing {
    /// Where pushed pages are to be received, if their block may be placed whole.
    pub(super) fn reserve(&self, runs: &[PageRun]) -> Result<Option<Part>, Failure> {
        let [run] = *runs else { return Ok(None) };
        if run.count != PART_PAGES || !run.first.is_multiple_of(PART_PAGES) || !self.is_settled() {
            return Ok(None);
        }
        let first = block_of(run.first);
        if let Some(block) = self.open().iter_mut().find(|block| block.first == first) {
            return Ok(block.reserve(run));
        }
        // To make room takes the host a while: without the lock.
        let Some(stage) = self.is_whole(first).then(|| self.faults.stage(first)).flatten() else {
            return Ok(None);
        };
        let (part, oldest) = {
            let mut open = self.open();
            if !self.is_whole(first) {
                return Ok(None);
            }
            if let Some(block) = open.iter_mut().find(|block| block.first == first) {
                return Ok(block.reserve(run));
            }
            let oldest = (open.len() == OPEN).then(|| open.remove(0));
            let mut block = Block { first, stage, reserved: 0, here: 0 };
            let part = block.reserve(run);
            open.push(block);
            (part, oldest)
        };
        oldest.map_or(Ok(()), |block| self.break_up(&block, None))?;
        Ok(part)
    }

    /// A part has been received.
    pub(super) fn settle(&self, part: &Part) -> Result<(), Failure> {
        let (won, block) = {
            let mut open = self.open();
            // Under the lock, so that who finds a page taken out finds it at hand, too.
            let won = self.take(part.run);
            let awaited = self.requested.count_within(part.run) > 0;
            let at = open.iter().position(|block| Arc::ptr_eq(&block.stage, &part.stage));
            match at {
                Some(at) if won == [part.run] && !awaited => {
                    let block = &mut open[at];
                    block.here |= 1 << part_of(part.run.first);
                    if block.here != u8::MAX {
                        return Ok(());
                    }
                    (None, Some(open.remove(at)))
                }
                at => (Some(won), at.map(|at| open.remove(at))),
            }
        };
        match (won, block) {
            (None, Some(block)) => self.place_won(&[block.pages()], |_| block.stage.place()),
            (won, block) => {
                self.place_won(&won.unwrap_or_default(), |run| self.copy(&*part.stage, run))?;
                block.map_or(Ok(()), |block| self.break_up(&block, None))
            }
        }
    }

    /// Somebody waits for a page that has been taken out: places it if it is at hand. Else it is being placed.
    pub(super) fn place_at_hand(&self, gfn: u64) -> Result<(), Failure> {
        let block = {
            let mut open = self.open();
            open.iter().position(|block| block.holds(gfn)).map(|at| open.remove(at))
        };
        block.map_or(Ok(()), |block| self.break_up(&block, Some(gfn)))
    }

    /// These pages have come otherwise.
    pub(super) fn break_up_around(&self, runs: &[PageRun]) -> Result<(), Failure> {
        let meets = |block: &mut Block| {
            runs.iter().any(|run| run.first < block.pages().end() && block.first < run.end())
        };
        let broken: Vec<Block> = self.open().extract_if(.., meets).collect();
        broken.iter().try_for_each(|block| self.break_up(block, None))
    }

    /// The conversation is over. What cannot be placed is missing still.
    pub(super) fn keep_nothing_at_hand(&self) {
        let open = std::mem::take(&mut *self.open());
        open.iter().for_each(|block| drop(self.break_up(block, None)));
    }

    /// Whether nobody has taken the page out, nor is about to without having seen what is requested.
    pub(super) fn is_away(&self, gfn: u64) -> bool {
        let _open = self.open();
        self.unplaced.contains(gfn)
    }

    fn break_up(&self, block: &Block, awaited: Option<u64>) -> Result<(), Failure> {
        self.place_won(&block.at_hand(awaited), |run| self.copy(&*block.stage, run))
    }

    /// Places pages of one part from where they were received.
    fn copy(&self, stage: &dyn Stage, run: PageRun) -> guest::Result<()> {
        let at = (run.first % PART_PAGES) as usize * PAGE_SIZE;
        let mut placed = Ok(());
        stage.with_part(part_of(run.first), &mut |bytes| {
            placed = self.faults.place(run, &bytes[at..at + run.bytes() as usize]);
        });
        placed
    }

    fn is_whole(&self, first: u64) -> bool {
        self.unplaced.count_within(PageRun { first, count: BLOCK_PAGES }) == BLOCK_PAGES
    }

    fn open(&self) -> MutexGuard<'_, Vec<Block>> {
        self.gathering.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn block_of(gfn: u64) -> u64 {
    gfn - gfn % BLOCK_PAGES
}

fn part_of(gfn: u64) -> u64 {
    gfn % BLOCK_PAGES / PART_PAGES
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::guest::{Faults, Result};
    use crate::pages::PageSet;

    /// Pages of the guest: a block more than may be open, and some.
    const PAGES: u64 = 5 * BLOCK_PAGES + 100;

    /// What was placed, in order: the run, whether it was moved, and the first byte of its content.
    #[derive(Default)]
    struct Host(Arc<Mutex<Vec<(PageRun, bool, u8)>>>);

    struct Room {
        first: u64,
        parts: Vec<Mutex<Vec<u8>>>,
        placed: Arc<Mutex<Vec<(PageRun, bool, u8)>>>,
    }

    impl Stage for Room {
        fn with_part(&self, part: u64, with: &mut dyn FnMut(&mut [u8])) {
            with(&mut self.parts[part as usize].lock().unwrap());
        }

        fn place(&self) -> Result<()> {
            let run = PageRun { first: self.first, count: BLOCK_PAGES };
            let content = self.parts[0].lock().unwrap()[0];
            self.placed.lock().unwrap().push((run, true, content));
            Ok(())
        }
    }

    impl Faults for Host {
        fn wait(&self, _: Duration, _: &mut Vec<u64>) -> Result<()> {
            Ok(())
        }

        fn discard(&self, _: &PageSet) -> Result<()> {
            Ok(())
        }

        fn place(&self, run: PageRun, data: &[u8]) -> Result<()> {
            assert_eq!(data.len() as u64, run.bytes());
            self.0.lock().unwrap().push((run, false, data[0]));
            Ok(())
        }

        fn stage(&self, first: u64) -> Option<Arc<dyn Stage>> {
            let part = || Mutex::new(vec![0; PART_PAGES as usize * PAGE_SIZE]);
            let parts = (0..BLOCK_PARTS).map(|_| part()).collect();
            Some(Arc::new(Room { first, parts, placed: Arc::clone(&self.0) }))
        }

        fn fill_hole(&self, _: u64) -> Result<()> {
            Ok(())
        }

        fn place_zeros(&self, _: PageRun) -> Result<()> {
            Ok(())
        }

        fn close(&self) {}
    }

    struct Arrival {
        placing: Placing,
        placed: Arc<Mutex<Vec<(PageRun, bool, u8)>>>,
    }

    impl Arrival {
        fn new() -> Self {
            let host = Host::default();
            let placed = Arc::clone(&host.0);
            let missing = PageSet::of_runs(PAGES, &[PageRun { first: 0, count: PAGES }]);
            Self { placing: Placing::new(Arc::new(host), &missing), placed }
        }

        fn ready() -> Self {
            let arrival = Self::new();
            assert!(arrival.placing.set_ready());
            arrival
        }

        fn reserve(&self, part: u64) -> Option<Part> {
            self.placing.reserve(&[PageRun { first: part * PART_PAGES, count: PART_PAGES }]).unwrap()
        }

        /// A part whose content is its number.
        fn push(&self, part: u64) {
            let reserved = self.reserve(part).expect("room");
            reserved.fill(|bytes| bytes.fill(part as u8));
            self.placing.settle(&reserved).unwrap();
        }

        /// What was placed since the last call.
        fn placed(&self) -> Vec<(u64, u64, bool, u8)> {
            let placed = std::mem::take(&mut *self.placed.lock().unwrap());
            placed.into_iter().map(|(run, moved, content)| (run.first, run.count, moved, content)).collect()
        }
    }

    #[test]
    fn a_block_is_moved_when_its_last_part_is_at_hand() {
        let arrival = Arrival::ready();
        for part in [9, 8, 15, 10, 11, 12, 14] {
            arrival.push(part);
        }
        assert_eq!((arrival.placed(), arrival.placing.remaining()), (vec![], PAGES));
        assert!(arrival.reserve(9).is_none(), "it is here");
        arrival.push(13);
        assert_eq!(arrival.placed(), [(512, 512, true, 8)]);
        assert_eq!(arrival.placing.remaining(), PAGES - 512);
        assert!(arrival.reserve(9).is_none(), "it was placed");
    }

    #[test]
    fn a_touched_page_at_hand_is_placed_at_once_and_before_the_others() {
        let arrival = Arrival::ready();
        arrival.push(2);
        arrival.push(1);
        let late = arrival.reserve(3).unwrap();
        assert!(arrival.placing.note(&[130, 131]).unwrap().is_empty(), "nothing is asked for");
        let expected = [(130, 1, false, 2), (64, 64, false, 1), (128, 2, false, 2), (131, 61, false, 2)];
        assert_eq!(arrival.placed(), expected);
        late.fill(|bytes| bytes.fill(3));
        arrival.placing.settle(&late).unwrap();
        assert_eq!(arrival.placed(), [(192, 64, false, 3)]);
        assert_eq!(arrival.placing.remaining(), PAGES - 192);
        assert!(arrival.reserve(4).is_none(), "the block is whole no more");
    }

    #[test]
    fn a_page_that_is_waited_for_waits_for_no_other_part() {
        let arrival = Arrival::ready();
        arrival.push(0);
        assert_eq!(arrival.placing.note(&[70]).unwrap(), [70]);
        arrival.push(1);
        assert_eq!(arrival.placed(), [(64, 64, false, 1), (0, 64, false, 0)]);
    }

    #[test]
    fn pages_that_come_otherwise_break_their_block_up() {
        let arrival = Arrival::ready();
        arrival.push(0);
        arrival.push(8);
        let (late, run) = (arrival.reserve(1).unwrap(), PageRun { first: 100, count: 8 });
        let won = arrival.placing.take(run);
        arrival.placing.break_up_around(&won).unwrap();
        assert_eq!(arrival.placed(), [(0, 64, false, 0)]);
        late.fill(|bytes| bytes.fill(1));
        arrival.placing.settle(&late).unwrap();
        assert_eq!(arrival.placed(), [(64, 36, false, 1), (108, 20, false, 1)]);
    }

    #[test]
    fn the_block_that_was_left_longest_makes_room() {
        let arrival = Arrival::ready();
        [0, 8, 16, 24, 7].into_iter().for_each(|part| arrival.push(part));
        assert_eq!(arrival.placed(), []);
        arrival.push(32);
        assert_eq!(arrival.placed(), [(0, 64, false, 0), (448, 64, false, 7)]);
    }

    #[test]
    fn after_a_conversation_what_is_not_missing_is_in_place() {
        let arrival = Arrival::ready();
        [0, 8].into_iter().for_each(|part| arrival.push(part));
        arrival.placing.keep_nothing_at_hand();
        assert_eq!(arrival.placed(), [(0, 64, false, 0), (512, 64, false, 8)]);
        assert_eq!(arrival.placing.missing().len(), arrival.placing.remaining());
    }

    #[test]
    fn what_may_still_be_named_or_is_no_whole_block_is_not_gathered() {
        let arrival = Arrival::new();
        assert!(arrival.reserve(0).is_none(), "more may be missing");
        assert!(arrival.placing.set_ready());
        assert!(arrival.reserve(40).is_none(), "RAM ends in this block");
        for run in [PageRun { first: 0, count: 63 }, PageRun { first: 1, count: 64 }] {
            assert!(arrival.placing.reserve(&[run]).unwrap().is_none());
        }
    }
}
