//! All that can be told about a migration while it goes on: one closed list of events.
//!
//! The engine says each through an [`Observer`] and never waits for whoever listens. Nothing is said from the
//! pause until the guest has run on the destination for a few milliseconds, or the end; what happened is told then.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::report::{Phase, Report, Round, Switchover};

/// One thing that happened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
    /// A phase began.
    Phase {
        /// Which.
        phase: Phase,
    },
    /// Figures for a progress bar, a few times a second.
    Progress(Progress),
    /// A round ended, and what the policy decided.
    Round {
        /// Its figures.
        round: Round,
        /// The decision, in words.
        decision: String,
    },
    /// The guest runs on the destination.
    Switched {
        /// The pause, step by step.
        switchover: Switchover,
    },
    /// On a destination that waits: someone came who is not let in.
    TurnedAway {
        /// `HOST:PORT` it came from.
        peer: String,
        /// One line.
        reason: String,
    },
    /// The link was lost after commit: the other side is called again.
    Lost {
        /// What was seen of it.
        cause: String,
    },
    /// Both sides have found each other again.
    Found {
        /// How long they had not, µs.
        us: u64,
        /// Calls it took.
        calls: u32,
    },
    /// It is over.
    Ended {
        /// Everything.
        report: Box<Report>,
    },
}

/// Where a migration is.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Progress {
    /// Phase now.
    pub phase: Phase,
    /// Round now (pre-copy).
    pub round: u32,
    /// Pages of this round, or of post-copy, in all.
    pub pages_total: u64,
    /// … and still to go.
    pub pages_left: u64,
    /// Bytes sent so far, all rounds.
    pub bytes: u64,
    /// Bytes per second now.
    pub bytes_per_s: f64,
    /// Pages per second dirtied, as last measured.
    pub dirty_rate: f64,
    /// How much of its time a vCPU that writes is held back, percent.
    #[serde(default)]
    pub throttle: u8,
    /// Estimated time until the end of this round or of post-copy, ms; absent when not known.
    pub eta_ms: Option<u64>,
}

/// Whoever wants to hear of events. Must not block.
pub trait Observer: Send + Sync {
    /// One event.
    fn tell(&self, event: Event);
}

/// Tells nobody.
#[derive(Debug, Clone, Copy)]
pub struct Silent;

impl Observer for Silent {
    fn tell(&self, _: Event) {}
}
