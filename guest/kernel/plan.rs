//! What all vCPUs do, decided once by the boot vCPU and read by all.
//!
//! Pages are numbered from 0 over the RAM the guest took. The first `working_set` of them are
//! written by the workload, the first `filled` have known content; either may be the larger.
//! Every vCPU owns its part of both, and nobody else touches it after boot.

use crate::args::{Args, Filling, Pattern, Sabotage};
use crate::console;
use crate::content;
use crate::cpu::header;
use crate::machine::{Machine, Span};
use crate::telemetry::{MAGIC, PAGE_SIZE, VERSION, header as page, state, workload};
use core::hint::spin_loop;
use core::ops::Range;
use core::ptr::null_mut;
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use core::sync::atomic::{AtomicPtr, AtomicU32};

const PAGES_PER_MIB: u64 = (1 << 20) / PAGE_SIZE;

pub(crate) struct Plan {
    pub(crate) vcpus: usize,
    pub(crate) tsc_khz: u64,
    pub(crate) tick_us: u64,
    pub(crate) workload: u64,
    pub(crate) rate: u64,
    pub(crate) pattern: Pattern,
    pub(crate) filling: Filling,
    pub(crate) sabotage: Sabotage,
    pub(crate) reset_after: Option<u64>,
    pub(crate) working_set: u64,
    pub(crate) filled: u64,
    memory_pages: u64,
    spans: [Span; 16],
    generations: u64,
}

/// A vCPU's own pages.
pub(crate) struct Share {
    pub(crate) working_set: Range<u64>,
    /// Filled pages outside the working set.
    pub(crate) rest: Range<u64>,
}

impl Plan {
    pub(crate) fn new(args: &Args, mut machine: Machine, vcpus: usize, tsc_khz: u64) -> Self {
        content::prepare(args.filling);
        let wanted = if args.workload == workload::DIRTY { args.working_set_mib } else { 0 };
        let ceiling = machine.free_pages();
        let table_pages = (wanted * PAGES_PER_MIB).min(ceiling).div_ceil(PAGE_SIZE / 4);
        let generations = machine.take(table_pages).expect("RAM for the table of generations");
        // SAFETY: just taken. Firmware may have been here before, so it is not taken for zeros.
        unsafe { core::ptr::write_bytes(generations as *mut u8, 0, (table_pages * PAGE_SIZE) as usize) };
        let free = machine.free_pages();
        let plan = Self {
            vcpus,
            tsc_khz,
            tick_us: args.tick_us,
            workload: args.workload,
            rate: args.rate,
            pattern: args.pattern,
            filling: args.filling,
            sabotage: args.sabotage,
            reset_after: args.reset_after,
            working_set: clip("ws", wanted, free),
            filled: clip("fill", args.fill_mib, free),
            memory_pages: machine.memory_pages,
            spans: machine.spans,
            generations,
        };
        plan.announce();
        plan
    }

    fn announce(&self) {
        console::line(format_args!(
            "{} vcpus, tsc {} kHz, filling {} MiB, working set {} MiB",
            self.vcpus,
            self.tsc_khz,
            self.filled / PAGES_PER_MIB,
            self.working_set / PAGES_PER_MIB,
        ));
        header(page::MEMORY_PAGES).store(self.memory_pages, Relaxed);
        header(page::TSC_KHZ).store(self.tsc_khz, Relaxed);
        header(page::VCPUS).store(self.vcpus as u64, Relaxed);
        header(page::WORKING_SET_PAGES).store(self.working_set, Relaxed);
        header(page::WORKLOAD).store(self.workload, Relaxed);
        header(page::TICK_US).store(self.tick_us, Relaxed);
        header(page::STATE).store(state::FILLING, Relaxed);
        header(page::VERSION).store(VERSION, Relaxed);
        // Last: who sees the magic sees the rest.
        header(page::MAGIC).store(MAGIC, Release);
    }

    /// Where this page is.
    #[inline(always)]
    pub(crate) fn address(&self, page: u64) -> *mut u64 {
        let mut left = page;
        for span in &self.spans {
            if left < span.pages {
                return (span.base + left * PAGE_SIZE) as *mut u64;
            }
            left -= span.pages;
        }
        panic!("page {page} is beyond RAM");
    }

    /// How often this page of the working set has been written.
    #[inline(always)]
    pub(crate) fn generation(&self, page: u64) -> &AtomicU32 {
        assert!(page < self.working_set);
        // SAFETY: the table has an aligned entry for each page of the working set, in RAM that
        // was taken for it.
        unsafe { AtomicU32::from_ptr((self.generations + page * 4) as *mut u32) }
    }

    pub(crate) fn share(&self, vcpu: usize) -> Share {
        let cut = |i: usize, pages: u64| pages * i as u64 / self.vcpus as u64;
        let rest = self.filled.saturating_sub(self.working_set);
        let first = self.working_set;
        Share {
            working_set: cut(vcpu, first)..cut(vcpu + 1, first),
            rest: first + cut(vcpu, rest)..first + cut(vcpu + 1, rest),
        }
    }
}

fn clip(name: &str, mib: u64, free: u64) -> u64 {
    let pages = mib * PAGES_PER_MIB;
    if pages > free {
        console::line(format_args!("{name}={mib} exceeds RAM, clipped to {} MiB", free / PAGES_PER_MIB));
    }
    pages.min(free)
}

static PLAN: AtomicPtr<Plan> = AtomicPtr::new(null_mut());

/// Shows the plan to all. Called once.
pub(crate) fn publish(plan: Plan) -> &'static Plan {
    static mut PLACE: core::mem::MaybeUninit<Plan> = core::mem::MaybeUninit::uninit();
    let place = (&raw mut PLACE).cast::<Plan>();
    // SAFETY: nobody reads the place before its address is published, below.
    unsafe { place.write(plan) };
    PLAN.store(place, Release);
    wait()
}

/// Waits for the plan.
pub(crate) fn wait() -> &'static Plan {
    loop {
        let plan = PLAN.load(Acquire);
        if !plan.is_null() {
            // SAFETY: published after it was written, and not written again.
            return unsafe { &*plan };
        }
        spin_loop();
    }
}
