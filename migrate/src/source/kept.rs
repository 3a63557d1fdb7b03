//! Pages as they were sent last, in bounded memory: what is sent of them again is the difference.
//!
//! One invariant: what is kept of a page is exactly what the destination has of it once the round has landed. So a page is
//! kept only from the very bytes that were sent, and forgotten when it is sent in another way.
//!
//! A page has one place where it can be kept, which it shares with others. One that was kept in this round or the one before
//! stays there, unless that was round 0: of a working set larger than this memory, a part is then kept for as long as it is
//! written, and not each page a moment too short.

use crate::pages::{PAGE_SIZE, PageRun};

/// No page.
const NONE: u64 = u64::MAX;

/// Pages that were sent.
pub(super) struct Kept {
    content: Vec<u8>,
    places: Vec<Place>,
}

#[derive(Debug, Clone, Copy)]
struct Place {
    gfn: u64,
    /// In which it was sent last.
    round: u32,
}

impl Kept {
    /// Room for so many pages, one at least. Memory is taken as they come.
    pub(super) fn new(pages: u64) -> Self {
        let pages = pages.max(1) as usize;
        Self { content: vec![0; pages * PAGE_SIZE], places: vec![Place { gfn: NONE, round: 0 }; pages] }
    }

    /// The page is sent in this round, and is `page`. True where it was kept before: `mixed`, which is the same, is then what
    /// it XORed with that is.
    pub(super) fn mix(&mut self, round: u32, gfn: u64, page: &[u8], mixed: &mut [u8]) -> bool {
        let at = self.place(gfn);
        let place = &mut self.places[at];
        let kept = &mut self.content[at * PAGE_SIZE..][..PAGE_SIZE];
        let known = place.gfn == gfn;
        if known {
            for ((mixed, page), kept) in mixed.iter_mut().zip(page).zip(kept) {
                *mixed = page ^ *kept;
                *kept = *page;
            }
            place.round = round;
        } else if place.gfn == NONE || round == 0 || round > place.round.saturating_add(1) {
            // Round 0 sends each page once, and last what is most likely to be sent again.
            kept.copy_from_slice(page);
            *place = Place { gfn, round };
        }
        known
    }

    /// These pages are sent by other means.
    pub(super) fn forget(&mut self, runs: &[PageRun]) {
        for gfn in runs.iter().flat_map(|run| run.first..run.end()) {
            let at = self.place(gfn);
            if self.places[at].gfn == gfn {
                self.places[at].gfn = NONE;
            }
        }
    }

    fn place(&self, gfn: u64) -> usize {
        (gfn % self.places.len() as u64) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(fill: u8) -> Vec<u8> {
        vec![fill; PAGE_SIZE]
    }

    /// Sends a page; what would be sent of it.
    fn send(kept: &mut Kept, round: u32, gfn: u64, fill: u8) -> Result<Vec<u8>, Vec<u8>> {
        let mut mixed = page(fill);
        let known = kept.mix(round, gfn, &page(fill), &mut mixed);
        if known { Ok(mixed) } else { Err(mixed) }
    }

    #[test]
    fn a_page_that_is_sent_again_is_sent_as_what_has_changed() {
        let mut kept = Kept::new(8);
        assert_eq!(send(&mut kept, 0, 3, 0x0f), Err(page(0x0f)));
        assert_eq!(send(&mut kept, 1, 3, 0x0f), Ok(page(0)));
        assert_eq!(send(&mut kept, 2, 3, 0xf0), Ok(page(0xff)));
        assert_eq!(send(&mut kept, 3, 3, 0xf1), Ok(page(1)));
    }

    #[test]
    fn a_page_that_was_sent_by_other_means_is_sent_as_it_is() {
        let mut kept = Kept::new(8);
        for gfn in [2, 3, 5] {
            send(&mut kept, 0, gfn, 7).unwrap_err();
        }
        // 11 is not kept, and 3 is where it would be.
        kept.forget(&[PageRun { first: 0, count: 3 }, PageRun { first: 11, count: 1 }]);
        assert_eq!(send(&mut kept, 1, 2, 7), Err(page(7)));
        assert_eq!(send(&mut kept, 1, 3, 7), Ok(page(0)));
        assert_eq!(send(&mut kept, 1, 5, 7), Ok(page(0)));
    }

    #[test]
    fn a_page_gives_way_to_another_only_when_it_is_not_sent_any_more() {
        let mut kept = Kept::new(8);
        send(&mut kept, 1, 1, 7).unwrap_err();
        assert_eq!(send(&mut kept, 1, 9, 8), Err(page(8)));
        assert_eq!(send(&mut kept, 2, 1, 7), Ok(page(0)));
        assert_eq!(send(&mut kept, 3, 9, 8), Err(page(8)), "1 was sent in the round before");
        assert_eq!(send(&mut kept, 4, 9, 8), Err(page(8)), "and now has given way");
        assert_eq!(send(&mut kept, 5, 9, 9), Ok(page(1)));
        assert_eq!(send(&mut kept, 5, 1, 7), Err(page(7)));
    }

    #[test]
    fn what_round_0_sends_last_is_kept() {
        let mut kept = Kept::new(8);
        send(&mut kept, 0, 1, 7).unwrap_err();
        send(&mut kept, 0, 9, 8).unwrap_err();
        assert_eq!(send(&mut kept, 1, 1, 7), Err(page(7)));
        assert_eq!(send(&mut kept, 1, 9, 9), Ok(page(1)));
    }
}
