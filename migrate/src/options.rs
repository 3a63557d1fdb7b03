//! What a migration is asked to do: parsed once, then values that cannot be wrong.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::priority::core_beyond;
use crate::protection::Protection;

/// How a guest moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Copy while it runs, pause for the rest.
    Precopy,
    /// Pause, copy everything.
    Stopcopy,
    /// Pause, move the state, fetch memory while it runs on the destination.
    Postcopy,
    /// Pre-copy first, post-copy for the rest.
    Hybrid,
}

/// What becomes of packets that come to the source for a guest that has stopped there and runs on the destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum InFlightPolicy {
    /// They are sent after it.
    #[default]
    Forward,
    /// They are lost, as they are where a network cable is moved.
    Drop,
}

/// What a guest's clock (its monotonic one, and so the time of day) does while it stands still.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum ClockPolicy {
    /// It goes on from where it stopped: no jump; the time of day falls behind by the pause.
    #[default]
    Continue,
    /// It goes on as if it had not stopped: it jumps by the pause, and the time of day is right. By the hosts' clocks, which
    /// must be synchronised.
    Realtime,
}

/// What happens when the time limit passes while memory is copied in rounds, or the rounds do not converge.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum OnTimeout {
    /// The migration is given up: the guest stays.
    #[default]
    Cancel,
    /// The guest is paused at once, and what is left follows by post-copy.
    Postcopy,
    /// The guest is paused at once, and what is left is copied however long the pause gets.
    Force,
}

/// Whether pages travel packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// Where the network is slower than packing, as it shows on the way; otherwise not.
    #[default]
    Auto,
    /// Never.
    None,
    /// Always, by zstd.
    Zstd,
}

/// The options of one migration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// `HOST:PORT` of a waiting destination.
    pub to: String,
    /// How.
    pub mode: Mode,
    /// Data connections, 1..=[`MAX_STREAMS`].
    pub streams: u32,
    /// Pre-copy switches over only when it expects less than this, and hybrid sends what is left in the pause only then.
    pub max_downtime: Duration,
    /// From the start until commit, without what the operator was waited for; `None`: the [default](default_timeout) for the
    /// guest's memory.
    pub timeout: Option<Duration>,
    /// What is done when that has passed in a round.
    pub on_timeout: OnTimeout,
    /// Pre-copy whose rounds do not converge holds vCPUs that write back for up to so many percent of their time, at most
    /// [`MOST_THROTTLE`]; 0: never.
    pub throttle: u8,
    /// Wait for the operator's word before the guest is paused.
    pub pause_before_switchover: bool,
    /// Bytes per second for bulk data, all connections together; `None`: as fast as it goes.
    pub bandwidth: Option<u64>,
    /// The same once the guest runs there, 0: as fast as it goes; `None`: as before.
    pub bandwidth_postcopy: Option<u64>,
    /// Whether pages travel packed.
    pub compression: Compression,
    /// Bytes kept of what was sent, so that a page that is sent again is sent as the difference; 0: none. Only where pages
    /// travel packed.
    pub delta_cache: u64,
    /// Compare all RAM on both sides.
    pub verify: bool,
    /// Packets in flight.
    pub in_flight: InFlightPolicy,
    /// The guest's clock.
    pub clock: ClockPolicy,
    /// What protects the connections.
    pub protection: Protection,
    /// From a lost link on, after commit: so long both sides try to find each other again before they say that they cannot.
    pub recovery: Duration,
}

impl Options {
    /// Bytes per second for bulk data once the guest runs there; `None`: as fast as it goes.
    #[must_use]
    pub fn postcopy_limit(&self) -> Option<u64> {
        self.bandwidth_postcopy.or(self.bandwidth).filter(|bytes| *bytes != 0)
    }
}

/// The most that vCPUs can be held back, in percent of their time.
pub const MOST_THROTTLE: u8 = 99;

/// Most data connections of one migration.
pub const MAX_STREAMS: u32 = 16;

/// Default for [`Options::streams`], where this host is the source: 2, or 1 where it has two cores or fewer. With two, and
/// a guest of one vCPU, a second connection made pre-copy a sixth slower (783 instead of 675 ms).
#[must_use]
pub fn default_streams() -> u32 {
    if core_beyond(2) { 2 } else { 1 }
}

/// Default for [`Options::max_downtime`].
pub const DEFAULT_MAX_DOWNTIME: Duration = Duration::from_millis(300);

/// Default for [`Options::delta_cache`]: 64 MiB.
pub const DEFAULT_DELTA_CACHE: u64 = 64 << 20;

/// Default for [`Options::recovery`].
pub const DEFAULT_RECOVERY: Duration = Duration::from_secs(60);

/// The least default for [`Options::timeout`].
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(60);

/// The default for each GiB of RAM, where that is more than [`DEFAULT_TIMEOUT`]: as long as 4.3 Gbit/s take to carry it once.
const TIMEOUT_PER_GIB: Duration = Duration::from_secs(2);

/// Default for [`Options::timeout`], for a guest with so many bytes of RAM: 1 TiB has half an hour.
#[must_use]
pub fn default_timeout(memory: u64) -> Duration {
    let gib = u32::try_from(memory >> 30).unwrap_or(u32::MAX);
    DEFAULT_TIMEOUT.max(TIMEOUT_PER_GIB.saturating_mul(gib))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_guests_have_longer() {
        let seconds = |gib: u64| default_timeout(gib << 30).as_secs();
        assert_eq!([0, 1, 30, 31, 1024].map(seconds), [60, 60, 60, 62, 2048]);
        assert!(default_timeout(u64::MAX) > Duration::from_secs(1 << 32));
    }
}
