//! Waiting, with a deadline.

use std::time::{Duration, Instant};

/// Longest wait for anything that is expected to happen. Generous: the machine may be small and busy.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Between two looks. Processes and files have no common event to wait for.
const PAUSE: Duration = Duration::from_millis(10);

/// Looks until there is something to see.
///
/// # Panics
/// When there is nothing after [`PATIENCE`].
#[track_caller]
pub fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(seen) = look() {
            return seen;
        }
        assert!(start.elapsed() < PATIENCE, "waited {} s in vain: {what}", PATIENCE.as_secs());
        std::thread::sleep(PAUSE);
    }
}
