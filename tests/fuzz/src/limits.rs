//! What one input may cost: an allocator that counts, and ends the process where a limit is exceeded.
//!
//! The limits follow from the protocol's: no message is larger than a state, and a few of them may be on their way at
//! once. Guest memory is mapped, not allocated, and does not count.

#![expect(
    unsafe_code,
    reason = "a global allocator is unsafe by its trait; it only hands over to the system's"
)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use migrate::wire::limits::STATE_BYTES;

/// Most bytes of one allocation: the largest message, with its head.
pub const ONE: usize = STATE_BYTES + (1 << 20);

/// Most bytes at any moment, the driver's own included.
pub const TOGETHER: usize = 96 << 20;

/// Longest time for one input.
pub const TIME: Duration = Duration::from_secs(10);

/// Counts what is allocated. One for the whole process, hence static.
pub struct Counting;

static LIVE: AtomicUsize = AtomicUsize::new(0);
/// A limit has been exceeded: what is allocated to say so does not count.
static OVER: AtomicBool = AtomicBool::new(false);

impl Counting {
    fn take(bytes: usize) {
        let live = LIVE.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let within = bytes <= ONE && live <= TOGETHER;
        if within || OVER.swap(true, Ordering::Relaxed) {
            return;
        }
        if bytes > ONE {
            exceeded("an allocation of", bytes, ONE);
        }
        exceeded("allocations together of", live, TOGETHER);
    }

    fn give(bytes: usize) {
        LIVE.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// Says it, with where, and ends the process.
#[cold]
fn exceeded(what: &str, bytes: usize, limit: usize) -> ! {
    let place = std::backtrace::Backtrace::force_capture();
    eprintln!("fuzz: {what} {bytes} bytes, {limit} are allowed\n{place}");
    std::process::abort()
}

// SAFETY: every call goes to the system's allocator unchanged; what is counted besides does not touch the memory.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        Self::take(layout.size());
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        Self::give(layout.size());
        // SAFETY: as above.
        unsafe { System.dealloc(place, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        Self::take(layout.size());
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, place: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        Self::take(bytes);
        Self::give(layout.size());
        // SAFETY: as above.
        unsafe { System.realloc(place, layout, bytes) }
    }
}
