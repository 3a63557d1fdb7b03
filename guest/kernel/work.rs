//! What vCPUs do all day. Every loop is made of turns of a few microseconds: time first, then a
//! bounded piece of work, then now and then a page checked.

use crate::args::{Pattern, RATE_MAX, Sabotage};
use crate::console;
use crate::content::{mix, xorshift};
use crate::cpu::{header, is_due, outb, vcpu};
use crate::oracle;
use crate::plan::{Plan, Share};
use crate::pulse::Pulse;
use crate::telemetry::{corruption, header as head, vcpu as page, workload};
use core::hint::black_box;
use core::ops::Range;
use core::sync::atomic::Ordering::Relaxed;

/// Pages filled in a turn; and as many pages a writer may be behind before it gives the rest up.
const BATCH: u64 = 8;
const VERIFY_US: u64 = 100;
/// Being late by more than this is a stall, which is not made up for.
const STALL_US: u64 = 1000;
const SABOTAGE_MS: u64 = 2000;

/// Fills this vCPU's share.
pub(crate) fn fill(plan: &Plan, pulse: &mut Pulse) {
    let share = plan.share(pulse.index);
    let working_set = share.working_set.start..share.working_set.end.min(plan.filled);
    for pages in [working_set, share.rest] {
        for first in pages.clone().step_by(BATCH as usize) {
            pulse.turn();
            let batch = first..pages.end.min(first + BATCH);
            let filled = batch.end - batch.start;
            for number in batch {
                oracle::fill(plan, number);
                if number < plan.working_set {
                    oracle::stamp(plan, number);
                }
            }
            header(head::FILLED_PAGES).fetch_add(filled, Relaxed);
        }
    }
}

/// The work loop.
pub(crate) fn work(plan: &Plan, pulse: &mut Pulse) -> ! {
    let share = plan.share(pulse.index);
    let mut verifier = Verifier::new(plan, &share, pulse.last);
    let mut saboteur = Saboteur::new(plan, pulse);
    let reset = Reset::new(plan, pulse);
    let mut extra = |now: u64, pulse: &mut Pulse| {
        verifier.turn(plan, now, pulse.index);
        saboteur.turn(plan, now, pulse);
        reset.turn(now);
    };
    match plan.workload {
        workload::DIRTY if !share.working_set.is_empty() && plan.rate > 0 => {
            let mut dirtier = Dirtier::new(plan, share.working_set.clone(), pulse.last);
            loop {
                let now = pulse.turn();
                pulse.work += dirtier.turn(plan, now);
                extra(now, pulse);
            }
        }
        workload::COMPUTE => loop {
            let now = pulse.turn();
            compute(pulse);
            extra(now, pulse);
        },
        _ => loop {
            let now = pulse.turn();
            pulse.work += u64::from(plan.workload == workload::IDLE);
            extra(now, pulse);
        },
    }
}

/// Writes pages of a vCPU's part of the working set at an even pace.
struct Dirtier {
    pages: Range<u64>,
    pattern: Pattern,
    /// Cycles between two pages; 0 for as fast as it goes.
    interval: u64,
    stall: u64,
    due: u64,
    cursor: u64,
    random: u64,
}

impl Dirtier {
    fn new(plan: &Plan, pages: Range<u64>, now: u64) -> Self {
        let interval = match plan.rate {
            RATE_MAX => 0,
            rate => plan.tsc_khz * 1000 * plan.vcpus as u64 / rate,
        };
        Self {
            pattern: plan.pattern,
            interval,
            stall: plan.tsc_khz * STALL_US / 1000,
            due: now,
            cursor: pages.start,
            random: mix(pages.start) | 1,
            pages,
        }
    }

    /// Writes a page if one is due, and returns how many that was. One at most: each may be missing and wait for
    /// another host, and those waits must not add up between two readings of the time.
    #[inline(always)]
    fn turn(&mut self, plan: &Plan, now: u64) -> u64 {
        if !is_due(now, self.due, self.interval) {
            return 0;
        }
        let late = now.wrapping_sub(self.due);
        self.due += self.interval;
        if late > self.stall.max(BATCH * self.interval) || self.interval == 0 {
            self.due = now + self.interval;
        }
        let page = self.next();
        oracle::dirty(plan, page);
        1
    }

    #[inline(always)]
    fn next(&mut self) -> u64 {
        let pages = self.pages.end - self.pages.start;
        if self.pattern == Pattern::Sequential {
            let page = self.cursor;
            self.cursor = if page + 1 == self.pages.end { self.pages.start } else { page + 1 };
            return page;
        }
        self.random = xorshift(self.random);
        // High bits scaled, not a remainder: no division.
        let below = |limit: u64| ((self.random >> 32) * limit) >> 32;
        let hot = self.pattern == Pattern::Hot && (self.random & 0xffff) < 0xffff / 10 * 9;
        self.pages.start + if hot { below(pages.div_ceil(10)) } else { below(pages) }
    }
}

/// One unit of computing: an integer forth and back again, a floating-point number twice. Both live
/// in registers throughout, so a register restored wrongly is found.
fn compute(pulse: &mut Pulse) {
    const MULTIPLIER: u64 = 0x5851_f42d_4c95_7f2d;
    const INVERSE: u64 = inverse(MULTIPLIER);
    let seed = mix(pulse.work);
    let mut x = black_box(seed);
    for _ in 0..1024 {
        x = x.wrapping_mul(MULTIPLIER).rotate_left(17);
    }
    for _ in 0..1024 {
        x = x.rotate_right(17).wrapping_mul(INVERSE);
    }
    // The logistic map is chaotic: one wrong bit changes all of them.
    let (mut y, mut z) = (black_box(0.3_f64), black_box(0.3_f64));
    for _ in 0..512 {
        y = 3.99 * y * (1.0 - y);
        z = 3.99 * z * (1.0 - z);
    }
    if x != seed {
        oracle::violation(corruption::COMPUTE, pulse.index as u64, seed, x);
    }
    if y.to_bits() != z.to_bits() {
        oracle::violation(corruption::COMPUTE, pulse.index as u64, y.to_bits(), z.to_bits());
    }
    pulse.work += 1;
}

/// Modulo 2^64, of an odd number: Newton's iteration doubles the correct bits, five from the start.
const fn inverse(odd: u64) -> u64 {
    let mut x = odd.wrapping_mul(3) ^ 2;
    let mut round = 0;
    while round < 4 {
        x = x.wrapping_mul(2_u64.wrapping_sub(odd.wrapping_mul(x)));
        round += 1;
    }
    x
}

/// Checks the vCPU's pages in turn, one at a time, whether the workload touches them or not.
struct Verifier {
    ranges: [Range<u64>; 2],
    range: usize,
    next: u64,
    due: u64,
    period: u64,
    none: bool,
}

impl Verifier {
    fn new(plan: &Plan, share: &Share, now: u64) -> Self {
        let ranges = [share.working_set.clone(), share.rest.clone()];
        Self {
            range: 0,
            next: ranges[0].start,
            due: now,
            period: plan.tsc_khz * VERIFY_US / 1000,
            none: ranges.iter().all(|range| range.is_empty()),
            ranges,
        }
    }

    #[inline(always)]
    fn turn(&mut self, plan: &Plan, now: u64, index: usize) {
        if !self.none && is_due(now, self.due, self.period) {
            self.due = now + self.period;
            self.verify(plan, index);
        }
    }

    #[inline(never)]
    fn verify(&mut self, plan: &Plan, index: usize) {
        while self.next >= self.ranges[self.range].end {
            self.range ^= 1;
            self.next = self.ranges[self.range].start;
        }
        oracle::verify(plan, self.next);
        self.next += 1;
        vcpu(index, page::VERIFIED).fetch_add(1, Relaxed);
    }
}

/// Resets the machine, on request.
struct Reset {
    at: Option<u64>,
}

impl Reset {
    /// vCPU 0 alone has the ports.
    fn new(plan: &Plan, pulse: &Pulse) -> Self {
        let after = plan.reset_after.filter(|_| pulse.index == 0);
        Self { at: after.map(|seconds| pulse.last + plan.tsc_khz * 1000 * seconds) }
    }

    #[inline(always)]
    fn turn(&self, now: u64) {
        if self.at.is_some_and(|at| now >= at) {
            reset();
        }
    }
}

/// The keyboard controller's command that pulses the processor's reset line.
#[cold]
fn reset() {
    console::line(format_args!("resetting"));
    console::flush();
    outb(0x64, 0xfe);
}

/// Breaks one thing once, on request: the oracle's own test.
struct Saboteur {
    deed: Sabotage,
    at: u64,
}

impl Saboteur {
    fn new(plan: &Plan, pulse: &Pulse) -> Self {
        let deed = if pulse.index == 0 { plan.sabotage } else { Sabotage::None };
        Self { deed, at: pulse.last + plan.tsc_khz * SABOTAGE_MS }
    }

    #[inline(always)]
    fn turn(&mut self, plan: &Plan, now: u64, pulse: &mut Pulse) {
        if self.deed != Sabotage::None && now > self.at {
            let deed = core::mem::replace(&mut self.deed, Sabotage::None);
            strike(deed, plan, pulse);
        }
    }
}

#[cold]
fn strike(deed: Sabotage, plan: &Plan, pulse: &mut Pulse) {
    let flip = |page, at| {
        oracle::word(plan, page, at).fetch_xor(0x40, Relaxed);
    };
    match deed {
        Sabotage::Stamp if plan.working_set > 0 => flip(0, 256),
        Sabotage::Generation if plan.working_set > 0 => flip(0, 511),
        Sabotage::Content if plan.filled > 0 => flip(0, 100),
        Sabotage::Ticks => vcpu(0, page::TICKS).store(0, Relaxed),
        Sabotage::Tsc => pulse.last += plan.tsc_khz * 10,
        Sabotage::Fault => {
            // SAFETY: not at all: the address is not canonical, the access faults, as is wanted.
            unsafe { black_box((1_u64 << 63) as *const u64).read_volatile() };
        }
        _ => {}
    }
}
