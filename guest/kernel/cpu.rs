//! What ring 3 does to the processor and to fixed memory: the TSC, ports, telemetry fields.

use crate::telemetry::{MAX_VCPUS, TELEMETRY_GPA, VCPU_PAGE_STRIDE, VCPU_PAGES_GPA};
use core::arch::{asm, x86_64};
use core::sync::atomic::AtomicU64;

/// The time stamp counter.
#[inline(always)]
pub(crate) fn tsc() -> u64 {
    // SAFETY: every x86-64 processor has RDTSC, and the guest never sets CR4.TSD.
    unsafe { x86_64::_rdtsc() }
}

/// Whether something that happens every `period` cycles, next at `at`, is due. A time further ahead
/// than the period is due too: the TSC went backwards, and whoever waited on would be silent.
#[inline(always)]
pub(crate) fn is_due(now: u64, at: u64, period: u64) -> bool {
    at.wrapping_sub(now).wrapping_sub(1) >= period
}

/// Spins for this many cycles.
pub(crate) fn spin(cycles: u64) {
    let start = tsc();
    while tsc().wrapping_sub(start) < cycles {
        core::hint::spin_loop();
    }
}

/// Writes a port. Only vCPU 0 may: it alone has an I/O permission bitmap.
pub(crate) fn outb(port: u16, value: u8) {
    // SAFETY: ports reach devices, not memory; the guest drives only the console's, and the one that resets it.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nomem, nostack)) }
}

/// Reads a port. Only vCPU 0 may.
pub(crate) fn inb(port: u16) -> u8 {
    let value;
    // SAFETY: as for `outb`.
    unsafe { asm!("in al, dx", out("al") value, in("dx") port, options(nomem, nostack)) }
    value
}

/// The telemetry field at this address.
#[inline(always)]
pub(crate) fn field(address: usize) -> &'static AtomicU64 {
    const FIRST: usize = TELEMETRY_GPA as usize;
    const END: usize = VCPU_PAGES_GPA as usize + MAX_VCPUS * VCPU_PAGE_STRIDE as usize;
    assert!(address.is_multiple_of(8) && (FIRST..END).contains(&address));
    // SAFETY: the link script reserves this range for telemetry, it is mapped, the address is
    // aligned, and everyone (ring 0 and the host too) accesses it as whole 64-bit numbers.
    unsafe { AtomicU64::from_ptr(address as *mut u64) }
}

/// A field of the header page.
#[inline(always)]
pub(crate) fn header(offset: usize) -> &'static AtomicU64 {
    field(TELEMETRY_GPA as usize + offset)
}

/// A field of a vCPU's page.
#[inline(always)]
pub(crate) fn vcpu(index: usize, offset: usize) -> &'static AtomicU64 {
    field(VCPU_PAGES_GPA as usize + index * VCPU_PAGE_STRIDE as usize + offset)
}
