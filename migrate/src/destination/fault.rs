//! Post-copy's destination: which pages are missing, who waits for them, and putting them in place.
//!
//! [`Placing`] owns the set of missing pages. Whoever takes a page out of it places it, so each is placed once; pushed ones perhaps
//! when the rest of their block has come ([`gather`](super::gather)).
//! A touch of a page that was never missing is a hole: it is zero, and placed as such.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::context::Context;
use super::gather::Gathering;
use crate::channel::Deadlines;
use crate::channel::line::Line;
use crate::failure::Failure;
use crate::guest::{self, Faults};
use crate::pages::{AtomicPageSet, PAGE_SIZE, PageRun, PageSet};
use crate::report::Postcopy;
use crate::wire::limits::REQUESTS_PER_FRAME;
use crate::wire::{Admitted, Head, Message};

/// How long one wait for faults may be: bounds how late the end of a lost migration is noticed here.
const LOOK_UP: Duration = Duration::from_millis(100);

pub(super) struct Placing {
    pub(super) faults: Arc<dyn Faults>,
    /// Missing when the guest started. Grows until then.
    missing: AtomicPageSet,
    missing_pages: AtomicU64,
    /// Not taken out by anyone yet.
    pub(super) unplaced: AtomicPageSet,
    /// Not in place yet.
    remaining: AtomicU64,
    /// Asked for and not in place yet, and since when.
    pub(super) requested: AtomicPageSet,
    waits: Mutex<Waits>,
    /// Taken out, at hand, and not in place yet.
    pub(super) gathering: Gathering,
    duplicates: AtomicU64,
    /// Decided once, by whoever comes first: the score (commit) or the faults' thread (the arrival has failed).
    fate: Mutex<Fate>,
    told: AtomicBool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// The guest does not run here yet, and its state may be being restored.
    Open,
    /// The state is in place, and ready was said: it waits for commit, through losses of the link too.
    Ready,
    /// The guest runs, since then.
    Running(Instant),
    /// The arrival has failed; who hung in a fault was let go, so the guest must not run here.
    LetGo,
}

/// Fault latencies. One lock for the requesting thread and the placing ones: taken for requested pages only.
#[derive(Debug, Default)]
struct Waits {
    since: HashMap<u64, Instant>,
    served_us: Vec<u32>,
    requests: u64,
    last_page_us: u64,
}

/// Nobody sees touches any more, however that came about.
struct Watched<'a>(&'a Placing);

impl Drop for Watched<'_> {
    /// Before ready the machine is thrown away: whoever hangs in a fault meanwhile, a restore perhaps, must be let go. After it
    /// nothing may be let go: the missing pages would read as zero.
    fn drop(&mut self) {
        let mut fate = self.0.fate();
        if *fate == Fate::Open {
            *fate = Fate::LetGo;
            self.0.faults.close();
        }
    }
}

/// Missing pages that somebody has touched.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Touched {
    /// To be requested.
    pub(super) wanted: Vec<u64>,
    /// On their way into place, or at hand.
    pub(super) at_hand: Vec<u64>,
}

/// When pages came last: bytes received by then.
struct Sign {
    bytes: u64,
    since: Instant,
    /// When this conversation began: what was waited for before it says nothing against the source.
    began: Instant,
}

impl Placing {
    pub(super) fn new(faults: Arc<dyn Faults>, missing: &PageSet) -> Self {
        Self {
            faults,
            missing: AtomicPageSet::from_set(missing),
            missing_pages: AtomicU64::new(missing.len()),
            unplaced: AtomicPageSet::from_set(missing),
            remaining: AtomicU64::new(missing.len()),
            requested: AtomicPageSet::new(missing.limit()),
            waits: Mutex::default(),
            gathering: Gathering::default(),
            duplicates: AtomicU64::new(0),
            fate: Mutex::new(Fate::Open),
            told: AtomicBool::new(false),
        }
    }

    /// These are missing too. Before the guest runs.
    pub(super) fn miss(&self, more: &PageSet) -> Result<(), Failure> {
        // From here on a touch is no hole's, but not requested either: nobody touches anything yet.
        for run in more.runs() {
            self.missing_pages.fetch_add(self.missing.insert_run(run), Ordering::Relaxed);
        }
        self.faults.discard(more).map_err(Failure::guest("discard stale pages"))?;
        for run in more.runs() {
            // Never too few remain, should one of them be placed meanwhile.
            self.remaining.fetch_add(run.count, Ordering::AcqRel);
            let added = self.unplaced.insert_run(run);
            self.remaining.fetch_sub(run.count - added, Ordering::AcqRel);
        }
        Ok(())
    }

    /// Pages not in place yet.
    pub(super) fn remaining(&self) -> u64 {
        self.remaining.load(Ordering::Acquire)
    }

    /// Places pages that came with `content`.
    pub(super) fn place(
        &self,
        context: &Context<'_>,
        pages: Admitted<'_>,
        content: &[u8],
    ) -> Result<(), Failure> {
        let mut rest = content;
        for run in pages.runs() {
            let (mine, others) = rest.split_at(run.bytes() as usize);
            rest = others;
            self.put(*run, |won| {
                let at = (won.first - run.first) as usize * PAGE_SIZE;
                self.faults.place(won, &mine[at..at + won.bytes() as usize])
            })?;
        }
        self.break_up_around(pages.runs())?;
        self.tell_if_complete(context)
    }

    /// Places zero pages.
    pub(super) fn place_zeros(&self, context: &Context<'_>, pages: Admitted<'_>) -> Result<(), Failure> {
        pages.runs().iter().try_for_each(|run| self.put(*run, |won| self.faults.place_zeros(won)))?;
        self.break_up_around(pages.runs())?;
        self.tell_if_complete(context)
    }

    fn put(&self, run: PageRun, place: impl Fn(PageRun) -> guest::Result<()>) -> Result<(), Failure> {
        self.place_won(&self.take(run), place)
    }

    /// Takes out what nobody has taken out yet; it is the caller's to place.
    pub(super) fn take(&self, run: PageRun) -> Vec<PageRun> {
        let won = self.unplaced.claim_run(run);
        let count: u64 = won.iter().map(|run| run.count).sum();
        self.duplicates.fetch_add(run.count - count, Ordering::Relaxed);
        won
    }

    /// Places what was taken out.
    pub(super) fn place_won(
        &self,
        won: &[PageRun],
        place: impl Fn(PageRun) -> guest::Result<()>,
    ) -> Result<(), Failure> {
        for (at, run) in won.iter().enumerate() {
            if let Err(error) = place(*run) {
                // They are missing still: a source that comes back is to send them again.
                for run in &won[at..] {
                    self.unplaced.insert_run(*run);
                }
                return Err(Failure::guest("place pages")(error));
            }
            self.served(*run);
            self.remaining.fetch_sub(run.count, Ordering::AcqRel);
        }
        Ok(())
    }

    /// Somebody may have waited for pages of `run`.
    fn served(&self, run: PageRun) {
        for served in self.requested.claim_run(run) {
            let mut waits = self.waits();
            for gfn in served.first..served.end() {
                if let Some(since) = waits.since.remove(&gfn) {
                    waits.served_us.push(since.elapsed().as_micros().min(u128::from(u32::MAX)) as u32);
                }
            }
        }
    }

    /// The state is in place. False when the arrival has failed before, and who hung in a fault was let go: the guest must
    /// never run.
    pub(super) fn set_ready(&self) -> bool {
        let mut fate = self.fate();
        if *fate == Fate::Open {
            *fate = Fate::Ready;
        }
        *fate == Fate::Ready
    }

    /// Whether all that is missing has been named, and no touch was let go.
    pub(super) fn is_settled(&self) -> bool {
        matches!(*self.fate(), Fate::Ready | Fate::Running(_))
    }

    /// Pages that are missing still.
    pub(super) fn missing(&self) -> PageSet {
        self.unplaced.snapshot()
    }

    /// The guest runs, and the source knows.
    pub(super) fn set_running(&self, since: Instant, context: &Context<'_>) -> Result<(), Failure> {
        {
            let mut fate = self.fate();
            if !matches!(*fate, Fate::Running(_)) {
                *fate = Fate::Running(since);
            }
        }
        self.tell_if_complete(context)
    }

    /// Says once that nothing is missing, when that is so and the guest runs.
    pub(super) fn tell_if_complete(&self, context: &Context<'_>) -> Result<(), Failure> {
        if self.remaining() > 0 {
            return Ok(());
        }
        let Fate::Running(since) = *self.fate() else { return Ok(()) };
        if self.told.swap(true, Ordering::AcqRel) {
            return Ok(());
        }
        self.waits().last_page_us = since.elapsed().as_micros() as u64;
        self.faults.close();
        context.control.tell(&Message::Complete(self.figures()))
    }

    /// Post-copy's figures so far.
    pub(super) fn figures(&self) -> Postcopy {
        let mut waits = self.waits();
        waits.served_us.sort_unstable();
        let percentile = |part: usize| {
            let at = (waits.served_us.len() * part).div_ceil(100).saturating_sub(1);
            waits.served_us.get(at).map_or(0, |us| u64::from(*us))
        };
        Postcopy {
            missing_pages: self.missing_pages.load(Ordering::Relaxed),
            faults: waits.requests,
            fault_p50_us: percentile(50),
            fault_p90_us: percentile(90),
            fault_p99_us: percentile(99),
            fault_max_us: percentile(100),
            last_page_us: waits.last_page_us,
            duplicate_pages: self.duplicates.load(Ordering::Relaxed),
        }
    }

    /// Requests again what was requested when the link was lost.
    pub(super) fn request_again(&self, urgent: &Line) -> Result<(), Failure> {
        let wanted: Vec<u64> = {
            let mut waits = self.waits();
            waits.since.retain(|gfn, _| self.unplaced.contains(*gfn));
            waits.since.keys().copied().collect()
        };
        ask_for(&wanted, urgent)
    }

    /// Sees touches of missing pages and requests them, until nothing is missing or the conversation is over.
    pub(super) fn watch(&self, context: &Context<'_>, urgent: &Line) {
        let _end = Watched(self);
        let mut touched = Vec::new();
        let now = Instant::now();
        let mut sign = Sign { bytes: context.landing.traffic().bytes, since: now, began: now };
        while !self.told.load(Ordering::Acquire) && !context.alarm.is_stopped() {
            touched.clear();
            // What a touch broke up is copied a part at a time, so that the next touch waits for no more than that.
            let wait = if self.is_to_copy() { Duration::ZERO } else { LOOK_UP };
            let seen = self.faults.wait(wait, &mut touched).map_err(Failure::guest("catch faults"));
            let asked = seen.and_then(|()| self.request(&touched, urgent));
            let copied = asked.and_then(|()| self.copy_part());
            let placed = copied.and_then(|()| self.tell_if_complete(context));
            let watched = placed.and_then(|()| self.check_patience(context, &mut sign));
            // Once nothing is missing nothing is caught any more: a touch that was seen just before has been let go, and
            // to answer it fails.
            if let (Err(failure), false) = (watched, self.told.load(Ordering::Acquire)) {
                context.alarm.trip(failure);
            }
        }
    }

    /// While nobody can be asked: fills holes, and notes who waits for what.
    pub(super) fn watch_alone(&self, over: &AtomicBool) {
        let mut touched = Vec::new();
        while !over.load(Ordering::Acquire) {
            touched.clear();
            // A host that cannot catch faults any more shows when the source is back: its pages cannot be placed.
            let seen = self.faults.wait(LOOK_UP, &mut touched).map_err(Failure::guest("catch faults"));
            if seen.and_then(|()| self.note(&touched)).is_err() {
                return;
            }
        }
    }

    fn request(&self, touched: &[u64], urgent: &Line) -> Result<(), Failure> {
        let Touched { wanted, at_hand } = self.note(touched)?;
        ask_for(&wanted, urgent)?;
        at_hand.iter().try_for_each(|gfn| self.place_at_hand(*gfn))
    }

    /// Notes who waits since now, and for what.
    pub(super) fn note(&self, touched: &[u64]) -> Result<Touched, Failure> {
        let now = Instant::now();
        let Touched { mut wanted, mut at_hand } = Touched::default();
        for gfn in touched {
            if !self.missing.contains(*gfn) {
                self.faults.fill_hole(*gfn).map_err(Failure::guest("place a zero page"))?;
            } else if !self.unplaced.contains(*gfn) {
                at_hand.push(*gfn);
            } else if !self.requested.contains(*gfn) {
                self.waits().since.insert(*gfn, now);
                self.requested.insert_run(PageRun { first: *gfn, count: 1 });
                // Who took the page out meanwhile may have looked for waiters before this one was entered.
                if self.is_away(*gfn) {
                    wanted.push(*gfn);
                    continue;
                }
                if self.requested.claim(*gfn) {
                    self.waits().since.remove(gfn);
                }
                at_hand.push(*gfn);
            }
        }
        self.waits().requests += wanted.len() as u64;
        Ok(Touched { wanted, at_hand })
    }

    /// While a page is waited for, something must come: a restore that waits for one hears nothing else. One page
    /// may be late behind others, which says nothing against the source.
    fn check_patience(&self, context: &Context<'_>, sign: &mut Sign) -> Result<(), Failure> {
        let bytes = context.landing.traffic().bytes;
        if bytes != sign.bytes {
            *sign = Sign { bytes, since: Instant::now(), ..*sign };
        }
        let Some(first) = self.waits().since.values().min().copied() else { return Ok(()) };
        let waited = first.elapsed().min(sign.began.elapsed());
        let (fate, Deadlines { pause, idle, .. }) = (*self.fate(), context.deadlines);
        let after = if matches!(fate, Fate::Open | Fate::Ready) { pause } else { idle };
        // A restore that hangs can be called back by nobody else, whatever else comes meanwhile.
        let longest = if fate == Fate::Open { idle.max(pause) } else { Duration::MAX };
        if waited >= longest || waited >= after && sign.since.elapsed() >= after {
            let after = if waited >= longest { longest } else { after };
            return Err(Failure::Silent { peer: context.control.peer().to_owned(), after });
        }
        Ok(())
    }

    fn fate(&self) -> MutexGuard<'_, Fate> {
        self.fate.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn waits(&self) -> MutexGuard<'_, Waits> {
        self.waits.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn ask_for(wanted: &[u64], urgent: &Line) -> Result<(), Failure> {
    wanted
        .chunks(REQUESTS_PER_FRAME)
        .try_for_each(|gfns| urgent.tell(&Message::Request { gfns: gfns.to_vec() }))
}

impl Context<'_> {
    /// The pages being placed; before any are missing there is nothing to place.
    pub(super) fn placing(&self, line: &Line, head: &Head) -> Result<&Placing, Failure> {
        self.placing.get().map(Arc::as_ref).ok_or_else(|| line.unexpected(head.kind, "pages to land"))
    }
}
