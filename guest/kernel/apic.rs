//! The local APIC, driven from ring 3 by its memory-mapped registers: ticks, starting vCPUs, and
//! the frequency of the TSC where nobody tells it.
//!
//! Its timer counts at 1 GHz on KVM (`APIC_BUS_CYCLE_NS`) and on QEMU. Where the TSC's frequency is
//! neither given nor in CPUID it is measured against that timer, and not against the PIT: KVM
//! has the PIT's gate (port 0x61) only if asked, and a port costs an exit.

use crate::cpu::{spin, tsc, vcpu};
use crate::ring0;
use crate::telemetry::vcpu as page;
use core::arch::x86_64::__cpuid;
use core::ptr::addr_of;
use core::sync::atomic::Ordering::Relaxed;

const BASE: usize = 0xfee0_0000;
const ID: usize = 0x020;
const SPURIOUS: usize = 0x0f0;
const COMMAND: usize = 0x300;
const TIMER: usize = 0x320;
const INITIAL_COUNT: usize = 0x380;
const CURRENT_COUNT: usize = 0x390;
const DIVIDE: usize = 0x3e0;

const PERIODIC: u32 = 1 << 17;
const MASKED: u32 = 1 << 16;
const DIVIDE_BY_1: u32 = 0xb;
const COUNTS_PER_US: u64 = 1000;
/// Edge, assert, all but self; INIT or start-up (APM volume 2, 16.5).
const INIT_OTHERS: u32 = 0x000c_4500;
const START_OTHERS: u32 = 0x000c_4600;

fn write(register: usize, value: u32) {
    // SAFETY: the local APIC's page is mapped, user-accessible, and never RAM.
    unsafe { ((BASE + register) as *mut u32).write_volatile(value) }
}

fn read(register: usize) -> u32 {
    // SAFETY: as for `write`.
    unsafe { ((BASE + register) as *const u32).read_volatile() }
}

/// Whether this is vCPU 0, for those who cannot know otherwise.
pub(crate) fn is_boot_vcpu() -> bool {
    read(ID) >> 24 == 0
}

/// Enables this vCPU's local APIC.
pub(crate) fn enable() {
    write(SPURIOUS, 0x1ff);
}

/// Enables the boot vCPU's and returns the TSC's frequency in kHz.
pub(crate) fn start(told_khz: Option<u64>) -> u64 {
    enable();
    told_khz.or_else(khz_from_cpuid).unwrap_or_else(khz_measured)
}

fn khz_from_cpuid() -> Option<u64> {
    let leaf = __cpuid;
    let crystal = (leaf(0).eax >= 0x15).then(|| leaf(0x15));
    let crystal = crystal.filter(|r| r.eax > 0 && r.ebx > 0 && r.ecx > 0);
    if let Some(r) = crystal {
        return Some(u64::from(r.ecx) * u64::from(r.ebx) / u64::from(r.eax) / 1000);
    }
    // The hypervisor's leaves mean something only if there is one.
    let hypervised =
        leaf(1).ecx & 1 << 31 != 0 && (0x4000_0010..0x4001_0000).contains(&leaf(0x4000_0000).eax);
    let khz = if hypervised { leaf(0x4000_0010).eax } else { 0 };
    (khz > 0).then_some(u64::from(khz))
}

/// Counts TSC cycles during 20 ms of the APIC timer.
fn khz_measured() -> u64 {
    write(TIMER, MASKED);
    write(DIVIDE, DIVIDE_BY_1);
    write(INITIAL_COUNT, u32::MAX);
    let (count, start) = count_and_tsc();
    while count.wrapping_sub(read(CURRENT_COUNT)) < 20_000_000 {}
    let (end_count, end) = count_and_tsc();
    end.wrapping_sub(start).saturating_mul(1_000_000) / u64::from(count.wrapping_sub(end_count))
}

/// Both at nearly the same moment: the promptest of a few readings, for a host may be slow at the
/// first, or let the vCPU stand still during one.
fn count_and_tsc() -> (u32, u64) {
    let mut best = (0, 0, u64::MAX);
    for _ in 0..8 {
        let (before, count, after) = (tsc(), read(CURRENT_COUNT), tsc());
        let took = after.wrapping_sub(before);
        if took < best.2 {
            best = (count, before + took / 2, took);
        }
    }
    (best.0, best.1)
}

/// Starts this vCPU's periodic tick.
pub(crate) fn start_timer(index: usize, period_us: u64) {
    let now = tsc();
    vcpu(index, page::LAST_TICK_TSC).store(now, Relaxed);
    vcpu(index, page::WINDOW_TICK_FROM).store(now, Relaxed);
    write(DIVIDE, DIVIDE_BY_1);
    write(TIMER, PERIODIC | u32::from(ring0::TIMER_VECTOR));
    write(INITIAL_COUNT, (period_us * COUNTS_PER_US) as u32);
}

/// Sends all other vCPUs to the trampoline.
pub(crate) fn start_others(tsc_khz: u64) {
    let start = addr_of!(ring0::trampoline_start);
    let length = addr_of!(ring0::trampoline_end) as usize - start as usize;
    // SAFETY: RAM below 1 MiB is there on every PC, and what the loader left in it has been read.
    unsafe { core::ptr::copy_nonoverlapping(start, ring0::TRAMPOLINE as *mut u8, length) };
    let vector = (ring0::TRAMPOLINE / crate::telemetry::PAGE_SIZE) as u32;
    write(COMMAND, INIT_OTHERS);
    spin(tsc_khz);
    // Twice, as the MP specification wants it; a vCPU that runs ignores the second.
    for _ in 0..2 {
        write(COMMAND, START_OTHERS | vector);
        spin(tsc_khz / 4);
    }
}
