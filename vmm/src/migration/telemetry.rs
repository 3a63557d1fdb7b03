//! The demo guest's own figures, read out of its memory; and the measuring window, opened by writing into it.
//!
//! Guests that keep no telemetry have none: the magic number is not there.

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use guest::{TELEMETRY_GPA, VCPU_PAGE_STRIDE, VCPU_PAGES_GPA, WINDOW_REQUEST_GPA};
use migrate::guest::Telemetry;
use vm_memory::{Bytes, GuestAddress};

use crate::memory::ram::GuestRam;
use crate::memory::{PAGE, bulk};

/// Over which part of the guest's history its pace is taken.
const PACE_SPAN: Duration = Duration::from_secs(1);
/// How long between two looks at whether the guest has acknowledged. The guest cannot call us.
const ACKNOWLEDGE_LOOK: Duration = Duration::from_micros(200);

/// What the guest says of itself now. Fails to be `Some` for a guest without telemetry.
pub(crate) fn read(ram: &GuestRam) -> Option<Telemetry> {
    let told = read_record(ram)?;
    Some(Telemetry {
        tsc: told.vcpus.iter().map(|vcpu| vcpu.last_tsc).max().unwrap_or(0),
        tsc_khz: told.tsc_khz,
        work: told.work(),
        work_per_s: told.work_rate(PACE_SPAN).unwrap_or(0.0),
        window_gap_us: told.window_gap_us().unwrap_or(0.0),
        window_gap_from: told.window_gap_from().unwrap_or(0),
        window_tick_gap_us: told.window_tick_gap_us().unwrap_or(0.0),
        corruptions: told.corruptions,
    })
}

/// The whole record.
pub(crate) fn read_record(ram: &GuestRam) -> Option<guest::Telemetry> {
    let page = |gpa: u64| {
        let inside = ram.layout().regions().iter().any(|r| gpa >= r.start && gpa + PAGE <= r.start + r.bytes);
        inside.then(|| {
            let mut bytes = vec![0; PAGE as usize];
            bulk::copy_out(ram, gpa, &mut bytes);
            bytes
        })
    };
    guest::Telemetry::parse(&page(TELEMETRY_GPA)?, |vcpu| {
        page(VCPU_PAGES_GPA + vcpu as u64 * VCPU_PAGE_STRIDE)
    })
    .ok()
}

/// Opens a new window and waits at most `wait` for every vCPU to acknowledge it.
pub(crate) fn open_window(ram: &GuestRam, wait: Duration) -> bool {
    // Values need only differ from the one before, and a guest keeps its last one when it moves between hosts.
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let Some(told) = read_record(ram) else { return false };
    let value = told.window_request.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)).max(1);
    if ram.mmap().write_obj(value, GuestAddress(WINDOW_REQUEST_GPA)).is_err() {
        return false;
    }
    let deadline = Instant::now() + wait;
    loop {
        match read_record(ram) {
            Some(told) if told.window_open() => return true,
            Some(_) if Instant::now() < deadline => thread::sleep(ACKNOWLEDGE_LOOK),
            _ => return false,
        }
    }
}
