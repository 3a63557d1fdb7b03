//! The report of a migration: what happened, in figures, and by whom each was measured.
//!
//! Written once, by the source, when all is over; `docs/report.md` describes every field.
//! Absent figures are `null`: nothing is guessed. Times are microseconds unless the name says otherwise.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::options::{InFlightPolicy, Mode, OnTimeout};

/// Version of the report's schema. A new field keeps it; a changed meaning raises it.
pub const SCHEMA: &str = "migration-report/1";

/// How a migration ended. Not ok or error: who has the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// The guest runs on the destination; the source holds nothing of it any more.
    Moved,
    /// The guest runs on the source, as fast as before.
    Kept,
    /// The source cannot know whether the destination runs the guest, or the guest is split between both:
    /// it stays paused here until someone who knows says so.
    Unknown,
}

/// Everything about one migration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Report {
    /// [`SCHEMA`].
    pub schema: String,
    /// How it ended.
    pub outcome: Outcome,
    /// Why, when it did not end with `moved`: one line naming the thing, the value and the way out.
    pub reason: Option<String>,
    /// The guest's name.
    pub guest: String,
    /// Where it was to go.
    pub destination: String,
    /// What was asked for.
    pub mode: Mode,
    /// Data connections used.
    pub streams: u32,
    /// What was done because the time limit had passed or the rounds did not converge: `postcopy` or `force`; absent when
    /// that was not needed.
    #[serde(default)]
    pub on_timeout: Option<OnTimeout>,
    /// From the first word to the destination until nothing is left on the source, µs.
    pub total_us: u64,
    /// Phases in order, with their durations.
    pub phases: Vec<PhaseTime>,
    /// Pre-copy rounds (stop-and-copy: the one round).
    pub rounds: Vec<Round>,
    /// The pause, step by step; absent unless `running` was heard in the first conversation.
    pub switchover: Option<Switchover>,
    /// What the destination measured of it; absent when that was not heard.
    #[serde(default)]
    pub takeover: Option<Takeover>,
    /// Bytes, pages.
    pub traffic: Traffic,
    /// Post-copy, when there was any.
    pub postcopy: Option<Postcopy>,
    /// Losses of the link that were got over, or not, from commit on.
    #[serde(default)]
    pub outages: Vec<Outage>,
    /// Packets that came to the source after the guest had left; absent when it has no network, or did not leave.
    pub in_flight: Option<InFlight>,
    /// What the guest measured itself; absent for guests without telemetry.
    pub guest_measured: Option<GuestMeasured>,
    /// Comparison of all RAM on both sides, when asked for.
    pub verification: Option<Verification>,
    /// Why there was no comparison although it was asked for; absent when there was, and when it was not asked for.
    pub unverified: Option<String>,
    /// Bytes of guest state or memory that still live on the source: zero after `moved`.
    pub residual_bytes: u64,
}

impl Report {
    /// The report of a migration of which nothing is known yet: the guest is where it was.
    #[must_use]
    pub fn blank(guest: &str, destination: &str, mode: Mode, streams: u32) -> Self {
        Self {
            schema: SCHEMA.to_owned(),
            outcome: Outcome::Kept,
            reason: None,
            guest: guest.to_owned(),
            destination: destination.to_owned(),
            mode,
            streams,
            on_timeout: None,
            total_us: 0,
            phases: Vec::new(),
            rounds: Vec::new(),
            switchover: None,
            takeover: None,
            traffic: Traffic::default(),
            postcopy: None,
            outages: Vec::new(),
            in_flight: None,
            guest_measured: None,
            verification: None,
            unverified: None,
            residual_bytes: 0,
        }
    }
}

/// Packets that came to the source for a guest that had left: from its pause until neighbours and switches had learned
/// where it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct InFlight {
    /// What was to become of them.
    pub policy: InFlightPolicy,
    /// Sent after the guest.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
    /// From the guest's start on the destination until the last one came, µs; 0 when none came.
    pub last_us: u64,
}

/// A loss of the link from commit on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Outage {
    /// What was seen of it first.
    pub cause: String,
    /// Until both sides had found each other again, or given up, µs.
    pub us: u64,
    /// Calls it took.
    pub calls: u32,
    /// Whether they found each other again.
    pub over: bool,
}

/// One phase and how long it took.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PhaseTime {
    /// Which.
    pub phase: Phase,
    /// Duration, µs.
    pub us: u64,
}

/// The phases of a migration, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// Connections, hello, pre-flight, the destination's machine is built.
    Connect,
    /// Rounds of copying while the guest runs.
    Precopy,
    /// The guest runs on and the operator's word is waited for.
    Waiting,
    /// The guest is paused.
    Switchover,
    /// The guest runs on the destination while the rest of its memory follows.
    Postcopy,
    /// Verification, last figures, goodbye.
    Finish,
}

/// One round of copying.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Round {
    /// From 0: all of RAM.
    pub number: u32,
    /// Pages sent with their content.
    pub pages: u64,
    /// Pages sent as marks, because they were zero.
    pub zero_pages: u64,
    /// Bytes on the wire.
    pub bytes: u64,
    /// Duration until the destination had them, µs.
    pub us: u64,
    /// Pages the guest dirtied meanwhile.
    pub dirtied: u64,
    /// Pages per second dirtied meanwhile.
    pub dirty_rate: f64,
    /// Reading the dirty log after it, µs.
    #[serde(default)]
    pub harvest_us: u64,
    /// How much of its time a vCPU that writes was held back meanwhile, percent.
    #[serde(default)]
    pub throttle: u8,
}

/// The pause, in steps that follow each other. Durations in µs, by the host's clocks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Switchover {
    /// From asking the vCPUs to stop until all had.
    pub pause_us: u64,
    /// Saving the state.
    pub save_us: u64,
    /// The last harvest.
    pub harvest_us: u64,
    /// Sending state and last pages until the source had handed them to the network.
    pub send_us: u64,
    /// From then until the destination said ready: the rest of the transfer, and what is left of the restore.
    pub ready_us: u64,
    /// Restoring the state, as the destination measured it (part of `send_us` and `ready_us` together).
    pub restore_us: u64,
    /// From handing the disks over, just before commit, until the destination said running.
    pub resume_us: u64,
    /// Handing the disks over and putting commit on record, until it could be sent (part of `resume_us`).
    #[serde(default)]
    pub commit_us: u64,
    /// Pages sent in the pause.
    pub pages: u64,
    /// Size of the state, bytes.
    pub state_bytes: u64,
    /// The whole pause as the host sees it: from asking the vCPUs to stop until the destination said running.
    pub downtime_us: u64,
    /// What the convergence policy had expected of `downtime_us`.
    pub estimated_us: u64,
}

/// Steps of the pause on the destination, by its clock, beside [`Switchover::restore_us`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Takeover {
    /// Taking in which pages are missing, as far as they were named in the pause (post-copy), µs.
    pub missing_us: u64,
    /// Waiting for the last pages when all else was done, µs.
    pub last_pages_us: u64,
    /// From hearing commit until the vCPUs were ordered to run, µs.
    pub start_us: u64,
}

/// What crossed the network.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Traffic {
    /// Bytes sent by the source on all connections, headers included.
    pub bytes: u64,
    /// Pages sent with content, repeats counted.
    pub pages: u64,
    /// Pages sent as zero marks.
    pub zero_pages: u64,
    /// Pages with content that were sent packed.
    #[serde(default)]
    pub packed_pages: u64,
    /// Those of them that were sent as the difference to what was sent of them before.
    #[serde(default)]
    pub delta_pages: u64,
    /// Bytes that were not sent because of that.
    #[serde(default)]
    pub saved_bytes: u64,
}

/// Post-copy figures, as the destination measured them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Postcopy {
    /// Pages missing when the guest started on the destination.
    pub missing_pages: u64,
    /// Page requests sent.
    pub faults: u64,
    /// From the touch being seen until the page was placed, µs.
    pub fault_p50_us: u64,
    /// 90th percentile.
    pub fault_p90_us: u64,
    /// 99th percentile.
    pub fault_p99_us: u64,
    /// Largest.
    pub fault_max_us: u64,
    /// From the guest's start on the destination until the last page was there.
    pub last_page_us: u64,
    /// Pages that arrived a second time: requested while they were on their way already. Never more than requests.
    pub duplicate_pages: u64,
}

/// What the guest measured itself.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct GuestMeasured {
    /// Downtime: the largest gap between two TSC readings in ring 3 during the whole migration, µs,
    /// the stalls of pre-copy and post-copy included.
    pub downtime_us: f64,
    /// When that gap began: µs since the guest's last reading before the migration.
    #[serde(default)]
    pub downtime_at_us: f64,
    /// Largest gap between two timer ticks, µs.
    pub tick_gap_us: f64,
    /// Units of work per second before.
    pub work_before_per_s: f64,
    /// … from the start until the end of the migration.
    pub work_during_per_s: f64,
    /// … after it.
    pub work_after_per_s: f64,
    /// Work not done because of the migration, in ms at the guest's pace before it.
    pub work_lost_ms: f64,
    /// Violations its oracle found since boot.
    pub corruptions: u64,
}

/// Comparison of RAM on both sides, page by page.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Verification {
    /// Pages compared.
    pub pages: u64,
    /// Pages not compared: written by the guest on the destination before the last page arrived (post-copy).
    pub skipped: u64,
    /// Pages that differed.
    pub mismatched: u64,
    /// The first few frame numbers that differed.
    pub first_mismatches: Vec<u64>,
    /// Time it took, µs. In pre-copy and stop-and-copy it is part of the pause.
    pub us: u64,
}
