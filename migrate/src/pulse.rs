//! Signs of life: while a side works or waits, a thread of its own says `alive` on the control connection,
//! so that the peer's limit on silence measures the peer, not the work.

use std::time::Duration;

use crate::alarm::{Alarm, Woken};

/// Calls `each` every `every` until the migration is over or stopped.
pub(crate) fn beat(alarm: &Alarm, every: Duration, mut each: impl FnMut()) {
    while alarm.rest(every) == Woken::TimeUp {
        each();
    }
}
