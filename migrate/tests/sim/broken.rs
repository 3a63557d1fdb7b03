//! What of a simulated guest shall fail.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use migrate::guest::{GuestError, Result};

#[derive(Default)]
pub(crate) struct Broken {
    pub(crate) pause: AtomicBool,
    pub(crate) save: AtomicBool,
    pub(crate) harvest: AtomicBool,
    pub(crate) restore: AtomicBool,
    pub(crate) resume: AtomicBool,
    pub(crate) hand_over: AtomicBool,
    /// Where the disk hangs.
    pub(crate) disk: Mutex<Option<DiskUse>>,
}

/// What is asked of the guest's disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DiskUse {
    Settle { running: bool },
    HandOver,
}

impl Broken {
    /// For ever, if the disk hangs there: as long as it is waited for.
    pub(super) fn hang(&self, now: DiskUse, go_on: &dyn Fn() -> bool) -> Result<()> {
        let hangs = *self.disk.lock().unwrap_or_else(PoisonError::into_inner) == Some(now);
        let since = Instant::now();
        while hangs && go_on() {
            std::thread::sleep(Duration::from_millis(1));
        }
        if hangs { Err(GuestError(format!("the disk hangs for {:?}", since.elapsed()))) } else { Ok(()) }
    }

    pub(super) fn check(flag: &AtomicBool, what: &str) -> Result<()> {
        if flag.swap(false, Ordering::SeqCst) { Err(GuestError(format!("{what} is broken"))) } else { Ok(()) }
    }
}
