//! Post-copy's source: a paused guest's pages, each sent once, and again when the guest waits for one on its way.
//!
//! [`Unsent`] owns which pages the destination still lacks; whoever claims a page sends it. The page server answers
//! requests on the urgent connection at once; the crew pushes the rest on the data connections, near the last request. A page
//! that is asked for although it was pushed is behind others: it overtakes itself. Nothing writes to it meanwhile.

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
use crate::pages::{AtomicPageSet, PAGE_SIZE, PageRun, PageSet};
use crate::report::Phase;
use crate::wire::limits::PAGES_PER_PUSH;
use crate::wire::{Kind, Message};

/// Pages sent for one request: the one asked for, and neighbours that are likely to be asked for next.
const CLUSTER: u64 = 8;

/// Pages that the destination lacks.
#[derive(Debug)]
pub(super) struct Unsent {
    pages: AtomicPageSet,
    /// Where pushing goes on.
    next: AtomicU64,
}

impl Unsent {
    pub(super) fn new(pages: &PageSet) -> Self {
        Self { pages: AtomicPageSet::from_set(pages), next: AtomicU64::new(0) }
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
    }

    /// Pushes until nothing is unsent, beginning anew wherever the last request was.
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
        let first = self.pages.next_from(from).or_else(|| self.pages.next_from(0))?;
        let after = (first / PAGES_PER_PUSH + 1) * PAGES_PER_PUSH;
        let _ = self.next.compare_exchange(from, after, Ordering::Relaxed, Ordering::Relaxed);
        Some(first)
    }

    /// What answers a request: the page, and its neighbours where they are unsent.
    fn answer_to(&self, gfn: u64) -> Vec<PageRun> {
        self.next.store(gfn, Ordering::Relaxed);
        let mut runs = vec![PageRun { first: gfn, count: 1 }];
        if self.pages.claim(gfn) {
            runs.extend(self.pages.claim_run(PageRun { first: gfn + 1, count: CLUSTER - 1 }));
        }
        runs
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
    loop {
        match serve(context, urgent, &mut courier) {
            // Silence is no failure here: a guest that misses nothing asks for nothing.
            Ok(()) | Err(Failure::Silent { .. }) if !context.alarm.is_stopped() => {}
            Ok(()) => return,
            Err(failure) => return context.alarm.trip(failure),
        }
    }
}

fn serve(context: &Context<'_>, urgent: &Line, courier: &mut Courier<'_>) -> Result<(), Failure> {
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
        unsent.answer_to(gfn).into_iter().try_for_each(|run| courier.add(run))?;
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

    fn unsent() -> Unsent {
        Unsent::new(&PageSet::of_runs(512, &[PageRun { first: 0, count: 300 }]))
    }

    #[test]
    fn a_requested_page_brings_its_neighbours_once() {
        let unsent = unsent();
        assert_eq!(
            unsent.answer_to(100),
            [PageRun { first: 100, count: 1 }, PageRun { first: 101, count: 7 }]
        );
        assert_eq!(
            unsent.answer_to(103),
            [PageRun { first: 103, count: 1 }],
            "it is on its way, and overtakes itself"
        );
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
    fn pushing_goes_on_near_the_last_request_and_comes_round() {
        let unsent = unsent();
        unsent.answer_to(260);
        assert_eq!(unsent.seek(), Some(268));
        assert_eq!(unsent.seek(), Some(0), "nothing is left above 319");
    }
}
