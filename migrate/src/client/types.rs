//! What goes over the control API, shared by the VMM that serves it and every client.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::options::Mode;
use crate::progress::Progress;
use crate::report::Report;

/// Where a VMM's guest is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Life {
    /// No guest yet: waits for one to arrive.
    Waiting,
    /// A guest is arriving.
    Arriving,
    /// The guest runs.
    Running,
    /// The guest is paused by its operator.
    Paused,
    /// The guest runs and is being moved away.
    Leaving,
    /// The guest runs elsewhere.
    Moved,
    /// In doubt: paused, because another host may be running it. `migrate resolve` decides.
    Unknown,
    /// The guest has ended.
    Stopped,
}

/// One VMM and its guest. `GET /vm`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct VmInfo {
    /// The VMM's name on this host, unique here.
    pub name: String,
    /// Process id.
    pub pid: u32,
    /// The guest's life.
    pub life: Life,
    /// The guest's name, once there is a guest.
    pub guest: Option<String>,
    /// The guest's identity, which survives every move.
    pub uuid: Option<Uuid>,
    /// RAM, bytes.
    pub memory: Option<u64>,
    /// Number of vCPUs.
    pub vcpus: Option<u32>,
    /// Where a waiting VMM listens for guests, `HOST:PORT`.
    pub listen: Option<String>,
    /// Violations the guest's own oracle has found, for guests that have one.
    pub corruptions: Option<u64>,
    /// Units of work per second the guest reports.
    pub work_per_s: Option<f64>,
}

/// `POST /migration`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MigrateRequest {
    /// `HOST:PORT` of a waiting destination.
    pub to: String,
    /// How.
    pub mode: Mode,
    /// Data connections, 1..=16; default 2.
    pub streams: Option<u32>,
    /// Pre-copy switches over only when it expects less than this, µs; default 300 000.
    pub max_downtime_us: Option<u64>,
    /// Given up when not committed after this, ms; default 60 000.
    pub timeout_ms: Option<u64>,
    /// Bytes per second; absent: unlimited.
    pub bandwidth: Option<u64>,
    /// Compare all RAM on both sides.
    #[serde(default)]
    pub verify: bool,
}

/// `GET /migration`: the one under way, or the last one (outgoing or incoming).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct MigrationStatus {
    /// Whether one is under way.
    pub active: bool,
    /// Where it is.
    pub progress: Option<Progress>,
    /// The report of the last one.
    pub report: Option<Report>,
}

/// `POST /migration/resolve`: the operator's word on a guest in doubt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Resolution {
    /// The other host does not run it and never will: run it here.
    RunHere,
    /// The other host runs it: let go of it here.
    Discard,
}

/// `POST /migration/resolve`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ResolveRequest {
    /// What to do.
    pub resolution: Resolution,
}

/// The body of every answer that is not a success.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Problem {
    /// One line: the thing, the value, the way out.
    pub error: String,
}
