//! The line vCPU 0 prints every second of work.

use crate::console;
use crate::cpu::{header, vcpu};
use crate::plan::Plan;
use crate::telemetry::{header as head, vcpu as page};
use core::sync::atomic::Ordering::Relaxed;

pub(crate) struct Reporter {
    vcpus: usize,
    tsc_khz: u64,
    start: u64,
    /// None until work begins.
    last: Option<u64>,
    last_work: u64,
}

impl Reporter {
    pub(crate) fn new(plan: &Plan, now: u64) -> Self {
        Self { vcpus: plan.vcpus, tsc_khz: plan.tsc_khz, start: now, last: None, last_work: 0 }
    }

    pub(crate) fn begin_work(&mut self, now: u64) {
        self.last = Some(now);
    }

    #[inline(always)]
    pub(crate) fn turn(&mut self, now: u64) {
        if let Some(last) = self.last
            && now.wrapping_sub(last) >= self.tsc_khz * 1000
        {
            self.report(now, now.wrapping_sub(last));
        }
    }

    #[cold]
    fn report(&mut self, now: u64, elapsed: u64) {
        let all = 0..self.vcpus;
        let sum = |offset| all.clone().map(|i| vcpu(i, offset).load(Relaxed)).sum::<u64>();
        let reset_max = |offset| all.clone().map(|i| vcpu(i, offset).swap(0, Relaxed)).max().unwrap_or(0);
        let us = |cycles: u64| cycles.saturating_mul(1000) / self.tsc_khz;
        let (work, verified) = (sum(page::WORK), sum(page::VERIFIED));
        let tenths = us(now.saturating_sub(self.start)) / 100_000;
        let rate = u128::from(work - self.last_work) * u128::from(self.tsc_khz) * 1000 / u128::from(elapsed);
        let gap = us(reset_max(page::GAP_REPORT));
        let tick_gap = us(reset_max(page::TICK_GAP_REPORT)) / 100;
        console::line(format_args!(
            "t={}.{}s work={rate}/s gap={gap}us tick-gap={}.{}ms verified={verified} corrupt={}",
            tenths / 10,
            tenths % 10,
            tick_gap / 10,
            tick_gap % 10,
            header(head::CORRUPTIONS).load(Relaxed),
        ));
        (self.last, self.last_work) = (Some(now), work);
    }
}
