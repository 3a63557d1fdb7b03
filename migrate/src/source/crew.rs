//! The threads that send: one a data connection, alive for the whole migration, parked between tasks.
//!
//! A round is one or two page sets and how far they are taken: each thread takes the next window, which the dirty log watches anew
//! by then, sends its pages, and takes another. So no thread waits for a slower one until the round's end.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::Scope;
use std::time::Duration;

use super::connect::Lines;
use super::context::Context;
use super::courier::{Courier, Manner};
use super::missing::FirstPages;
use super::page_server::{self, Unsent};
use crate::channel::line::Line;
use crate::failure::Failure;
use crate::options::Mode;
use crate::pages::{PageRun, PageSet};
use crate::priority::{give_way, serve_vcpus};
use crate::threads::start;
use crate::wire::Message;

/// Pages of a window: 2 MiB of guest, one word boundary to another.
pub const WINDOW: u64 = 512;

/// Pages watched anew in one call, at most: a guest that faults meanwhile waits for its end. 32 MiB take 0.1 ms.
const WATCHED_AT_ONCE: u64 = 8192;

/// Words of the log they may lie in, each of which KVM looks up by itself; and pages of RAM it passes over besides, 8 GiB.
const WORDS_AT_ONCE: usize = 1024;
const LOOKED_AT_ONCE: u64 = 1 << 21;

/// Calls a large round takes for it: each ends in an interrupt of the vCPUs, which takes 0.02 to 0.13 ms of theirs and of the round's.
/// But what is watched anew long before it is sent may be written in between, and is then sent again.
const CALLS: u64 = 16;

/// Pages watched anew in one call by a round that sends so many: by each but the last, and there may be a window more in each.
#[must_use]
pub fn watched_at_once(pages: u64) -> u64 {
    (pages / CALLS).clamp(WINDOW, WATCHED_AT_ONCE)
}

/// What is watched anew in one call from `first` on, the beginning of a window: in whole windows about so many pages, if one call
/// may have them.
pub(super) fn next_to_watch(set: &PageSet, first: u64, pages: u64) -> PageRun {
    let end = set.end_of(first, pages.min(WATCHED_AT_ONCE), WORDS_AT_ONCE).next_multiple_of(WINDOW);
    PageRun { first, count: end.min(set.limit()).saturating_sub(first).min(LOOKED_AT_ONCE) }
}

/// One round's work, shared by the threads that do it.
#[derive(Debug)]
pub(super) struct Round {
    pub(super) number: u32,
    /// The guest is paused: this round is the last, and nothing needs to be watched.
    pub(super) last: bool,
    /// Sent one after the other.
    sets: [PageSet; 2],
    /// Pages watched anew at a time.
    at_once: u64,
    progress: Mutex<Progress>,
}

/// How far a round has come. Pages of the second set count from [`Round::span`].
#[derive(Debug)]
struct Progress {
    /// All before is taken by somebody.
    taken: u64,
    /// All before is watched; or nothing needs to be.
    watched: u64,
    /// From here on nothing was sent: the round was cut short.
    unsent_from: u64,
}

impl Round {
    pub(super) fn new(number: u32, last: bool, set: PageSet) -> Self {
        Self {
            number,
            last,
            // The pause has no time for counting.
            at_once: if last { 0 } else { watched_at_once(set.len()) },
            sets: [set, PageSet::default()],
            progress: Mutex::new(Progress {
                taken: 0,
                watched: if last { u64::MAX } else { 0 },
                unsent_from: u64::MAX,
            }),
        }
    }

    /// With pages that are sent after all others, of which there are none among those.
    pub(super) fn ending_with(self, set: PageSet) -> Self {
        let [first, _] = self.sets;
        debug_assert!(set.is_empty() || set.limit() == first.limit() && set.without(&first) == set);
        Self { at_once: watched_at_once(first.len() + set.len()), sets: [first, set], ..self }
    }

    /// How many pages.
    pub(super) fn len(&self) -> u64 {
        self.sets.iter().map(PageSet::len).sum()
    }

    /// Where the second set begins, as [`Progress`] counts.
    fn span(&self) -> u64 {
        self.sets[0].limit().next_multiple_of(WINDOW).max(WINDOW)
    }

    fn progress(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the round early: windows that nobody has taken yet are left.
    pub(super) fn cut(&self) {
        let mut progress = self.progress();
        progress.unsent_from = progress.unsent_from.min(progress.taken);
        progress.taken = 2 * self.span();
    }

    /// What was left. Only of a round that has landed.
    pub(super) fn unsent(&self) -> PageSet {
        let (from, limit) = (self.progress().unsent_from, self.sets[0].limit());
        let mut left = PageSet::new(limit);
        for (set, from) in self.sets.iter().zip([from, from.saturating_sub(self.span())]) {
            let rest = PageRun { first: from.min(limit), count: limit.saturating_sub(from) };
            set.runs_within(rest).for_each(|run| left.insert_run(run));
        }
        left
    }

    /// The next window with a page of this round, which nobody else takes, and the set it is of. Those without are passed over at
    /// once: the pause may have a few pages left of a large guest. Unless the window is watched, `watch` is called first with what
    /// is to be: with it and what follows.
    fn take_window<E>(
        &self,
        watch: impl FnOnce(&PageSet, PageRun) -> Result<(), E>,
    ) -> Result<Option<(&PageSet, PageRun)>, E> {
        let (mut progress, span) = (self.progress(), self.span());
        let found = ((progress.taken / span) as usize..self.sets.len()).find_map(|nth| {
            let (set, begins) = (&self.sets[nth], nth as u64 * span);
            let from = progress.taken.saturating_sub(begins) / 64;
            let next = set.next_in_use(from as usize..set.words().len())? as u64 * 64;
            Some((set, begins, next / WINDOW * WINDOW))
        });
        let Some((set, begins, first)) = found else { return Ok(None) };
        let taken = begins + first + WINDOW;
        if taken > progress.watched {
            let ahead = next_to_watch(set, first, self.at_once);
            // Whoever takes the next window waits until it is watched.
            watch(set, ahead)?;
            progress.watched = begins + ahead.end().next_multiple_of(WINDOW);
        }
        progress.taken = taken;
        Ok(Some((set, PageRun { first, count: WINDOW.min(set.limit() - first) })))
    }

    /// Takes windows and sends their pages, until none is left; then says so.
    pub(super) fn send(&self, context: &Context<'_>, courier: &mut Courier<'_>) -> Result<(), Failure> {
        if self.last && context.options.mode != Mode::Stopcopy {
            courier.change(Manner::LandAtOnce);
        }
        let watch = |set: &PageSet, ahead| {
            context.guest.protect(set, ahead).map_err(Failure::guest("watch pages for writes"))
        };
        while let Some((set, window)) = self.take_window(watch)? {
            set.runs_within(window).try_for_each(|run| courier.add(run))?;
        }
        if !self.last {
            // A round pays what it owes before it ends: its throughput is the limit's.
            courier.flush()?;
            courier.wait_turn()?;
        }
        courier.tell(&Message::RoundEnd { round: self.number, last: self.last })
    }
}

enum Task {
    Round(Arc<Round>),
    First(Arc<Unsent>, FirstPages),
    Push(Arc<Unsent>),
}

/// The sending threads.
pub(super) struct Crew {
    tasks: Vec<Sender<Task>>,
}

impl Crew {
    /// Starts them, and the page server when there is an urgent connection.
    pub(super) fn assemble<'scope, 'a: 'scope>(
        scope: &'scope Scope<'scope, 'a>,
        context: &'a Context<'a>,
        lines: &Lines,
    ) -> Result<Self, Failure> {
        let round_trip = lines.round_trip;
        if let Some(urgent) = lines.urgent.clone() {
            start(scope, "page-server", move || {
                serve_vcpus(context.parting.as_ref());
                context
                    .alarm
                    .guard("answers page requests", || page_server::answer(context, &urgent, round_trip));
            })?;
        }
        let tasks = lines.data.iter().map(|line| {
            let (sender, tasks) = channel();
            let (courier, back) = (Courier::new(context, line.link(), Manner::Land), line.clone());
            start(scope, "sender", move || {
                give_way();
                context.alarm.guard("sends pages", || {
                    if let Err(failure) = work(context, courier, &tasks, &back, round_trip) {
                        context.alarm.trip(failure);
                    }
                });
            })?;
            Ok(sender)
        });
        Ok(Self { tasks: tasks.collect::<Result<_, _>>()? })
    }

    /// Sends a round on all data connections.
    pub(super) fn send(&self, round: &Arc<Round>) {
        self.give(|| Task::Round(Arc::clone(round)));
    }

    /// Sends pages that will be wanted at once, ahead of all others (post-copy).
    pub(super) fn send_first(&self, unsent: &Arc<Unsent>, first: FirstPages) {
        if let Some(sender) = self.tasks.first() {
            // A thread that is gone has tripped the alarm.
            let _ = sender.send(Task::First(Arc::clone(unsent), first));
        }
    }

    /// Pushes what nobody asks for (post-copy).
    pub(super) fn push(&self, unsent: &Arc<Unsent>) {
        self.give(|| Task::Push(Arc::clone(unsent)));
    }

    fn give(&self, task: impl Fn() -> Task) {
        for sender in &self.tasks {
            // A thread that is gone has tripped the alarm.
            let _ = sender.send(task());
        }
    }
}

/// A sending thread's life: task after task, until the crew is dismissed.
/// In post-copy the destination answers on the same connection, `back`.
fn work(
    context: &Context<'_>,
    mut courier: Courier<'_>,
    tasks: &Receiver<Task>,
    back: &Line,
    round_trip: Duration,
) -> Result<(), Failure> {
    courier.is_of_crew();
    while let Ok(task) = tasks.recv() {
        match task {
            Task::Round(round) => {
                if !round.last {
                    courier.step_aside();
                }
                round.send(context, &mut courier)?;
            }
            Task::First(unsent, first) => {
                courier.change(Manner::PlaceAtOnce);
                courier.sends_what_is_missing();
                unsent.send_wanted(&first.wanted, &mut courier, back)?;
                courier.change(Manner::Place);
                unsent.push_around(first.around, &mut courier, back, round_trip)?;
            }
            Task::Push(unsent) => {
                courier.sends_what_is_missing();
                courier.change(Manner::Place);
                unsent.push(&mut courier, back, round_trip)?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    fn take(round: &Round) -> Option<(&PageSet, PageRun)> {
        let Ok(taken) = round.take_window(|_, _| Ok::<_, Infallible>(()));
        taken
    }

    #[test]
    fn each_page_is_in_one_window_that_is_taken_or_is_left_wherever_the_round_is_cut() {
        let runs = [(3, 1), (511, 2), (40_000, 5_000), (90_000, 1), (99_999, 1)];
        let set = PageSet::of_runs(100_000, &runs.map(|(first, count)| PageRun { first, count }));
        let later = PageSet::of_runs(
            100_000,
            &[PageRun { first: 4, count: 1 }, PageRun { first: 60_000, count: 3_000 }],
        );
        for cut_after in [0, 1, 3, 100] {
            let round = Round::new(0, false, set.clone()).ending_with(later.clone());
            let taken = std::thread::scope(|scope| {
                let take = || std::iter::from_fn(|| take(&round)).collect::<Vec<_>>();
                let (one, two) = (scope.spawn(take), scope.spawn(take));
                (0..cut_after).for_each(|_| std::thread::yield_now());
                round.cut();
                [one, two].map(|taker| taker.join().expect("no panic")).concat()
            });
            assert!(taken.iter().all(|(set, window)| set.runs_within(*window).next().is_some()), "{taken:?}");
            let taken = taken.iter().flat_map(|(set, window)| set.runs_within(*window));
            let mut pages: Vec<u64> = taken.flat_map(|run| run.first..run.end()).collect();
            pages.extend(round.unsent().runs().flat_map(|run| run.first..run.end()));
            pages.sort_unstable();
            let mut all = set.clone();
            all.union(&later);
            assert_eq!(pages, all.runs().flat_map(|run| run.first..run.end()).collect::<Vec<_>>());
        }
    }

    #[test]
    fn the_second_set_is_taken_when_nothing_of_the_first_is_left() {
        let one = |first| PageSet::of_runs(1300, &[PageRun { first, count: 1 }]);
        let round = Round::new(0, false, one(1290)).ending_with(one(5));
        assert_eq!(round.len(), 2);
        let windows: Vec<_> = std::iter::from_fn(|| take(&round)).map(|(_, it)| it.first).collect();
        assert_eq!(windows, [1024, 0]);
        round.cut();
        assert!(round.unsent().is_empty());
    }

    /// What a page that is read before it is watched, or is watched again after it was read, costs: a write.
    #[test]
    fn a_window_is_watched_when_it_is_taken_and_not_again_and_far_fewer_calls_are_made_than_windows() {
        let run = |first, count| PageRun { first, count };
        let everywhere: Vec<_> = (0..3000).map(|nth| run(nth * 100, 1)).collect();
        let dense = [run(0, 40_000), run(40_100, 3_000), run(299_000, 1_100)];
        let sparse: Vec<_> = (0..2000).map(|nth| run(nth * 3000, 1)).collect();
        let cases = [(&everywhere[..], 300_100, 7), (&dense[..], 300_100, 18), (&sparse[..], 6_000_000, 6)];
        for (runs, limit, most) in cases {
            let set = PageSet::of_runs(limit, runs);
            let later = PageSet::of_runs(limit, &[run(43_200, 2_000)]).without(&set);
            let round = Round::new(0, false, set.clone()).ending_with(later.clone());
            let nth_of = |of: &PageSet| usize::from(*of == later);
            let watched = [&set, &later].map(|_| Mutex::new(PageSet::new(limit)));
            let taken = [&set, &later].map(|_| Mutex::new(PageSet::new(limit)));
            let (calls, windows) = (AtomicU64::new(0), AtomicU64::new(0));
            let watch = |of: &PageSet, ahead: PageRun| {
                calls.fetch_add(1, Ordering::Relaxed);
                // Time for the others, who wait.
                std::thread::yield_now();
                assert_eq!(taken[nth_of(of)].lock().unwrap().count_within(ahead), 0, "{ahead:?}");
                let mut watched = watched[nth_of(of)].lock().unwrap();
                of.runs_within(ahead).for_each(|run| watched.insert_run(run));
                Ok::<_, Infallible>(())
            };
            let take_all = || {
                while let Ok(Some((of, window))) = round.take_window(watch) {
                    windows.fetch_add(1, Ordering::Relaxed);
                    let seen = watched[nth_of(of)].lock().unwrap().count_within(window);
                    assert_eq!(seen, of.count_within(window), "{window:?}");
                    let mut taken = taken[nth_of(of)].lock().unwrap();
                    of.runs_within(window).for_each(|run| taken.insert_run(run));
                }
            };
            std::thread::scope(|scope| (0..3).for_each(|_| drop(scope.spawn(take_all))));
            for all in [watched, taken] {
                assert_eq!(all.map(|of| of.into_inner().unwrap()), [set.clone(), later.clone()]);
            }
            let (calls, windows) = (calls.into_inner(), windows.into_inner());
            // Of the second set there are 2000 pages or fewer: four calls at most.
            assert!(calls <= most + 4 && 4 * calls < windows, "{calls} calls, {windows} windows");
        }
    }

    #[test]
    fn a_window_that_cannot_be_watched_is_not_taken() {
        let round = Round::new(0, false, PageSet::of_runs(512, &[PageRun { first: 3, count: 1 }]));
        assert_eq!(round.take_window(|_, _| Err("refused")), Err("refused"));
        round.cut();
        assert_eq!(round.unsent().len(), 1);
    }

    #[test]
    fn in_the_pause_nothing_is_watched() {
        let round = Round::new(7, true, PageSet::of_runs(512, &[PageRun { first: 3, count: 1 }]));
        let taken = round.take_window(|_, _| Err("watched"));
        assert_eq!(taken.map(|window| window.is_some()), Ok(true));
    }

    #[test]
    fn kvm_is_not_kept_long_by_one_call() {
        let scattered = PageSet::of_runs(
            1 << 24,
            &(0..9000).map(|nth| PageRun { first: nth * 128, count: 1 }).collect::<Vec<_>>(),
        );
        assert_eq!(next_to_watch(&scattered, 0, 8192).count, 1024 * 128);
        let dense = PageSet::of_runs(1 << 24, &[PageRun { first: 0, count: 1 << 20 }]);
        assert_eq!(
            next_to_watch(&dense, WINDOW, u64::MAX),
            PageRun { first: WINDOW, count: WATCHED_AT_ONCE }
        );
        let far = PageSet::of_runs(1 << 24, &[0, (1 << 24) - 1].map(|first| PageRun { first, count: 1 }));
        assert_eq!(next_to_watch(&far, 0, 8192).count, LOOKED_AT_ONCE);
        assert_eq!(next_to_watch(&far, 1 << 23, 8192).end(), (1 << 23) + LOOKED_AT_ONCE);
    }

    #[test]
    fn what_nobody_has_taken_when_a_round_is_cut_is_left() {
        let set =
            PageSet::of_runs(3000, &[PageRun { first: 100, count: 900 }, PageRun { first: 2000, count: 7 }]);
        let round = Round::new(0, false, set.clone());
        assert_eq!(round.unsent().len(), 0, "not cut");
        assert_eq!(take(&round).unwrap().1, PageRun { first: 0, count: WINDOW });
        for _ in 0..2 {
            round.cut();
            assert!(take(&round).is_none(), "nothing more is taken");
            let left: Vec<_> = round.unsent().runs().collect();
            assert_eq!(left, [PageRun { first: 512, count: 488 }, PageRun { first: 2000, count: 7 }]);
        }
        let sent = Round::new(1, false, set);
        while take(&sent).is_some() {}
        sent.cut();
        assert_eq!(sent.unsent().len(), 0, "a round that has landed is not cut any more");
    }
}
