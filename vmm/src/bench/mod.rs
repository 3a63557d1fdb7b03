//! `vmm bench`: what a move costs, for a grid of modes, sizes, loads and connections, on this host alone.
//!
//! Each guest of the grid is booted once and hops from VMM to VMM, so every run is a move into a fresh process with
//! cold memory. What plain TCP can do between two memories of the same kind is measured beside it, because loopback
//! figures mean nothing without. A run that failed stays in the document with its reason; it has no part in medians.

mod busy;
mod figures;
mod grid;
mod over;
mod raw;
mod record;
mod show;
mod simulate;
mod trace;
mod watch;

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand};
use migrate::cli::values::parse_duration;
use migrate::options::{Mode, default_timeout};
use migrate::report::Outcome;
use serde::Serialize;

use self::grid::{Cell, Fill, Grid};
use self::over::OverNetwork;
pub use self::raw::RawTcp;
use self::record::{Record, Run};
use self::simulate::Bandwidth;
pub use self::simulate::SimulateArgs;
pub use self::watch::WatchArgs;
use crate::config::{MemorySize, Vcpus};
use crate::lab::backed::BackedMemory;
use crate::lab::guest::{Content, GuestPlan, Load};
use crate::lab::journey::{Ending, Journey, Order};
use crate::lab::measuring::Measuring;
use crate::lab::slow::Network;
use crate::lab::{self, Lab, LabError, unless_interrupted};

/// Reports of the guest (one a second) before each move: its pace before is measured in this time, and in the last one
/// how long it stands still without a move.
const REPORTS_BETWEEN: usize = 2;

/// Arguments of `vmm bench`.
#[derive(Debug, Clone, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct BenchArgs {
    /// What to do instead of measuring.
    #[command(subcommand)]
    pub instead: Option<Instead>,
    /// Ways to move
    #[arg(long, value_enum, value_delimiter = ',', default_value = "precopy,stopcopy,postcopy,hybrid")]
    pub modes: Vec<Mode>,
    /// Sizes of the guest's RAM [default: 1G; with --quick 256M, with --full 256M,1G,4G]
    #[arg(long, value_name = "SIZES", value_delimiter = ',')]
    pub memory: Vec<MemorySize>,
    /// Pages written a second, over half of RAM: numbers, 0 or idle, max [default: 0,10000,max; with --rtt 0,1000;
    /// with --quick 10000, with --full 0,1000,10000,50000,max]
    #[arg(long, value_name = "RATES", value_delimiter = ',')]
    pub rates: Vec<Load>,
    /// Data connections [default: as migrate has it; with --full 1,2,4]
    #[arg(long, value_name = "NUMBERS", value_delimiter = ',',
          value_parser = clap::value_parser!(u32).range(1..=i64::from(migrate::options::MAX_STREAMS)))]
    pub streams: Vec<u32>,
    /// Moves for each cell of the grid [default: 5; with --quick 3]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub runs: Option<u32>,
    /// The guest's vCPUs
    #[arg(long, value_name = "N", default_value = "1")]
    pub cpus: Vcpus,
    /// How much of RAM is filled: none, a share such as 90%, or a size
    #[arg(long, value_name = "FILL", default_value = "90%")]
    pub fill: Fill,
    /// What it is filled with
    #[arg(long, value_enum, default_value = "random")]
    pub content: Content,
    /// Pre-copy switches over only when it expects a shorter pause than this
    #[arg(long, value_name = "TIME", default_value = "300ms", value_parser = parse_duration)]
    pub max_downtime: Duration,
    /// Put a network between the hosts, made on this one, and move over it: round trips up to 1s, each measured by itself,
    /// such as 200us,10ms. What carries the bytes takes CPU time, too [default: none, loopback]
    #[arg(long, value_name = "TIMES", value_delimiter = ',', value_parser = parse_round_trip)]
    pub rtt: Vec<Duration>,
    /// What that network carries each way, heads not counted
    #[arg(long, value_name = "RATE", default_value = "1Gbit", requires = "rtt")]
    pub bandwidth: Bandwidth,
    /// Move by each way inside TLS as well, and say what it carries of what plain connections do
    #[arg(long)]
    pub tls: bool,
    /// Show the pause of each cell step by step: median, 90th percentile, longest, and a histogram
    #[arg(long)]
    pub trace: bool,
    /// Write all runs and their circumstances to FILE as JSON
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// A small grid that takes less than a minute
    #[arg(long)]
    pub quick: bool,
    /// The full grid: every mode by 256M, 1G and 4G by 0, 1000, 10000, 50000 and max pages a second by 1, 2 and 4 data
    /// connections; takes hours
    #[arg(long, conflicts_with = "quick")]
    pub full: bool,
}

/// What `vmm bench` does instead of measuring.
#[derive(Debug, Clone, Subcommand)]
pub enum Instead {
    /// Compute how a migration would go that cannot be tried here, by the engine's own policy; or check that model against
    /// what vmm bench --json has measured
    Simulate(SimulateArgs),
    /// Measure what it costs a guest that its writes are watched, as they are during a move, without moving it
    Watch(WatchArgs),
}

/// Longer, and limits on silence that no option changes end the move.
const LONGEST_ROUND_TRIP: Duration = Duration::from_secs(1);

fn parse_round_trip(text: &str) -> Result<Duration, String> {
    let time = parse_duration(text)?;
    if time > LONGEST_ROUND_TRIP { Err("more than 1s".to_owned()) } else { Ok(time) }
}

/// Measures, prints a table and writes the document. Succeeds only when no run failed.
///
/// # Errors
/// When no guest can be started, or the document cannot be written.
pub async fn run(args: &BenchArgs) -> Result<ExitCode, LabError> {
    match &args.instead {
        Some(Instead::Simulate(args)) => return simulate::run(args),
        Some(Instead::Watch(args)) => return watch::run(args).await,
        None => {}
    }
    let file = args.json.as_deref().map(Document::create).transpose()?;
    let _alone = unless_interrupted(async { Ok(Measuring::begin().await) }).await?;
    let mut record = Record::default();
    record.setting.warning().iter().for_each(|warning| eprintln!("{warning}"));
    let measured = unless_interrupted(measure(args, &Grid::of(args)?, &mut record)).await;
    record.stopped = measured.as_ref().err().map(ToString::to_string);
    let written = file.map_or(Ok(()), |file| file.write(&record));
    if !record.is_empty() {
        lab::show(&show::words(&record, args.trace));
    }
    written?;
    measured?;
    Ok(if record.is_good() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn measure(args: &BenchArgs, grid: &Grid, record: &mut Record) -> Result<(), LabError> {
    let lab = Lab::new()?;
    eprintln!("{} cells of {} runs", grid.cells(), grid.runs);
    grid.guests.iter().try_for_each(|guest| guest.must_fit(2))?;
    let mut networks = Vec::new();
    for network in &grid.networks {
        networks.push(OverNetwork::measure(*network).await?);
    }
    for guest in &grid.guests {
        eprintln!("guest: {}", guest.describe());
        // Before it boots: it never sleeps.
        let mut raws = Vec::new();
        for streams in &grid.streams {
            let raw = RawTcp::measure(*streams, guest).await?;
            eprintln!("  raw TCP: {}", raw.line());
            raws.push(raw);
        }
        let mut bed = TestBed { lab: &lab, guest: *guest, journey: None, was_up: false };
        for (over, raw) in each_way_there(&networks, &raws) {
            over.iter().for_each(|over| eprintln!("  over {}", over.describe()));
            let (streams, network) = (raw.streams, over.map(|over| over.network));
            let cell = |(mode, wire)| Cell { guest: *guest, mode, streams, wire, network };
            let orders: Vec<_> = grid.ways().map(cell).map(|cell| order(args, &cell)).collect();
            let cells = record.begin(grid.ways().map(cell), raw, over);
            // By turns, each round beginning with another: what the host does meanwhile falls on all ways alike.
            for turn in (0..grid.runs as usize).flat_map(|round| (0..orders.len()).map(move |at| round + at))
            {
                let at = turn % orders.len();
                let run = bed.run(&orders[at]).await?;
                eprintln!("  {}", cells[at].add(run));
            }
        }
        record.endings.extend(bed.end().await);
    }
    Ok(())
}

/// Loopback, or each network, by each number of connections.
fn each_way_there<'a>(
    networks: &'a [OverNetwork],
    raws: &'a [RawTcp],
) -> impl Iterator<Item = (Option<OverNetwork>, &'a RawTcp)> {
    let loopback = networks.is_empty().then_some(None);
    let ways = loopback.into_iter().chain(networks.iter().copied().map(Some));
    ways.flat_map(|over| raws.iter().map(move |raw| (over, raw)))
}

fn order(args: &BenchArgs, cell: &Cell) -> Order {
    let Cell { guest, mode, streams, wire, network } = *cell;
    // All of it four times, where the network is what takes the time.
    let crossing = |network: Network| Duration::from_secs(4 * guest.memory.bytes() / network.bytes_per_s);
    let timeout = default_timeout(guest.memory.bytes()).max(network.map_or(Duration::ZERO, crossing));
    Order { mode, streams, max_downtime: args.max_downtime, timeout, verify: false, wire, network }
}

/// A guest to be moved, booted again when it was lost.
struct TestBed<'a> {
    lab: &'a Lab,
    guest: GuestPlan,
    journey: Option<Journey<'a>>,
    /// Whether it ever booted. When it never did, there is no point in trying again.
    was_up: bool,
}

impl TestBed<'_> {
    /// One run. That it failed is a result.
    async fn run(&mut self, order: &Order) -> Result<Run, LabError> {
        match self.try_run(order).await {
            Ok(run) => Ok(run),
            Err(error) if self.was_up => {
                self.journey = None;
                Ok(Run::failed(&error))
            }
            Err(error) => Err(error),
        }
    }

    async fn try_run(&mut self, order: &Order) -> Result<Run, LabError> {
        let mut journey = match self.journey.take() {
            Some(journey) => journey,
            None => Journey::begin(self.lab, &self.guest).await?,
        };
        self.was_up = true;
        let backed = BackedMemory::for_guest(&self.guest).await?;
        let quiet_gap_us = journey.settle(REPORTS_BETWEEN).await?;
        let hop = journey.hop(order, Some(backed)).await?;
        // A guest in doubt is no guest to go on with.
        self.journey = (hop.report.outcome != Outcome::Unknown).then_some(journey);
        Ok(Run::of(hop, quiet_gap_us))
    }

    async fn end(self) -> Option<Ending> {
        let failed = |error: LabError| Ending { console_lines: 0, problems: vec![error.to_string()] };
        Some(self.journey?.end().await.unwrap_or_else(failed))
    }
}

/// The file for the document, made before anything is measured: afterwards it would be too late to find it cannot be.
struct Document {
    path: PathBuf,
    file: File,
}

impl Document {
    fn create(path: &Path) -> Result<Self, LabError> {
        let file = File::create(path).map_err(LabError::output(path))?;
        Ok(Self { path: path.to_owned(), file })
    }

    fn write(self, record: &impl Serialize) -> Result<(), LabError> {
        let mut file = BufWriter::new(self.file);
        let written = serde_json::to_writer_pretty(&mut file, record).map_err(std::io::Error::from);
        written
            .and_then(|()| writeln!(file))
            .and_then(|()| file.flush())
            .map_err(LabError::output(&self.path))
    }
}
