//! Our VMM and QEMU side by side: the same guest, moved on the same host, by the same ruler. `docs/benchmarks.md`.
//!
//! ```text
//! for each cell (a guest: its memory, its load)     cells.rs
//!   what plain TCP can do here                      vmm's own benchmark
//!   for each round, for each way to move in turn    ways.rs
//!     two fresh processes, a guest at work          ours.rs  qemu.rs ── qmp.rs
//!     the move, by the guest's console and /proc    run.rs: ruler.rs, usage.rs
//!   figures, a table, a chart                       record.rs, words.rs, chart.rs
//! ```
//!
//! A run that failed stays in the record with its reason and has no part in medians. Every wait has a deadline.
//! Processes die with the values that stand for them, and with this program however it ends.

pub mod cells;
mod chart;
mod error;
mod ours;
mod qemu;
mod qmp;
pub mod record;
mod ruler;
mod run;
mod tied;
mod usage;
pub mod ways;
mod words;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

use vmm::bench::RawTcp;
use vmm::lab::measuring::Measuring;
use vmm::lab::setting::Setting;

use self::cells::Cell;
pub use self::error::PeersError;
use self::qemu::Qemu;
use self::record::{Record, Run};
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
    /// Moves of each by each.
    pub runs: u32,
    /// Where the results go.
    pub out: PathBuf,
}

/// What a VMM says of its own migration, and how long the command took.
#[derive(Debug, Clone, Copy)]
struct Told {
    /// From the command until both sides had ended it.
    wall: Duration,
    total_ms: f64,
    downtime_ms: Option<f64>,
    wire_bytes: u64,
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
    for cell in &order.cells {
        eprintln!("{}: {}", cell.name, cell.guest.describe());
        if let Some(why) = too_large(cell) {
            eprintln!("  skipped: {why}");
            record.skipped.push(format!("{}: {why}", cell.name));
            continue;
        }
        let mut raw = Vec::new();
        for connections in CONNECTIONS {
            raw.push(RawTcp::measure(connections, &cell.guest).await?);
        }
        let place = record.begin(cell, &order.ways, raw);
        for round in 0..order.runs as usize {
            for at in 0..order.ways.len() {
                // Each round begins elsewhere, so that none always follows the same other.
                let at = (at + round) % order.ways.len();
                let run = Run::of(run::run(&world.beside(), cell, &order.ways[at], &qemu).await)?;
                eprintln!("  {}", place.add(at, run));
            }
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
