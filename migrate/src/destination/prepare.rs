//! Memory ahead of the stream: host pages that were never touched cost more than the copy into them.
//!
//! The source says at the start which pages round 0 will bring. Where there is a core for it a thread makes them ready
//! in the order of addresses, as most of them come; a stream that has overtaken it, or has none ahead of it, makes its own ready. Whoever claims a page prepares it: nobody does so twice,
//! and preparing never writes content, so it cannot race with data.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::alarm::{Alarm, Woken};
use crate::guest::Ram;
use crate::pages::{AtomicPageSet, PageRun, PageSet};
use crate::priority::{PORTION, Turns};

/// Shorter runs are left to be touched by the copy itself: a system call costs as much.
const WORTH_IT: u64 = 8;

#[derive(Debug)]
pub(super) struct Prepare {
    expected: AtomicPageSet,
    cursor: AtomicU64,
    /// Held while memory is prepared ahead; whether that is over.
    closed: Mutex<bool>,
}

impl Prepare {
    pub(super) fn new(limit: u64) -> Self {
        Self { expected: AtomicPageSet::new(limit), cursor: AtomicU64::new(0), closed: Mutex::new(false) }
    }

    /// These pages will come.
    pub(super) fn expect(&self, pages: &PageSet, alarm: &Alarm) {
        for run in pages.runs() {
            self.expected.insert_run(run);
        }
        alarm.nudge();
    }

    /// These pages need no memory.
    pub(super) fn spare(&self, run: PageRun) {
        self.expected.claim_run(run);
    }

    /// From here on nothing is prepared ahead: touches of missing pages are to be caught, and this would be one.
    pub(super) fn close(&self) {
        *self.closed.lock().unwrap_or_else(PoisonError::into_inner) = true;
    }

    /// These pages come now.
    pub(super) fn now(&self, run: PageRun, ram: &dyn Ram) {
        for won in self.expected.claim_run(run).into_iter().filter(|won| won.count >= WORTH_IT) {
            ram.prepare(won);
        }
    }

    /// Goes ahead of the streams until the arrival is over.
    pub(super) fn run_ahead(&self, ram: &dyn Ram, alarm: &Alarm, mut turns: Turns) {
        const FOR_EVER: Duration = Duration::from_secs(3600);
        while alarm.wait_until(FOR_EVER, || self.next().is_some()) != Woken::Stopped {
            while let Some(first) = self.next().filter(|_| !alarm.is_stopped()) {
                let closed = self.closed.lock().unwrap_or_else(PoisonError::into_inner);
                if *closed {
                    return;
                }
                self.now(PageRun { first, count: PORTION - first % PORTION }, ram);
                drop(closed);
                self.cursor.store(first / PORTION * PORTION + PORTION, Ordering::Relaxed);
                turns.offer_core();
            }
        }
    }

    fn next(&self) -> Option<u64> {
        self.expected.next_from(self.cursor.load(Ordering::Relaxed))
    }
}
