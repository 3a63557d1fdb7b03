//! Post-copy's source: a paused guest's pages, each sent once, and again when the guest waits for one on its way.
//!
//! [`Unsent`] owns which pages the destination still lacks; whoever claims a page sends it. The page server answers
//! requests on the urgent connection at once; the crew pushes the rest on the data connections, where the guest is. A page
//! that is asked for although it was pushed is behind others: it overtakes itself. Nothing writes to it meanwhile.
//!
//! Where the guest is the last requests tell ([`Trail`]). One near them is of a guest that goes from page to page: neighbours come
//! with the page, and pushing goes on behind it at once. Any other is of one that jumps: it gets its page alone, as fast as can be,
//! and its block is pushed when the one under way is done, since the destination moves whole blocks and copies what is left of
//! others.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::Journey;
use super::connect::Lines;
use super::context::Context;
use super::courier::{Courier, Manner};
use super::crew::Crew;
use crate::channel::line::Line;
use crate::failure::Failure;
use crate::guest::BLOCK_PAGES;
use crate::pages::{AtomicPageSet, PAGE_SIZE, PageRun, PageSet};
use crate::report::Phase;
use crate::wire::limits::PAGES_PER_PUSH;
use crate::wire::{Kind, Message};

/// Pages sent for a request near others: the one asked for, and neighbours that are likely to be asked for next.
const CLUSTER: u64 = 8;

/// How many pages lie between requests that are near each other, at most.
const NEAR: u64 = BLOCK_PAGES;

/// There is no such page.
const NOWHERE: u64 = u64::MAX;

/// Pages that the destination lacks.
#[derive(Debug)]
pub(super) struct Unsent {
    pages: AtomicPageSet,
    /// Where pushing goes on.
    next: AtomicU64,
    /// … after the block that is being pushed: a page of the block that was asked for last.
    wanted: AtomicU64,
}

/// The last requests, wherever the vCPUs are.
#[derive(Debug)]
struct Trail {
    last: [u64; 8],
    oldest: usize,
}

impl Unsent {
    pub(super) fn new(pages: &PageSet) -> Self {
        Self {
            pages: AtomicPageSet::from_set(pages),
            next: AtomicU64::new(0),
            wanted: AtomicU64::new(NOWHERE),
        }
    }

    /// The destination lacks these too. Says how many were not known.
    pub(super) fn add(&self, pages: &PageSet) -> u64 {
        pages.runs().map(|run| self.pages.insert_run(run)).sum()
    }

    /// The destination has said what it lacks: that and nothing else is unsent.
    pub(super) fn refill(&self, missing: &PageSet) {
        self.pages.claim_run(PageRun { first: 0, count: missing.limit() });
        self.add(missing);
        self.next.store(0, Ordering::Relaxed);
        self.wanted.store(NOWHERE, Ordering::Relaxed);
    }

    /// Pushes until nothing is unsent, where the last requests were first.
    pub(super) fn push(
        &self,
        courier: &mut Courier<'_>,
        back: &Line,
        round_trip: Duration,
    ) -> Result<(), Failure> {
        let block = || {
            let first = self.seek()?;
            Some(PageRun { first, count: PAGES_PER_PUSH - first % PAGES_PER_PUSH })
        };
        self.push_blocks(std::iter::from_fn(block), courier, back, round_trip)
    }

    /// Pushes what is unsent of each block.
    ///
    /// What is claimed is sent at once, zero marks too, and the rate limit is waited for before: the neighbours of a requested
    /// page are not sent again. For the same reason only so many frames are under way as the link takes up in a round trip.
    pub(super) fn push_blocks(
        &self,
        mut blocks: impl Iterator<Item = PageRun>,
        courier: &mut Courier<'_>,
        back: &Line,
        round_trip: Duration,
    ) -> Result<(), Failure> {
        let mut placed = courier.frames();
        loop {
            courier.wait_turn()?;
            let Some(block) = blocks.next() else { break };
            self.pages.claim_run(block).into_iter().try_for_each(|run| courier.add(run))?;
            courier.flush()?;
            while courier.frames() > placed + courier.frames_ahead(round_trip) {
                courier.waiting(|| hear_placed(back))?;
                placed += 1;
            }
        }
        (placed..courier.frames()).try_for_each(|_| hear_placed(back))
    }

    /// Sends those of `wanted` that are unsent, all at once.
    pub(super) fn send_wanted(
        &self,
        wanted: &[PageRun],
        courier: &mut Courier<'_>,
        back: &Line,
    ) -> Result<(), Failure> {
        let placed = courier.frames();
        wanted.iter().flat_map(|run| self.pages.claim_run(*run)).try_for_each(|run| courier.add(run))?;
        courier.flush()?;
        (placed..courier.frames()).try_for_each(|_| hear_placed(back))
    }

    /// The next page to push; moves on past its neighbourhood, unless a request has moved the place meanwhile.
    fn seek(&self) -> Option<u64> {
        let from = self.next.load(Ordering::Relaxed);
        let mut first = self.pages.next_from(from);
        let is_in_its_block = !from.is_multiple_of(BLOCK_PAGES)
            && first.is_some_and(|first| first / BLOCK_PAGES == from / BLOCK_PAGES);
        if !is_in_its_block {
            let wanted = self.wanted.swap(NOWHERE, Ordering::Relaxed);
            if wanted != NOWHERE {
                first = self.pages.next_from(wanted - wanted % BLOCK_PAGES);
            }
        }
        let first = first.or_else(|| self.pages.next_from(0))?;
        let after = (first / PAGES_PER_PUSH + 1) * PAGES_PER_PUSH;
        let _ = self.next.compare_exchange(from, after, Ordering::Relaxed, Ordering::Relaxed);
        Some(first)
    }

    /// What answers a request: the page, and its neighbours where they are unsent and the guest is about to want them.
    fn answer_to(&self, gfn: u64, trail: &mut Trail) -> Vec<PageRun> {
        let is_near = trail.follow(gfn);
        let (place, neighbours) = if is_near { (&self.next, CLUSTER - 1) } else { (&self.wanted, 0) };
        place.store(gfn, Ordering::Relaxed);
        let mut runs = vec![PageRun { first: gfn, count: 1 }];
        if self.pages.claim(gfn) {
            runs.extend(self.pages.claim_run(PageRun { first: gfn + 1, count: neighbours }));
        }
        runs
    }
}

impl Default for Trail {
    fn default() -> Self {
        Self { last: [NOWHERE; 8], oldest: 0 }
    }
}

impl Trail {
    /// A request. Whether it is near one of those before it.
    fn follow(&mut self, gfn: u64) -> bool {
        let is_near = self.last.iter().any(|before| before.abs_diff(gfn) <= NEAR);
        self.last[self.oldest] = gfn;
        self.oldest = (self.oldest + 1) % self.last.len();
        is_near
    }
}

/// How many pushed frames may be under way on a connection: two, and what a network of 10 Gb/s takes up in a round trip.
#[must_use]
pub fn frames_ahead(round_trip: Duration) -> u64 {
    const FRAME_US_AT_10_GBPS: u128 = PAGES_PER_PUSH as u128 * PAGE_SIZE as u128 * 8 / 10_000;
    2 + (round_trip.as_micros() / FRAME_US_AT_10_GBPS) as u64
}

/// … where it is known that the link takes so many bytes per second, in frames of so many: two, and twice what it takes up in a
/// round trip, so that a rate that was seen while too little was under way is soon seen to be higher.
pub(super) fn frames_ahead_at(round_trip: Duration, bytes_per_s: f64, frame_bytes: f64) -> u64 {
    let under_way = 2.0 * bytes_per_s * round_trip.as_secs_f64();
    frames_ahead(round_trip).min(2 + (under_way / frame_bytes.max(1.0)) as u64)
}

fn hear_placed(back: &Line) -> Result<(), Failure> {
    match back.hear()? {
        Message::Placed => Ok(()),
        other => Err(back.unexpected(other.kind(), Kind::Placed.word())),
    }
}

/// The page server: answers requests until the connection ends.
pub(super) fn answer(context: &Context<'_>, urgent: &Line) {
    let mut courier = Courier::new(context, urgent.link(), Manner::PlaceAtOnce);
    let mut trail = Trail::default();
    loop {
        match serve(context, urgent, &mut courier, &mut trail) {
            // Silence is no failure here: a guest that misses nothing asks for nothing.
            Ok(()) | Err(Failure::Silent { .. }) if !context.alarm.is_stopped() => {}
            Ok(()) => return,
            Err(failure) => return context.alarm.trip(failure),
        }
    }
}

fn serve(
    context: &Context<'_>,
    urgent: &Line,
    courier: &mut Courier<'_>,
    trail: &mut Trail,
) -> Result<(), Failure> {
    let gfns = match urgent.hear()? {
        Message::Request { gfns } => gfns,
        other => return Err(urgent.unexpected(other.kind(), Kind::Request.word())),
    };
    let Some(unsent) = context.unsent.get() else {
        return Err(urgent.unexpected(Kind::Request, "no request before pages are missing"));
    };
    for gfn in gfns {
        if !context.description.holds(PageRun { first: gfn, count: 1 }) {
            return Err(urgent.unexpected(Kind::Request, "a request for a page of RAM"));
        }
        unsent.answer_to(gfn, trail).into_iter().try_for_each(|run| courier.add(run))?;
        courier.flush()?;
    }
    Ok(())
}

impl Journey<'_> {
    /// The guest runs there: sends it what it lacks.
    pub(super) fn start_pushing(&mut self, crew: &Crew) {
        if let Some(unsent) = self.context.unsent.get() {
            self.logbook.enter(Phase::Postcopy);
            self.logbook.leave_alone();
            crew.push(&Arc::clone(unsent));
        }
    }

    /// Waits until the destination misses nothing.
    pub(super) fn serve_pages(&mut self, lines: &Lines) -> Result<(), Failure> {
        if self.context.unsent.get().is_none() {
            return Ok(());
        }
        match lines.control.hear()? {
            Message::Complete(figures) => self.logbook.report.postcopy = Some(figures),
            other => return Err(lines.control.unexpected(other.kind(), Kind::Complete.word())),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const END: u64 = 8 * BLOCK_PAGES;

    fn unsent(count: u64) -> Unsent {
        Unsent::new(&PageSet::of_runs(END, &[PageRun { first: 0, count }]))
    }

    /// What answers requests for `gfns`, one after the other.
    fn answers(unsent: &Unsent, gfns: &[u64]) -> Vec<Vec<PageRun>> {
        let mut trail = Trail::default();
        gfns.iter().map(|gfn| unsent.answer_to(*gfn, &mut trail)).collect()
    }

    /// Where the next portions that are pushed begin. They are sent.
    fn pushed(unsent: &Unsent, portions: usize) -> Vec<u64> {
        let portion = || {
            let first = unsent.seek()?;
            unsent.pages.claim_run(PageRun { first, count: PAGES_PER_PUSH - first % PAGES_PER_PUSH });
            Some(first)
        };
        std::iter::from_fn(portion).take(portions).collect()
    }

    #[test]
    fn a_request_near_another_brings_neighbours_once() {
        let run = |first, count| PageRun { first, count };
        assert_eq!(
            answers(&unsent(END), &[100, 101, 103, 109]),
            [
                vec![run(100, 1)],
                vec![run(101, 1), run(102, 7)],
                // It is on its way, and overtakes itself.
                vec![run(103, 1)],
                vec![run(109, 1), run(110, 7)],
            ]
        );
    }

    #[test]
    fn who_jumps_gets_pages_alone() {
        let far: Vec<u64> = (0..8).map(|at| at * BLOCK_PAGES + at).collect();
        let answers = answers(&unsent(END), &far);
        assert!(answers.iter().zip(&far).all(|(runs, gfn)| *runs == [PageRun { first: *gfn, count: 1 }]));
    }

    #[test]
    fn several_vcpus_have_trails_of_their_own() {
        let mut trail = Trail::default();
        let places: Vec<u64> = (0..8).map(|vcpu| vcpu * 10 * NEAR).collect();
        assert!(!places.iter().any(|gfn| trail.follow(*gfn)), "the first of each");
        assert!(places.iter().all(|gfn| trail.follow(gfn + 8)));
    }

    #[test]
    fn no_more_is_under_way_than_a_link_takes_up() {
        let far = Duration::from_millis(50);
        assert_eq!(frames_ahead(far), 241);
        // 100 Mb/s take up 610 KiB meanwhile.
        assert_eq!(frames_ahead_at(far, 12.5e6, 262_144.0), 6);
        assert_eq!(frames_ahead_at(far, 12.5e6, 4000.0), 241);
        assert_eq!(frames_ahead_at(Duration::from_micros(50), 12.5e6, 1.0), 2, "loopback");
    }

    #[test]
    fn pushing_follows_who_goes_from_page_to_page_at_once_and_comes_round() {
        let unsent = unsent(300);
        assert_eq!(pushed(&unsent, 1), [0]);
        answers(&unsent, &[199, 200]);
        assert_eq!(pushed(&unsent, 9), [208, 256, 64, 128, 192], "all, each once");
    }

    #[test]
    fn pushing_ends_a_block_before_it_goes_where_the_guest_has_jumped_to() {
        let unsent = unsent(END);
        assert_eq!(pushed(&unsent, 2), [0, 64]);
        answers(&unsent, &[3 * BLOCK_PAGES + 7, 5 * BLOCK_PAGES + 100]);
        let rest: Vec<u64> = (2..8).map(|portion| portion * PAGES_PER_PUSH).collect();
        assert_eq!(pushed(&unsent, 6), rest);
        let there: Vec<u64> = (0..8).map(|portion| 5 * BLOCK_PAGES + portion * PAGES_PER_PUSH).collect();
        assert_eq!(pushed(&unsent, 8), there, "the last one, from its beginning");
        assert_eq!(pushed(&unsent, 1), [6 * BLOCK_PAGES], "and on from there");
    }
}
