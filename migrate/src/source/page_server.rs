//! Post-copy's source: a paused guest's pages, each sent once, and again when the guest waits for one on its way.
//!
//! [`Unsent`] owns which pages the destination still lacks; whoever claims a page sends it. The page server answers
//! requests on the urgent connection at once; the crew pushes the rest on the data connections, where the guest is. A page
//! that is asked for although it was pushed is behind others: it overtakes itself. Nothing writes to it meanwhile.
//!
//! Where the guest is the last requests tell ([`Trail`]). One just behind another is of a guest that goes from page to page:
//! pushing goes on behind it at once. After any other, which jumps, the block of the page is pushed when the one under way is done:
//! the destination moves whole blocks, and copies what is left of others. Within one host a page that was jumped to comes alone;
//! over a network ahead of its neighbours, which are few where that is slow and short.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::Journey;
use super::connect::Lines;
use super::context::Context;
use super::courier::{Courier, Manner};
use super::crew::Crew;
use super::unanswered::Unanswered;
use crate::channel::line::Line;
use crate::failure::Failure;
use crate::guest::{BLOCK_PAGES, PART_PAGES};
use crate::pages::{AtomicPageSet, PAGE_SIZE, PageRun, PageSet};
use crate::priority::PORTION;
use crate::report::Phase;
use crate::wire::{Kind, Message};

/// Pages sent for one request at most: the one asked for, and neighbours that are likely to be asked for next.
const CLUSTER: u64 = 8;

/// How many pages behind another a request is that follows it, at most.
const NEAR: u64 = 2 * PART_PAGES;

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

/// The last requests, the newest first: one for each vCPU, as long as each goes from page to page.
#[derive(Debug)]
struct Trail {
    last: Vec<u64>,
}

/// How many pages answer a request that follows another, and one that jumps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Clusters {
    followed: u64,
    jumped: u64,
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
        self.push_claimed(|most| self.claim_next(most), courier, back, round_trip)
    }

    /// Pushes what is unsent of each of these.
    pub(super) fn push_around(
        &self,
        around: Vec<PageRun>,
        courier: &mut Courier<'_>,
        back: &Line,
        round_trip: Duration,
    ) -> Result<(), Failure> {
        let mut claimed = around.into_iter().map(|run| self.pages.claim_run(run));
        self.push_claimed(|_| claimed.next(), courier, back, round_trip)
    }

    /// Pushes what `claim` claims, who is told how many pages go at a time.
    ///
    /// What is claimed is sent at once, zero marks too, and the rate limit is waited for before: the neighbours of a requested
    /// page are not sent again. For the same reason only so much is under way as the link takes up in two round trips.
    fn push_claimed(
        &self,
        mut claim: impl FnMut(u64) -> Option<Vec<PageRun>>,
        courier: &mut Courier<'_>,
        back: &Line,
        round_trip: Duration,
    ) -> Result<(), Failure> {
        let mut pushed = Unanswered::new(round_trip, courier.streams());
        loop {
            courier.wait_turn()?;
            let Some(runs) = claim(courier.most_pages()) else { break };
            let (frames, bytes) = (courier.frames(), courier.bytes());
            runs.into_iter().try_for_each(|run| courier.add(run))?;
            courier.flush()?;
            pushed.sent(courier.frames() - frames, courier.bytes() - bytes);
            while pushed.are_enough() {
                courier.wait_for_answer(|| hear_placed(back))?;
                pushed.answered(Instant::now());
            }
        }
        while !pushed.is_empty() {
            hear_placed(back)?;
            pushed.answered(Instant::now());
        }
        Ok(())
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

    /// Claims what is pushed next, part by part, until a frame of `most` pages has room for less than half a part, or the next part does
    /// not fit as a whole. Few frames are under way, so small ones leave the link idle. Where somebody moves the place just then, it may
    /// be half a part more.
    fn claim_next(&self, most: u64) -> Option<Vec<PageRun>> {
        let (mut claimed, mut pages) = (Vec::new(), 0);
        while pages + PART_PAGES / 2 < most {
            let Some(first) = self.seek() else { break };
            let run = PageRun { first, count: PART_PAGES - first % PART_PAGES };
            if pages > 0 && pages + self.pages.count_within(run) > most && self.give_back(run) {
                break;
            }
            let runs = self.pages.claim_run(run);
            pages += runs.iter().map(|run| run.count).sum::<u64>();
            claimed.extend(runs);
        }
        (!claimed.is_empty()).then_some(claimed)
    }

    /// Has pushing go on with this part after all, unless somebody has moved the place meanwhile.
    fn give_back(&self, run: PageRun) -> bool {
        self.next.compare_exchange(run.end(), run.first, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    /// The next page to push; moves on past its part.
    fn seek(&self) -> Option<u64> {
        loop {
            let from = self.next.load(Ordering::Relaxed);
            let onwards = self.pages.next_from(from);
            let is_in_its_block = !from.is_multiple_of(BLOCK_PAGES)
                && onwards.is_some_and(|first| first / BLOCK_PAGES == from / BLOCK_PAGES);
            let wanted = if is_in_its_block { NOWHERE } else { self.wanted.load(Ordering::Relaxed) };
            let there =
                if wanted == NOWHERE { None } else { self.pages.next_from(wanted - wanted % BLOCK_PAGES) };
            let first = there.or(onwards).or_else(|| self.pages.next_from(0))?;
            let after = (first / PART_PAGES + 1) * PART_PAGES;
            // Else a request has moved the place meanwhile, or another stream has.
            if self.next.compare_exchange(from, after, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
                let _ = self.wanted.compare_exchange(wanted, NOWHERE, Ordering::Relaxed, Ordering::Relaxed);
                return Some(first);
            }
        }
    }

    /// What answers a request: the page, and its neighbours where they are unsent.
    fn answer_to(&self, gfn: u64, trail: &mut Trail, clusters: Clusters) -> Vec<PageRun> {
        let (place, cluster) =
            if trail.follow(gfn) { (&self.next, clusters.followed) } else { (&self.wanted, clusters.jumped) };
        place.store(gfn, Ordering::Relaxed);
        let mut runs = vec![PageRun { first: gfn, count: 1 }];
        // A page that is on its way comes alone: its neighbours are, too.
        if self.pages.claim(gfn) {
            runs.extend(self.pages.claim_run(PageRun { first: gfn + 1, count: cluster - 1 }));
        }
        runs
    }
}

impl Trail {
    /// As many as there are vCPUs, and a few more: one vCPU may go through several places by turns.
    fn of(vcpus: u32) -> Self {
        Self { last: vec![NOWHERE; vcpus.max(8) as usize] }
    }

    /// A request. Whether it follows one of those before it, in whose place it is then.
    fn follow(&mut self, gfn: u64) -> bool {
        let ahead = |before: &u64| gfn.checked_sub(*before).is_some_and(|pages| pages <= NEAR);
        let followed = self.last.iter().position(ahead);
        let end = followed.unwrap_or(self.last.len() - 1);
        self.last[..=end].rotate_right(1);
        self.last[0] = gfn;
        followed.is_some()
    }
}

impl Clusters {
    /// Within one host a round trip takes less than the copies of neighbours that nobody wants.
    const WITHIN_HOST: Self = Self { followed: CLUSTER, jumped: 1 };

    /// As many neighbours as cross the network in a quarter of a round trip, where it is known how many bytes per second one
    /// connection has of it: they are worth a round trip if one of them is wanted, and the next answer waits behind them.
    fn across(link_rate: Option<f64>, round_trip: Duration) -> Self {
        let quarter = round_trip.as_secs_f64() / 4.0;
        let crossing = |rate: f64| (rate * quarter / PAGE_SIZE as f64) as u64;
        let pages = link_rate.map_or(CLUSTER, |rate| CLUSTER.min(1 + crossing(rate)));
        Self { followed: pages, jumped: pages }
    }
}

/// How many pushed frames may be under way on a connection, at most: two, and what a network of 10 Gb/s takes up in a round trip.
#[must_use]
pub fn frames_ahead(round_trip: Duration) -> u64 {
    const FRAME_US_AT_10_GBPS: u128 = PORTION as u128 * PAGE_SIZE as u128 * 8 / 10_000;
    2 + (round_trip.as_micros() / FRAME_US_AT_10_GBPS) as u64
}

fn hear_placed(back: &Line) -> Result<(), Failure> {
    match back.hear()? {
        Message::Placed => Ok(()),
        other => Err(back.unexpected(other.kind(), Kind::Placed.word())),
    }
}

/// The page server: answers requests until the connection ends.
pub(super) fn answer(context: &Context<'_>, urgent: &Line, round_trip: Duration) {
    let mut courier = Courier::new(context, urgent.link(), Manner::PlaceAtOnce);
    let mut trail = Trail::of(context.description.vcpus);
    loop {
        match serve(context, urgent, round_trip, &mut courier, &mut trail) {
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
    round_trip: Duration,
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
    let is_within_host = urgent.link().is_within_host();
    let clusters = if is_within_host {
        Clusters::WITHIN_HOST
    } else {
        Clusters::across(courier.link_rate(), round_trip)
    };
    for gfn in gfns {
        if !context.description.holds(PageRun { first: gfn, count: 1 }) {
            return Err(urgent.unexpected(Kind::Request, "a request for a page of RAM"));
        }
        let answer = unsent.answer_to(gfn, trail, clusters);
        let (page, neighbours) = answer.split_at(1);
        courier.add(page[0])?;
        if !is_within_host {
            // It does not wait until they have crossed the network, too.
            courier.flush()?;
        }
        neighbours.iter().try_for_each(|run| courier.add(*run))?;
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

    /// To another host, about whose network nothing is known.
    const FAR: Clusters = Clusters { followed: CLUSTER, jumped: CLUSTER };

    /// What answers requests for `gfns`, one after the other.
    fn answers(unsent: &Unsent, gfns: &[u64], clusters: Clusters) -> Vec<Vec<PageRun>> {
        let mut trail = Trail::of(1);
        gfns.iter().map(|gfn| unsent.answer_to(*gfn, &mut trail, clusters)).collect()
    }

    /// Where the next portions that are pushed begin. They are sent.
    fn pushed(unsent: &Unsent, portions: usize) -> Vec<u64> {
        let portion = || {
            let first = unsent.seek()?;
            unsent.pages.claim_run(PageRun { first, count: PART_PAGES - first % PART_PAGES });
            Some(first)
        };
        std::iter::from_fn(portion).take(portions).collect()
    }

    /// How many pages a stream pushes until there are none.
    fn pages_pushed(unsent: &Unsent) -> u64 {
        let mut pages = 0;
        while let Some(claimed) = unsent.claim_next(PORTION) {
            pages += claimed.iter().map(|run| run.count).sum::<u64>();
        }
        pages
    }

    #[test]
    fn a_request_brings_neighbours_once_and_who_jumps_waits_for_none_where_the_way_is_short() {
        let run = |first, count| PageRun { first, count };
        let gfns = [100, 103, 120, 99, 2000];
        assert_eq!(
            answers(&unsent(END), &gfns, FAR),
            [
                vec![run(100, 1), run(101, 7)],
                // It is on its way, and overtakes itself.
                vec![run(103, 1)],
                vec![run(120, 1), run(121, 7)],
                // Backwards; all that follows is on its way.
                vec![run(99, 1)],
                vec![run(2000, 1), run(2001, 7)],
            ]
        );
        assert_eq!(
            answers(&unsent(END), &gfns, Clusters::WITHIN_HOST),
            [
                vec![run(100, 1)],
                vec![run(103, 1), run(104, 7)],
                vec![run(120, 1), run(121, 7)],
                vec![run(99, 1)],
                vec![run(2000, 1)],
            ]
        );
    }

    #[test]
    fn each_vcpu_has_a_place_however_the_others_hurry() {
        for vcpus in [2, 16] {
            let mut trail = Trail::of(vcpus);
            let start = |vcpu: u32| u64::from(vcpu) * 100 * NEAR;
            assert!(!(0..vcpus).any(|vcpu| trail.follow(start(vcpu))), "the first of each");
            assert!((1..50).all(|step| trail.follow(start(0) + 8 * step)), "one hurries");
            assert!((1..vcpus).all(|vcpu| trail.follow(start(vcpu) + 8)), "{vcpus} vCPUs");
        }
    }

    #[test]
    fn several_streams_push_each_page_once_whatever_is_asked_for() {
        let unsent = unsent(END);
        let (asked, pushed) = std::thread::scope(|scope| {
            let streams: Vec<_> = (0..3).map(|_| scope.spawn(|| pages_pushed(&unsent))).collect();
            let mut trail = Trail::of(2);
            let mut asked = 0;
            for at in 0..200 {
                let gfn = if at % 2 == 0 { at * 8 } else { at * 7919 % END };
                let runs = unsent.answer_to(gfn, &mut trail, Clusters::WITHIN_HOST);
                // The page itself may have been on its way, and comes again then.
                asked += runs[1..].iter().map(|run| run.count).sum::<u64>();
            }
            let pushed: u64 = streams.into_iter().map(|stream| stream.join().expect("no panic")).sum();
            (asked, pushed)
        });
        assert!(unsent.pages.next_from(0).is_none(), "all is sent");
        let once = asked + pushed;
        assert!((END - 200..=END).contains(&once), "{asked} beside those asked for, and {pushed}, of {END}");
    }

    /// A push of one page, answered one by one, takes as long as one of many.
    #[test]
    fn scattered_pages_are_pushed_together_and_whole_neighbourhoods_alone() {
        let run = |first, count| PageRun { first, count };
        let scattered: Vec<_> = (0..40).map(|nth| run(nth * 100, 1)).collect();
        let mut runs = scattered.clone();
        runs.extend([run(6400, 64), run(6464, 40), run(6600, 64)]);
        let unsent = Unsent::new(&PageSet::of_runs(END + 3000, &runs));
        let claimed: Vec<_> = std::iter::from_fn(|| unsent.claim_next(PORTION)).collect();
        let (first, rest) = scattered.split_at(32);
        assert_eq!(claimed[0], first);
        assert_eq!(claimed[1], rest);
        assert_eq!(
            claimed[2..],
            [vec![run(6400, 64)], vec![run(6464, 40)], vec![run(6600, 56)], vec![run(6656, 8)]]
        );
    }

    #[test]
    fn as_many_parts_are_pushed_together_as_a_frame_takes() {
        let runs =
            [(0, 300), (320, 20), (400, 512), (1000, 3)].map(|(first, count)| PageRun { first, count });
        let unsent = Unsent::new(&PageSet::of_runs(END, &runs));
        let claimed: Vec<Vec<_>> = std::iter::from_fn(|| unsent.claim_next(4 * PART_PAGES))
            .map(|runs| runs.iter().map(|run| (run.first, run.count)).collect())
            .collect();
        assert_eq!(
            claimed,
            [
                vec![(0, 64), (64, 64), (128, 64), (192, 64)],
                vec![(256, 44), (320, 20), (400, 48), (448, 64), (512, 64)],
                vec![(576, 64), (640, 64), (704, 64), (768, 64)],
                vec![(832, 64), (896, 16), (1000, 3)],
            ]
        );
    }

    #[test]
    fn neighbours_take_a_quarter_of_a_round_trip_at_most() {
        let pages = |rate, round_trip_us| {
            let clusters = Clusters::across(rate, Duration::from_micros(round_trip_us));
            assert_eq!(clusters.followed, clusters.jumped);
            clusters.jumped
        };
        assert_eq!(pages(None, 10), CLUSTER);
        assert_eq!(pages(Some(12.5e6), 1000), 1, "100 Mb/s");
        assert_eq!(pages(Some(12.5e6), 0), 1);
        assert_eq!(pages(Some(125e6), 500), 4, "1 Gb/s");
        assert_eq!(pages(Some(1.25e9), 200), CLUSTER, "10 Gb/s");
        assert_eq!(pages(Some(12.5e6), 50_000), CLUSTER, "100 Mb/s, far away");
    }

    #[test]
    fn no_more_frames_are_under_way_than_a_fast_network_takes_up() {
        let frames = [50, 50_000].map(|us| frames_ahead(Duration::from_micros(us)));
        assert_eq!(frames, [2, 241], "within one host, and far away");
    }

    #[test]
    fn pushing_follows_who_goes_from_page_to_page_at_once_and_comes_round() {
        let unsent = unsent(END);
        assert_eq!(pushed(&unsent, 2), [0, 64]);
        answers(&unsent, &[1000, 1008], FAR);
        unsent.wanted.store(NOWHERE, Ordering::Relaxed);
        assert_eq!(pushed(&unsent, 2), [1016, 1024]);
        let rest = pushed(&unsent, usize::MAX);
        assert_eq!(rest.first(), Some(&1088));
        assert_eq!(rest.last(), Some(&960), "what is before it comes last");
        assert!(unsent.pages.next_from(0).is_none(), "and all of it");
    }

    #[test]
    fn pushing_ends_a_block_before_it_goes_where_the_guest_has_jumped_to() {
        let unsent = unsent(END);
        assert_eq!(pushed(&unsent, 2), [0, 64]);
        answers(&unsent, &[3 * BLOCK_PAGES + 7, 5 * BLOCK_PAGES + 100], Clusters::WITHIN_HOST);
        let rest: Vec<u64> = (2..8).map(|portion| portion * PART_PAGES).collect();
        assert_eq!(pushed(&unsent, 6), rest);
        let there: Vec<u64> = (0..8).map(|portion| 5 * BLOCK_PAGES + portion * PART_PAGES).collect();
        assert_eq!(pushed(&unsent, 8), there, "the last one, from its beginning");
        assert_eq!(pushed(&unsent, 1), [6 * BLOCK_PAGES], "and on from there");
    }
}
