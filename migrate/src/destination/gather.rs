//! Pushed pages that are at hand and not in place yet: blocks that the host can place whole, without a copy.
//!
//! ```text
//!   push of a part ──► [`Placing::reserve`] ──► received into its block's stage ──► [`Placing::settle`]
//!                                          all parts at hand: the block is placed whole, as one huge page
//!          a page of it is touched, asked for, or comes otherwise: the block is broken up, and what is at hand copied
//! ```
//! Invariants: only a block of which nothing had been taken out is opened. What is not at hand of an open block is still missing, or
//! has been taken out by somebody who breaks the block up next. So each block is completed or broken up in the end. A part is placed
//! by whoever takes it off its block, and until then a touch finds it there: broken blocks are copied a part at a time.
//! The lock is held for looking and noting, never while anything is received or placed.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::fault::Placing;
use crate::failure::Failure;
use crate::guest::{self, BLOCK_PAGES, PART_PAGES, Stage};
use crate::pages::{PAGE_SIZE, PageRun};

/// Blocks that are gathered at a time. A guest that goes from page to page moves the place where the source pushes, and leaves one
/// behind.
const OPEN: usize = 4;

/// Blocks of which something is at hand or on its way, the oldest first. Streams fill them side by side, and faults look into
/// them: hence the lock.
#[derive(Default)]
pub(super) struct Gathering(Mutex<Vec<Block>>);

struct Block {
    first: u64,
    stage: Arc<dyn Stage>,
    /// Parts somebody has reserved, a bit each.
    reserved: u8,
    /// Those of them that are at hand.
    here: u8,
    /// It will not be placed whole: what is at hand is to be copied.
    broken: bool,
}

/// Room for one part of a block.
pub(super) struct Part {
    run: PageRun,
    stage: Arc<dyn Stage>,
}

/// What a part that has been received is.
enum Settled {
    /// At hand: others of its block are missing.
    Kept,
    /// The last one of its block.
    Completes(Block),
    /// To be copied by itself, as far as nobody else has taken it out.
    Alone(Vec<PageRun>),
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
        let bit = bit_of(run.first);
        let free = !self.broken && self.reserved & bit == 0;
        self.reserved |= bit;
        free.then(|| Part { run, stage: Arc::clone(&self.stage) })
    }

    fn pages(&self) -> PageRun {
        PageRun { first: self.first, count: BLOCK_PAGES }
    }

    /// Takes the part around `gfn` off it, if it is at hand.
    fn take(&mut self, gfn: u64) -> Option<Part> {
        let first = gfn - gfn % PART_PAGES;
        let here = block_of(gfn) == self.first && self.here & bit_of(gfn) != 0;
        here.then(|| {
            self.here &= !bit_of(gfn);
            Part { run: PageRun { first, count: PART_PAGES }, stage: Arc::clone(&self.stage) }
        })
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
        if let Some(block) = self.blocks().iter_mut().find(|block| block.first == first) {
            return Ok(block.reserve(run));
        }
        // To make room takes the host a while: without the lock.
        let Some(stage) = self.is_whole(first).then(|| self.faults.stage(first)).flatten() else {
            return Ok(None);
        };
        let part = {
            let mut blocks = self.blocks();
            if !self.is_whole(first) {
                return Ok(None);
            }
            if let Some(block) = blocks.iter_mut().find(|block| block.first == first) {
                return Ok(block.reserve(run));
            }
            if blocks.iter().filter(|block| !block.broken).count() == OPEN {
                let oldest = blocks.iter().find(|block| !block.broken).map(|block| block.first);
                break_up(&mut blocks, |block| Some(block.first) == oldest);
            }
            let mut block = Block { first, stage, reserved: 0, here: 0, broken: false };
            let part = block.reserve(run);
            blocks.push(block);
            part
        };
        self.copy_broken()?;
        Ok(part)
    }

    /// A part has been received.
    pub(super) fn settle(&self, part: &Part) -> Result<(), Failure> {
        match self.note_received(part) {
            Settled::Kept => Ok(()),
            Settled::Completes(block) => self.place_won(&[block.pages()], |_| block.stage.place()),
            Settled::Alone(won) => {
                self.place_won(&won, |run| self.copy(part, run))?;
                self.copy_broken()
            }
        }
    }

    fn note_received(&self, part: &Part) -> Settled {
        let mut blocks = self.blocks();
        // Under the lock, so that who finds a page taken out finds it at hand, too.
        let won = self.take(part.run);
        let awaited = self.requested.count_within(part.run) > 0;
        let fits = |block: &Block| {
            !block.broken && Arc::ptr_eq(&block.stage, &part.stage) && won == [part.run] && !awaited
        };
        // Not always the part's own: that may have been broken up meanwhile, and its block opened anew.
        let at = blocks.iter().position(|block| block.first == block_of(part.run.first));
        match at {
            Some(at) if fits(&blocks[at]) => {
                blocks[at].here |= bit_of(part.run.first);
                if blocks[at].here == u8::MAX { Settled::Completes(blocks.remove(at)) } else { Settled::Kept }
            }
            _ => {
                break_up(&mut blocks, |block| block.first == block_of(part.run.first));
                Settled::Alone(won)
            }
        }
    }

    /// Somebody waits for a page that has been taken out: places it, and its part, if it is at hand. Else it is being placed.
    /// The rest of the block is to be copied next.
    pub(super) fn place_at_hand(&self, gfn: u64) -> Result<(), Failure> {
        let part = {
            let mut blocks = self.blocks();
            let part = blocks.iter_mut().find_map(|block| block.take(gfn));
            if part.is_some() {
                break_up(&mut blocks, |block| block.first == block_of(gfn));
            }
            part
        };
        let Some(part) = part else { return Ok(()) };
        let runs = [(gfn, gfn + 1), (part.run.first, gfn), (gfn + 1, part.run.end())]
            .map(|(from, to)| PageRun { first: from, count: to - from });
        let runs: Vec<PageRun> = runs.into_iter().filter(|run| run.count > 0).collect();
        self.place_won(&runs, |run| self.copy(&part, run))
    }

    /// These pages have come otherwise.
    pub(super) fn break_up_around(&self, runs: &[PageRun]) -> Result<(), Failure> {
        break_up(&mut self.blocks(), |block| {
            runs.iter().any(|run| run.first < block.pages().end() && block.first < run.end())
        });
        self.copy_broken()
    }

    /// The conversation is over. What cannot be placed is missing still.
    pub(super) fn keep_nothing_at_hand(&self) {
        break_up(&mut self.blocks(), |_| true);
        while self.is_to_copy() {
            let _ = self.copy_part();
        }
    }

    /// Whether there is something at hand that is to be copied.
    pub(super) fn is_to_copy(&self) -> bool {
        self.blocks().iter().any(|block| block.broken)
    }

    /// Copies one part of what is to be copied.
    pub(super) fn copy_part(&self) -> Result<(), Failure> {
        let part = self.take_of_broken();
        part.map_or(Ok(()), |part| self.place_won(&[part.run], |run| self.copy(&part, run)))
    }

    fn copy_broken(&self) -> Result<(), Failure> {
        while self.is_to_copy() {
            self.copy_part()?;
        }
        Ok(())
    }

    fn take_of_broken(&self) -> Option<Part> {
        let mut blocks = self.blocks();
        let at = blocks.iter().position(|block| block.broken)?;
        let block = &mut blocks[at];
        let part = block.take(block.first + u64::from(block.here.trailing_zeros()) * PART_PAGES);
        if block.here == 0 {
            blocks.remove(at);
        }
        part
    }

    /// Whether nobody has taken the page out, nor is about to without having seen what is requested.
    pub(super) fn is_away(&self, gfn: u64) -> bool {
        let _blocks = self.blocks();
        self.unplaced.contains(gfn)
    }

    /// Places pages of a part from where they were received.
    fn copy(&self, part: &Part, run: PageRun) -> guest::Result<()> {
        let at = (run.first - part.run.first) as usize * PAGE_SIZE;
        let mut placed = Ok(());
        part.stage.with_part(part_of(run.first), &mut |bytes| {
            placed = self.faults.place(run, &bytes[at..at + run.bytes() as usize]);
        });
        placed
    }

    fn is_whole(&self, first: u64) -> bool {
        self.unplaced.count_within(PageRun { first, count: BLOCK_PAGES }) == BLOCK_PAGES
    }

    fn blocks(&self) -> MutexGuard<'_, Vec<Block>> {
        self.gathering.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Those blocks will not be placed whole. Of one with nothing at hand nothing is kept.
fn break_up(blocks: &mut Vec<Block>, mut which: impl FnMut(&Block) -> bool) {
    blocks.iter_mut().for_each(|block| block.broken |= which(block));
    blocks.retain(|block| !block.broken || block.here != 0);
}

fn block_of(gfn: u64) -> u64 {
    gfn - gfn % BLOCK_PAGES
}

fn part_of(gfn: u64) -> u64 {
    gfn % BLOCK_PAGES / PART_PAGES
}

fn bit_of(gfn: u64) -> u8 {
    1 << part_of(gfn)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::super::fault::Touched;
    use super::*;
    use crate::guest::{BLOCK_PARTS, Faults, Result};
    use crate::pages::PageSet;

    /// What stands for the content of a page that came otherwise.
    const ZEROS: u8 = 0xff;

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

        fn place_zeros(&self, run: PageRun) -> Result<()> {
            self.0.lock().unwrap().push((run, false, ZEROS));
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

        /// What is to be asked for when somebody touches these.
        fn touch(&self, gfns: &[u64]) -> Vec<u64> {
            let Touched { wanted, at_hand } = self.placing.note(gfns).unwrap();
            at_hand.iter().for_each(|gfn| self.placing.place_at_hand(*gfn).unwrap());
            wanted
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
        assert!(arrival.touch(&[130, 131]).is_empty(), "nothing is asked for");
        assert_eq!(arrival.placed(), [(130, 1, false, 2), (128, 2, false, 2), (131, 61, false, 2)]);
        assert!(arrival.placing.is_to_copy(), "a touch waits for no other part");
        assert!(arrival.touch(&[65]).is_empty());
        assert_eq!(arrival.placed(), [(65, 1, false, 1), (64, 1, false, 1), (66, 62, false, 1)]);
        assert!(!arrival.placing.is_to_copy());
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
        assert_eq!(arrival.touch(&[70]), [70]);
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
    fn a_part_that_comes_when_its_block_was_opened_anew_breaks_that_up() {
        let arrival = Arrival::ready();
        let late = arrival.reserve(0).unwrap();
        // The block is left longest, and nothing of it is at hand.
        [8, 16, 24, 32, 1].into_iter().for_each(|part| arrival.push(part));
        late.fill(|bytes| bytes.fill(0));
        arrival.placing.settle(&late).unwrap();
        assert_eq!(arrival.placed(), [(512, 64, false, 8), (0, 64, false, 0), (64, 64, false, 1)]);
        assert!(arrival.reserve(2).is_none(), "it is whole no more");
    }

    proptest! {
        /// Whatever comes in whichever order, on several connections: each page is placed once, and a block is never left behind.
        #[test]
        fn in_the_end_all_is_in_place(steps in vec((0..40_u64, 0..8_u8, any::<u8>()), 0..200)) {
            let arrival = Arrival::ready();
            let placing = &arrival.placing;
            let mut under_way: Vec<(u64, Part)> = Vec::new();
            let settle = |(part, reserved): (u64, Part)| {
                reserved.fill(|bytes| bytes.fill(part as u8));
                placing.settle(&reserved).unwrap();
            };
            let otherwise = |run| {
                placing.place_won(&placing.take(run), |run| placing.faults.place_zeros(run)).unwrap();
                placing.break_up_around(&[run]).unwrap();
            };
            for (part, what, choice) in steps {
                let gfn = part * PART_PAGES + u64::from(choice) % PART_PAGES;
                match what {
                    0..3 => under_way.extend(arrival.reserve(part).map(|reserved| (part, reserved))),
                    3..6 if !under_way.is_empty() => settle(under_way.remove(choice as usize % under_way.len())),
                    6 => drop(arrival.touch(&[gfn])),
                    7 => otherwise(PageRun { first: gfn, count: 1 }),
                    _ => placing.copy_part().unwrap(),
                }
            }
            under_way.into_iter().for_each(settle);
            for part in 0..40 {
                match arrival.reserve(part) {
                    Some(reserved) => settle((part, reserved)),
                    None => otherwise(PageRun { first: part * PART_PAGES, count: PART_PAGES }),
                }
            }
            otherwise(PageRun { first: 40 * PART_PAGES, count: PAGES - 40 * PART_PAGES });
            while placing.is_to_copy() {
                placing.copy_part().unwrap();
            }
            prop_assert_eq!(placing.remaining(), 0);
            prop_assert!(placing.blocks().is_empty());
            let mut placed = vec![0; PAGES as usize];
            for (first, count, moved, content) in arrival.placed() {
                placed[first as usize..][..count as usize].iter_mut().for_each(|times| *times += 1);
                let pushed = u64::from(content) == first / PART_PAGES;
                prop_assert!(pushed || content == ZEROS && !moved);
            }
            prop_assert!(placed.iter().all(|times| *times == 1));
        }
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
