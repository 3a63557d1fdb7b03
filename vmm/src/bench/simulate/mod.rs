//! `vmm bench simulate`: how a migration would go that cannot be tried here.
//!
//! ```text
//!   guest (how it writes) ──┐
//!   link, hosts ────────────┼──> course: rounds, the engine's own policy, pause ──> table
//!   constants (what it costs)┘                                                       ^
//!                   fit <── documents of `vmm bench --json` ──> the same cells as cases: check
//! ```
//!
//! Time is virtual: whatever takes minutes is computed in a moment. What decides after a round is
//! [`migrate::convergence`] itself, fed with rounds that take as long as the constants say. The model is described in
//! `docs/scaling.md`.

mod check;
mod constants;
mod course;
mod guest;
mod link;
mod measured;
mod table;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use migrate::cli::values::{parse_bytes, parse_duration};
use migrate::options::{MAX_STREAMS, Mode};

use self::constants::Constants;
use self::course::Case;
use self::guest::{Guest, Writes, pages};
pub(super) use self::link::Bandwidth;
use self::link::{Hosts, Link};
use super::grid::Fill;
use crate::lab::guest::Load;
use crate::lab::{self, LabError};

/// Largest guest: as much as the wire has room for.
const MOST_BYTES: u64 = migrate::wire::limits::GFN_LIMIT * migrate::pages::PAGE_SIZE as u64;

/// Cores of a host that has one for whoever wants one.
const ENOUGH: u32 = 1 << 20;

/// Arguments of `vmm bench simulate`.
#[derive(Debug, Clone, Args)]
pub struct SimulateArgs {
    /// Ways to move
    #[arg(long, alias = "mode", value_enum, value_delimiter = ',', default_value = "precopy,hybrid")]
    pub modes: Vec<Mode>,
    /// The guest's RAM, up to 4T
    #[arg(long, value_name = "SIZE", default_value = "1T", value_parser = parse_ram)]
    pub memory: u64,
    /// Its vCPUs, all of them busy
    #[arg(long, value_name = "N", default_value = "128", value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub cpus: u32,
    /// Pages written a second by all vCPUs together: numbers, 0 or idle, max
    #[arg(long, value_name = "RATES", value_delimiter = ',', default_value = "0,10000,100000,1000000,max")]
    pub rates: Vec<Load>,
    /// How much of RAM exists: a share such as 90%, or a size
    #[arg(long, value_name = "FILL", default_value = "90%")]
    pub fill: Fill,
    /// What is written, at random and evenly [default: half of RAM]
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
    pub working_set: Option<u64>,
    /// The network, such as 100Gbit, or unlimited: what is on the cable, heads counted
    #[arg(long, value_name = "RATE", default_value = "100Gbit")]
    pub bandwidth: Bandwidth,
    /// Round trip of the network
    #[arg(long, value_name = "TIME", default_value = "10us", value_parser = parse_duration)]
    pub rtt: Duration,
    /// Data connections
    #[arg(long, value_name = "N", default_value = "16",
          value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_STREAMS)))]
    pub streams: u32,
    /// Cores of each host [default: one for every thread]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub cores: Option<u32>,
    /// Pre-copy switches over only when it expects a shorter pause than this
    #[arg(long, value_name = "TIME", default_value = "300ms", value_parser = parse_duration)]
    pub max_downtime: Duration,
    /// What things cost: a file of JSON as --show-constants prints it; what it leaves out is as measured on our host
    #[arg(long, value_name = "FILE")]
    pub constants: Option<PathBuf>,
    /// Print the constants as JSON: those that would be used, with --from those fitted
    #[arg(long)]
    pub show_constants: bool,
    /// Check the model: fit it on one cell of these documents of vmm bench --json and predict all others
    #[arg(long, value_name = "FILES", num_args = 1.., conflicts_with_all = [
        "modes", "memory", "cpus", "rates", "fill", "working_set", "bandwidth", "rtt", "streams", "cores", "max_downtime",
    ])]
    pub from: Vec<PathBuf>,
}

/// Computes and prints.
///
/// # Errors
/// When a file cannot be read, or the arguments make no sense together.
pub(super) fn run(args: &SimulateArgs) -> Result<ExitCode, LabError> {
    let constants = args.constants.as_deref().map_or_else(|| Ok(Constants::default()), Constants::read)?;
    let (constants, words) = if args.from.is_empty() {
        let cases = args.cases(&constants)?;
        let words = table::words(args, &cases, &constants);
        (constants, words)
    } else {
        let cells = measured::read(&args.from)?;
        let fit = check::fit(&cells, &constants)?;
        let words = check::words(&cells, &fit);
        (fit.constants, words)
    };
    if args.show_constants {
        let json = serde_json::to_string_pretty(&constants).expect("numbers with names are JSON");
        lab::show(&json);
    } else {
        lab::show(&words);
    }
    Ok(ExitCode::SUCCESS)
}

impl SimulateArgs {
    /// Every mode with every rate.
    fn cases(&self, constants: &Constants) -> Result<Vec<(Load, Case)>, LabError> {
        let filled = self.fill.mib_of(self.memory) << 20;
        let working_set = self.working_set.unwrap_or(self.memory / 2);
        if filled > self.memory || working_set > self.memory {
            let error = "more is filled or written than there is RAM: make --fill and --working-set smaller";
            return Err(LabError::Arguments(error.to_owned()));
        }
        let hosts = Hosts::Two { cores: self.cores.unwrap_or(ENOUGH) };
        let link = Link { bandwidth: self.bandwidth, round_trip: self.rtt, windows: true };
        let case = |mode: Mode, load: Load| Case {
            guest: guest(self.memory, self.cpus, filled, load, working_set, constants),
            mode,
            streams: self.streams,
            max_downtime: self.max_downtime,
            link,
            hosts,
        };
        let pairs = self.rates.iter().flat_map(|load| self.modes.iter().map(move |mode| (*mode, *load)));
        Ok(pairs.map(|(mode, load)| (load, case(mode, load))).collect())
    }
}

/// A guest of so many bytes that writes over so many.
fn guest(ram: u64, vcpus: u32, filled: u64, load: Load, working_set: u64, constants: &Constants) -> Guest {
    let per_s = match load {
        Load::Idle => 0.0,
        Load::Rate(rate) => rate as f64,
        Load::Max => constants.most_writes_per_s * f64::from(vcpus),
    };
    let writes = if per_s > 0.0 { vec![Writes { per_s, over: pages(working_set) }] } else { Vec::new() };
    // What is written exists.
    let exists = if writes.is_empty() { filled } else { filled.max(working_set) };
    Guest { ram, populated: pages(exists), vcpus, writes }
}

fn parse_ram(text: &str) -> Result<u64, String> {
    let bytes = parse_bytes(text)?;
    if (1 << 20..=MOST_BYTES).contains(&bytes) { Ok(bytes) } else { Err("give 1M to 4T".to_owned()) }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::bench::{BenchArgs, Instead};

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        bench: BenchArgs,
    }

    fn parse(line: &str) -> Result<SimulateArgs, String> {
        let command = Command::try_parse_from(line.split(' ')).map_err(|error| error.to_string())?;
        match command.bench.instead {
            Some(Instead::Simulate(args)) => Ok(args),
            _ => Err("measures".to_owned()),
        }
    }

    #[test]
    fn guests_may_be_larger_than_any_here() {
        let args =
            parse("bench simulate --memory 2T --cpus 128 --bandwidth 400Gbit --mode hybrid --rates 0,max")
                .unwrap();
        let cases = args.cases(&Constants::default()).unwrap();
        assert_eq!((args.memory, cases.len(), cases[0].1.guest.vcpus), (2 << 40, 2, 128));
        assert_eq!((cases[0].1.guest.writes.len(), cases[1].1.guest.writes.len()), (0, 1));
        assert!(parse("bench simulate --memory 5T").unwrap_err().contains("give 1M to 4T"));
    }

    #[test]
    fn measuring_is_what_bench_does_otherwise() {
        assert_eq!(parse("bench --modes precopy --rates 0").unwrap_err(), "measures");
        assert!(parse("bench --quick simulate").unwrap_err().contains("cannot be used with"));
        assert!(parse("bench simulate --from f --memory 1G").unwrap_err().contains("cannot be used with"));
    }

    #[test]
    fn more_than_there_is_cannot_be_written() {
        let args = parse("bench simulate --memory 1G --working-set 2G").unwrap();
        assert!(args.cases(&Constants::default()).unwrap_err().to_string().contains("--working-set smaller"));
    }

    #[test]
    fn all_cases_are_told_round_by_round() {
        let args = parse("bench simulate --memory 1T --rates 0,10000000").unwrap();
        let constants = Constants::default();
        let words = table::words(&args, &args.cases(&constants).unwrap(), &constants);
        for part in ["switch over: 0 pages left", "given up after", "it does not converge", "gives up"] {
            assert!(words.contains(part), "{part}: {words}");
        }
        assert!(!words.contains("--timeout"), "{words}");
    }

    #[test]
    fn what_takes_longer_than_is_waited_for_is_said() {
        let args = parse("bench simulate --memory 1T --rates 0 --bandwidth 1Gbit").unwrap();
        let constants = Constants::default();
        let words = table::words(&args, &args.cases(&constants).unwrap(), &constants);
        assert!(words.contains("by default (2048 s): give more with --timeout"), "{words}");
    }
}
