//! Which vCPUs take part, and where they wait for each other.

use crate::apic;
use crate::cpu::tsc;
use crate::pulse::Pulse;
use crate::telemetry::MAX_VCPUS;
use core::hint::spin_loop;
use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::{AcqRel, Acquire};

/// How long to wait for another vCPU if nobody said how many there are.
const SETTLE_MS: u64 = 50;
/// How long to wait for those promised.
const PROMISED_MS: u64 = 2000;

/// Numbers handed out from here on lead to parking.
const CLOSED: u64 = 1 << 16;

unsafe extern "C" {
    // SAFETY: eight aligned bytes that start as 1; ring 0 changes the low half, atomically.
    safe static next_vcpu: AtomicU64;
}

static ARRIVED: AtomicU64 = AtomicU64::new(0);
static MET: AtomicU64 = AtomicU64::new(0);

/// Starts the other vCPUs and returns how many there are in all. Later ones are parked.
pub(crate) fn gather(promised: Option<u64>, tsc_khz: u64) -> usize {
    let limit = MAX_VCPUS as u64;
    if promised != Some(1) {
        apic::start_others(tsc_khz);
        let (target, patience) = match promised {
            Some(cpus) => (cpus.min(limit), PROMISED_MS),
            None => (limit, SETTLE_MS),
        };
        await_numbers(target, patience * tsc_khz);
    }
    let vcpus = next_vcpu.swap(CLOSED, AcqRel).min(limit);
    while ARRIVED.load(Acquire) < vcpus - 1 {
        spin_loop();
    }
    vcpus as usize
}

/// Waits until this many numbers are taken, or none was for so many cycles.
fn await_numbers(target: u64, patience: u64) {
    let (mut last, mut since) = (0, tsc());
    loop {
        let taken = next_vcpu.load(Acquire);
        if taken != last {
            (last, since) = (taken, tsc());
        }
        if taken >= target || tsc().wrapping_sub(since) > patience {
            return;
        }
        spin_loop();
    }
}

/// A vCPU is in ring 3.
pub(crate) fn arrive() {
    ARRIVED.fetch_add(1, AcqRel);
}

/// Waits until all vCPUs have come here.
pub(crate) fn meet(vcpus: usize, pulse: &mut Pulse) {
    MET.fetch_add(1, AcqRel);
    while MET.load(Acquire) < vcpus as u64 {
        pulse.turn();
    }
}
