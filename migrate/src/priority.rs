//! Who goes first where there are fewer cores than work: the guest, and whoever it waits for; then bulk data.
//!
//! Bulk data moves in portions of a fraction of a millisecond. Between two of them its thread offers the core: a vCPU
//! that waits for it waits for one portion, not for the scheduler's next tick (4 ms where HZ is 250).

/// Pages of a portion: 256 KiB. A frame of them is sent, received or prepared at once.
pub(crate) const PORTION: u64 = 64;

/// How far the threads that move bulk data step back: they have a third of a vCPU's weight then, and still move a
/// guest whose vCPUs occupy all cores. Measured with as many busy threads as twice the cores: the guest keeps 80 %
/// of its pace instead of 40 %, at the same throughput; ten steps cost a third of that.
const BULK_STEPS_BACK: i32 = 5;

/// The calling thread moves bulk data: it gives way to vCPUs, and to the threads that serve page requests.
pub(crate) fn give_way() {
    // Linux keeps this for each thread, and means the calling one if none is named. Stepping back is always allowed;
    // were it not, bulk data would only be as urgent as the guest.
    let now = rustix::process::getpriority_process(None).unwrap_or(0);
    let _ = rustix::process::setpriority_process(None, now + BULK_STEPS_BACK);
}

/// Between two portions of bulk data: whoever waits for this core has it now. Costs a system call if nobody does.
pub(crate) fn offer_core() {
    std::thread::yield_now();
}
