//! A vCPU's sense of time: what every turn of every loop does first.
//!
//! The gap between two turns is the guest's own measure of having been stopped. Everything is
//! written to the vCPU's telemetry page, which is the only page an idle vCPU's turns dirty.

use crate::console;
use crate::cpu::{header, is_due, tsc, vcpu};
use crate::oracle::violation;
use crate::plan::Plan;
use crate::report::Reporter;
use crate::telemetry::{HISTORY_ENTRIES, HISTORY_PERIOD_MS, corruption, header as head, vcpu as page};
use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::Relaxed;

pub(crate) struct Pulse {
    pub(crate) index: usize,
    /// Done so far; the workload counts, every turn publishes.
    pub(crate) work: u64,
    /// TSC at the last turn.
    pub(crate) last: u64,
    ticks: u64,
    ticks_backwards: u64,
    window: u64,
    history_period: u64,
    history_next: u64,
    /// vCPU 0 also sends the console's characters and reports.
    duties: Option<(console::Sender, Reporter)>,
}

impl Pulse {
    pub(crate) fn new(index: usize, plan: &Plan) -> Self {
        let now = tsc();
        let duties = (console::Sender::new(plan.tsc_khz), Reporter::new(plan, now));
        Self {
            index,
            work: 0,
            last: now,
            ticks: 0,
            ticks_backwards: 0,
            window: 0,
            history_period: plan.tsc_khz * HISTORY_PERIOD_MS,
            history_next: now,
            duties: (index == 0).then_some(duties),
        }
    }

    /// From here on gaps count: those of booting and filling are the host's first touches.
    pub(crate) fn begin_work(&mut self) {
        for maximum in [page::GAP_MAX, page::GAP_REPORT, page::TICK_GAP_MAX, page::TICK_GAP_REPORT] {
            self.field(maximum).store(0, Relaxed);
        }
        self.last = tsc();
        if let Some((_, reporter)) = &mut self.duties {
            reporter.begin_work(self.last);
        }
    }

    /// Takes the time, and returns it.
    #[inline(always)]
    pub(crate) fn turn(&mut self) -> u64 {
        let now = tsc();
        self.check_time(now);
        self.note_gap(now.saturating_sub(self.last), true);
        self.last = now;
        self.field(page::LAST_TSC).store(now, Relaxed);
        self.field(page::WORK).store(self.work, Relaxed);
        let request = header(head::WINDOW_REQUEST).load(Relaxed);
        if request != self.window {
            self.open_window(request);
        }
        if is_due(now, self.history_next, self.history_period) {
            self.note_history(now);
        }
        if let Some((sender, reporter)) = &mut self.duties {
            sender.turn(now);
            reporter.turn(now);
        }
        now
    }

    #[inline(always)]
    fn field(&self, offset: usize) -> &'static AtomicU64 {
        vcpu(self.index, offset)
    }

    #[inline(always)]
    fn check_time(&mut self, now: u64) {
        if now < self.last {
            violation(corruption::TSC, self.index as u64, self.last, now);
        }
        let ticks = self.field(page::TICKS).load(Relaxed);
        if ticks < self.ticks {
            violation(corruption::TICK_COUNT, self.index as u64, self.ticks, ticks);
        }
        self.ticks = ticks;
        let backwards = self.field(page::TICKS_BACKWARDS).load(Relaxed);
        if backwards != self.ticks_backwards {
            violation(corruption::TICK_TSC, self.index as u64, self.ticks_backwards, backwards);
            self.ticks_backwards = backwards;
        }
    }

    /// The window is this vCPU's only once it was acknowledged, hence the last argument.
    #[inline(always)]
    fn note_gap(&self, gap: u64, windowed: bool) {
        let raise = |offset| {
            let field = self.field(offset);
            if gap > field.load(Relaxed) {
                field.store(gap, Relaxed);
            }
        };
        raise(page::GAP_MAX);
        raise(page::GAP_REPORT);
        if windowed && gap > self.field(page::WINDOW_GAP).load(Relaxed) {
            self.field(page::WINDOW_GAP_FROM).store(self.last, Relaxed);
            self.field(page::WINDOW_GAP).store(gap, Relaxed);
        }
    }

    /// The request may have become visible just after a stall, which then is not the window's:
    /// so the time is read once more, and the window begins there.
    #[cold]
    fn open_window(&mut self, request: u64) {
        let now = tsc();
        self.note_gap(now.saturating_sub(self.last), false);
        self.last = now;
        self.field(page::WINDOW_GAP).store(0, Relaxed);
        self.field(page::WINDOW_TICK_FROM).store(now, Relaxed);
        self.field(page::WINDOW_TICK_GAP).store(0, Relaxed);
        self.field(page::WINDOW_ACK).store(request, Relaxed);
        self.window = request;
    }

    #[cold]
    fn note_history(&mut self, now: u64) {
        let index = self.field(page::HISTORY_INDEX).load(Relaxed);
        let entry = page::HISTORY + index as usize % HISTORY_ENTRIES * 16;
        self.field(entry).store(now, Relaxed);
        self.field(entry + 8).store(self.work, Relaxed);
        self.field(page::HISTORY_INDEX).store(index + 1, Relaxed);
        self.history_next += self.history_period;
        if is_due(now, self.history_next, self.history_period) {
            self.history_next = now + self.history_period;
        }
    }
}
