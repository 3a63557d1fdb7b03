//! Our VMM, QEMU and Cloud Hypervisor side by side: the same guest, moved on the same host, by the same ruler. `docs/benchmarks.md`.
//!
//! ```text
//! what a start costs                                startup.rs
//! for each cell (a guest: its memory, its load)     cells.rs
//!   what plain TCP can do here                      vmm's own benchmark
//!   for each round, for each way to move in turn    ways.rs
//!     two fresh processes, a guest at work          ours.rs  qemu.rs ── qmp.rs  cloud_hypervisor.rs
//!     the move, by the guest's console and /proc    run.rs: route.rs, ruler.rs, usage.rs
//!   figures, a table, a chart                       record.rs, words.rs, chart.rs
//! ratios beside those landed                        landed.rs
//! ```
//!
//! A run that failed stays in the record with its reason and has no part in medians. Every wait has a deadline.
//! Processes die with the values that stand for them, and with this program however it ends.

pub mod cells;
mod chart;
mod cloud_hypervisor;
mod error;
pub mod landed;
mod ours;
mod qemu;
mod qmp;
pub mod record;
mod route;
mod ruler;
mod run;
mod startup;
mod tied;
mod usage;
pub mod ways;
mod words;

use std::fs::File;
use std::ops::Range;
use std::path::Path;
use std::time::{Duration, Instant};

use vmm::bench::RawTcp;
use vmm::lab::measuring::Measuring;
use vmm::lab::setting::Setting;

use self::cells::Cell;
use self::cloud_hypervisor::CloudHypervisor;
pub use self::error::PeersError;
use self::qemu::Qemu;
use self::record::{Record, Run};
use self::route::Route;
use self::ruler::Rhythm;
use self::ways::Way;
use crate::World;

/// The names of both sides' processes, and of their files.
const SOURCE: &str = "source";
const DESTINATION: &str = "destination";
/// A migration that has not ended by then has failed: ours is told so, QEMU's is given up.
pub(crate) const LIMIT: Duration = Duration::from_secs(30);
/// Numbers of connections for which plain TCP is measured: those of the ways.
const CONNECTIONS: [u32; 3] = [1, 2, 4];

/// What to measure.
#[derive(Debug, Clone)]
pub struct Order {
    /// Guests.
    pub cells: Vec<Cell>,
    /// Ways to move each.
    pub ways: Vec<Way>,
    /// Moves of each by each. 0: no cell is measured.
    pub runs: u32,
    /// Starts of each VMM.
    pub starts: u32,
    /// For a brief look: no round begins that would probably not end within so long, guests work for fewer seconds, and
    /// plain TCP is not measured.
    pub limit: Option<Duration>,
}

/// What a VMM says of its own migration, and how long the command took.
#[derive(Debug, Clone, Copy)]
struct Told {
    /// From the command until both sides had ended it.
    wall: Duration,
    total_ms: Option<f64>,
    downtime_ms: Option<f64>,
    wire_bytes: u64,
}

impl Told {
    /// What went by on the way, where that was counted, is what was sent.
    fn over(self, route: &Route) -> Self {
        Self { wire_bytes: route.bytes().unwrap_or(self.wire_bytes), ..self }
    }
}

/// The others, as they run here.
#[derive(Debug, Clone)]
struct Peers {
    qemu: Qemu,
    cloud_hypervisor: Option<CloudHypervisor>,
}

/// Measures all of it. What was measured before an error is in the record.
///
/// # Errors
/// When nothing can be measured here, or the host gives no more.
pub async fn measure(order: &Order, record: &mut Record) -> Result<(), PeersError> {
    check_kvm()?;
    // Before the right to measure: a test that has its turn may want that.
    let world = World::alone();
    let _alone = Measuring::begin().await;
    record.setting = Setting::here();
    let qemu = Qemu::find(&world).await?;
    eprintln!("{}, -machine {} -cpu {}", qemu.version, qemu.machine, qemu.cpu);
    record.setting.warning().iter().for_each(|warning| eprintln!("{warning}"));
    record.qemu = Some(qemu.clone());
    if order.ways.iter().any(Way::is_cloud_hypervisors) {
        let found = CloudHypervisor::find(&world.beside()).await;
        record.cloud_hypervisor = record.or_skip("", found)?;
    }
    let peers = Peers { qemu, cloud_hypervisor: record.cloud_hypervisor.clone() };
    let started = startup::measure(&world, &peers, order.starts).await;
    record.startups = record.or_skip("start-up: ", started)?.unwrap_or_default();
    let mut cells = Vec::new();
    for cell in &order.cells {
        match too_large(cell) {
            Some(why) => record.skip(format!("{}: {why}", cell.name)),
            None => cells.push(cell),
        }
    }
    let (begin, mut longest) = (Instant::now(), Duration::ZERO);
    for rounds in order.passes() {
        let start = Instant::now();
        if rounds.start > 0 && order.limit.is_some_and(|limit| begin.elapsed() + longest > limit) {
            break;
        }
        for cell in &cells {
            measure_cell(order, cell, rounds.clone(), record, &world, &peers).await?;
        }
        longest = longest.max(start.elapsed());
    }
    Ok(())
}

impl Order {
    /// Rounds that are measured of one cell before the next. When time is short it falls on all cells alike.
    fn passes(&self) -> Vec<Range<usize>> {
        let runs = self.runs as usize;
        let step = if self.limit.is_some() { 1 } else { runs.max(1) };
        (0..runs).step_by(step).map(|first| first..first + step).collect()
    }
}

/// Some rounds of all ways in one cell, in turn.
async fn measure_cell(
    order: &Order,
    cell: &Cell,
    rounds: Range<usize>,
    record: &mut Record,
    world: &World,
    peers: &Peers,
) -> Result<(), PeersError> {
    eprintln!("{}: {}", cell.name, cell.describe());
    let rhythm = if order.limit.is_some() { Rhythm::BRIEF } else { Rhythm::FULL };
    let mut raw = Vec::new();
    for connections in CONNECTIONS.into_iter().filter(|_| order.limit.is_none() && cell.network.is_none()) {
        raw.push(RawTcp::measure(connections, &cell.guest).await?);
    }
    let has = |way: &&Way| peers.cloud_hypervisor.is_some() || !way.is_cloud_hypervisors();
    let ways: Vec<_> = order.ways.iter().filter(has).cloned().collect();
    let place = record.place(cell, &ways, raw);
    for round in rounds {
        for at in 0..ways.len() {
            // Each round begins elsewhere, so that none always follows the same other.
            let at = (at + round) % ways.len();
            let run = run::run(&world.beside(), cell, &ways[at], peers, rhythm).await;
            eprintln!("  {}", place.add(at, Run::of(run)?));
        }
    }
    Ok(())
}

/// Writes `peers.json`, `peers.md` and `peers.svg`, and returns what is in the second.
///
/// # Errors
/// When they cannot be written.
pub fn write(record: &Record, out: &Path) -> Result<String, PeersError> {
    let table = words::words(record);
    let json = serde_json::to_string_pretty(record).expect("a record is JSON");
    for (name, text) in [("json", &json), ("md", &table), ("svg", &chart::svg(record))] {
        let path = out.join(format!("peers.{name}"));
        std::fs::write(&path, text).map_err(PeersError::host(format!("write {}", path.display())))?;
    }
    Ok(table)
}

fn check_kvm() -> Result<(), PeersError> {
    let opened = File::options().read(true).write(true).open("/dev/kvm");
    opened.map(drop).map_err(|error| PeersError::Unfit(format!("/dev/kvm cannot be opened: {error}")))
}

/// Why this host has no room for two such guests, if it has not.
fn too_large(cell: &Cell) -> Option<String> {
    let available = vmm::migration::memory_available()? >> 20;
    let filled = cell.guest.fill_mib.max(cell.guest.working_set_mib);
    let needed = 2 * filled + 1024;
    (needed > available).then(|| format!("needs {needed} MiB of memory, {available} are free"))
}
