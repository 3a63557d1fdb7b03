//! Memory ahead of the stream: host pages that were never touched cost more than the copy into them.
//!
//! The source says at the start which pages round 0 will bring. A thread makes them ready in sending order;
//! a stream that has overtaken it makes its own ready. Whoever claims a page prepares it: nobody does so twice,
//! and preparing never writes content, so it cannot race with data.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::alarm::{Alarm, Woken};
use crate::guest::Ram;
use crate::pages::{AtomicPageSet, PageRun, PageSet};
use crate::priority::{PORTION, offer_core};

/// Shorter runs are left to be touched by the copy itself: a system call costs as much.
const WORTH_IT: u64 = 8;

#[derive(Debug)]
pub(super) struct Prepare {
    expected: AtomicPageSet,
    cursor: AtomicU64,
}

impl Prepare {
    pub(super) fn new(limit: u64) -> Self {
        Self { expected: AtomicPageSet::new(limit), cursor: AtomicU64::new(0) }
    }

    /// These pages will come.
    pub(super) fn expect(&self, pages: &PageSet, alarm: &Alarm) {
        pages.runs().for_each(|run| self.expected.insert_run(run));
        alarm.nudge();
    }

    /// These pages will not come after all.
    pub(super) fn forget(&self, run: PageRun) {
        self.expected.claim_run(run);
    }

    /// These pages come now.
    pub(super) fn now(&self, run: PageRun, ram: &dyn Ram) {
        for won in self.expected.claim_run(run).into_iter().filter(|won| won.count >= WORTH_IT) {
            ram.prepare(won);
        }
    }

    /// Goes ahead of the streams until the arrival is over.
    pub(super) fn run_ahead(&self, ram: &dyn Ram, alarm: &Alarm) {
        const FOR_EVER: Duration = Duration::from_secs(3600);
        while alarm.wait_until(FOR_EVER, || self.next().is_some()) != Woken::Stopped {
            while let Some(first) = self.next().filter(|_| !alarm.is_stopped()) {
                self.now(PageRun { first, count: PORTION - first % PORTION }, ram);
                self.cursor.store(first / PORTION * PORTION + PORTION, Ordering::Relaxed);
                offer_core();
            }
        }
    }

    fn next(&self) -> Option<u64> {
        self.expected.next_from(self.cursor.load(Ordering::Relaxed))
    }
}
