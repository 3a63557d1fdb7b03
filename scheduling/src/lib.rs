//! Which cores of a host the calling thread runs on, in which turns, and how much of their time it has used.
//!
//! No thread chooses for another, and all of it is best effort: one that the host does not let choose runs as any other. (One whose
//! sandbox kills it for the call must not ask.)

mod cores;
mod turns;

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

pub use cores::{Here, common, difference, go_to, is_in, leave, near, only, these};
pub use turns::{Turn, take_turns};

/// CPU time that the calling thread has used since it began.
#[must_use]
pub fn thread_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.cast_unsigned(), time.tv_nsec as u32)
}
