//! Which guests are moved in which ways.

use std::str::FromStr;

use migrate::cli::values::parse_bytes;
use migrate::options::{Mode, default_streams};
use serde::Serialize;

use super::BenchArgs;
use crate::config::{MemorySize, Vcpus};
use crate::lab::LabError;
use crate::lab::guest::{Content, GuestPlan, Load};
use crate::lab::journey::Wire;
use crate::lab::slow::Network;

/// How much of a guest's RAM is filled.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Fill {
    /// None of it.
    None,
    /// A share, in percent.
    Percent(u64),
    /// MiB.
    Mib(u64),
}

impl FromStr for Fill {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "none" {
            return Ok(Self::None);
        }
        match text.strip_suffix('%').map(str::parse) {
            Some(Ok(percent @ 0..=95)) => Ok(Self::Percent(percent)),
            Some(_) => Err("give 0% to 95%: the guest needs the rest for itself".to_owned()),
            None => Ok(Self::Mib(parse_bytes(text)? >> 20)),
        }
    }
}

impl Fill {
    /// Of so many bytes, in MiB, in steps of eight.
    pub(super) fn mib_of(self, bytes: u64) -> u64 {
        let mib = bytes >> 20;
        match self {
            Self::None => 0,
            Self::Percent(percent) => mib * percent / 100 / 8 * 8,
            Self::Mib(fill) => fill,
        }
    }
}

/// One cell: a guest and a way to move it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(super) struct Cell {
    pub(super) guest: GuestPlan,
    pub(super) mode: Mode,
    pub(super) streams: u32,
    pub(super) wire: Wire,
    /// What is between the hosts where it is more than loopback.
    pub(super) network: Option<Network>,
}

/// All of them.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Grid {
    pub(super) guests: Vec<GuestPlan>,
    pub(super) modes: Vec<Mode>,
    pub(super) wires: Vec<Wire>,
    pub(super) streams: Vec<u32>,
    /// None: loopback alone.
    pub(super) networks: Vec<Network>,
    pub(super) runs: u32,
}

impl Grid {
    /// What was asked for, with defaults where nothing was said.
    pub(super) fn of(args: &BenchArgs) -> Result<Self, LabError> {
        let size =
            |text: &str| text.parse::<MemorySize>().map_err(|error| LabError::Arguments(error.to_string()));
        let usual = vec![default_streams()];
        let (memory, rates, streams, runs) = if args.quick {
            (vec![size("256M")?], vec![Load::Rate(10_000)], usual, 3)
        } else if args.full {
            let memory = [size("256M")?, size("1G")?, size("4G")?];
            let rates = [1_000, 10_000, 50_000].map(Load::Rate);
            (memory.into(), [&[Load::Idle], &rates[..], &[Load::Max]].concat(), vec![1, 2, 4], 5)
        } else if !args.rtt.is_empty() {
            (vec![size("1G")?], vec![Load::Idle, Load::Rate(1000)], usual, 5)
        } else {
            (vec![size("1G")?], vec![Load::Idle, Load::Rate(10_000), Load::Max], usual, 5)
        };
        let memory = said(&args.memory).unwrap_or(memory);
        let rates = said(&args.rates).unwrap_or(rates);
        let guests = memory.iter().flat_map(|memory| rates.iter().map(|load| guest(args, *memory, *load)));
        Ok(Self {
            guests: guests.collect::<Result<_, _>>()?,
            modes: args.modes.clone(),
            wires: if args.tls { vec![Wire::Plain, Wire::Tls] } else { vec![Wire::Plain] },
            streams: said(&args.streams).unwrap_or(streams),
            networks: networks(args)?,
            runs: args.runs.unwrap_or(runs),
        })
    }

    pub(super) fn cells(&self) -> usize {
        self.guests.len() * self.networks.len().max(1) * self.streams.len() * self.ways().count()
    }

    /// Each mode by each wire, those of one mode in a row: what is to be compared is measured at about the same time.
    pub(super) fn ways(&self) -> impl Iterator<Item = (Mode, Wire)> {
        self.modes.iter().flat_map(|mode| self.wires.iter().map(|wire| (*mode, *wire)))
    }
}

/// What was said, if anything was.
fn said<T: Clone>(values: &[T]) -> Option<Vec<T>> {
    (!values.is_empty()).then(|| values.to_vec())
}

/// One for each round trip that was said.
fn networks(args: &BenchArgs) -> Result<Vec<Network>, LabError> {
    let bytes_per_s = args.bandwidth.bytes_per_s().ok_or_else(|| {
        LabError::Arguments(
            "a network that is made here has a bandwidth: give --bandwidth, such as 1Gbit".to_owned(),
        )
    })?;
    Ok(args.rtt.iter().map(|rtt| Network { bytes_per_s, round_trip_us: rtt.as_micros() as u64 }).collect())
}

fn guest(args: &BenchArgs, memory: MemorySize, load: Load) -> Result<GuestPlan, LabError> {
    plan(memory, args.cpus, args.fill, args.content, load)
}

/// A guest that works on half of its RAM.
pub(super) fn plan(
    memory: MemorySize,
    cpus: Vcpus,
    fill: Fill,
    content: Content,
    load: Load,
) -> Result<GuestPlan, LabError> {
    let fill_mib = fill.mib_of(memory.bytes());
    if fill_mib << 20 > memory.bytes() / 100 * 95 {
        let error = format!("{fill_mib} MiB do not fit a guest of {memory}: fill at most 95% of it");
        return Err(LabError::Arguments(error));
    }
    let working_set_mib = (memory.bytes() >> 20) / 2;
    Ok(GuestPlan { memory, cpus, fill_mib, content, working_set_mib, load })
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        bench: BenchArgs,
    }

    fn grid(line: &str) -> Result<Grid, String> {
        let command = Command::try_parse_from(line.split(' ')).map_err(|error| error.to_string())?;
        Grid::of(&command.bench).map_err(|error| error.to_string())
    }

    #[test]
    fn the_default_is_small_quick_is_smaller_and_full_is_large() {
        let all = grid("bench").unwrap();
        assert_eq!((all.cells(), all.runs), (12, 5));
        assert_eq!(
            (all.guests[0].fill_mib, all.guests[0].working_set_mib, all.guests[0].load),
            (920, 512, Load::Idle)
        );
        let quick = grid("bench --quick").unwrap();
        assert_eq!((quick.cells(), quick.runs), (4, 3));
        let full = grid("bench --full").unwrap();
        assert_eq!((full.cells(), full.guests.len(), full.streams.len()), (180, 15, 3));
        assert_eq!(grid("bench --full --memory 256M --streams 1").unwrap().cells(), 20);
        assert_eq!(grid("bench --quick --tls").unwrap().cells(), 8);
        assert_eq!(grid("bench --quick --runs 7 --memory 1G").unwrap().runs, 7);
    }

    #[test]
    fn a_whole_grid() {
        let line =
            "bench --modes precopy,hybrid --memory 256M,1G,4G --rates 0,1000,max --streams 1,2,4 --fill none";
        let grid = grid(line).unwrap();
        assert_eq!((grid.cells(), grid.guests.len()), (54, 9));
        assert!(grid.guests.iter().all(|guest| guest.fill_mib == 0));
        assert_eq!(grid.guests[8].load, Load::Max);
    }

    #[test]
    fn a_network_for_each_round_trip() {
        let loopback = grid("bench --quick").unwrap();
        assert_eq!((&loopback.networks[..], loopback.cells()), (&[][..], 4));
        let far = grid("bench --quick --rtt 200us,10ms --bandwidth 800Mbit").unwrap();
        let network = |round_trip_us| Network { bytes_per_s: 100_000_000, round_trip_us };
        assert_eq!(far.networks, [network(200), network(10_000)]);
        assert_eq!(far.cells(), 8);
        assert!(grid("bench --rtt 2s").unwrap_err().contains("more than 1s"));
        // What writes as fast as it can is faster than such a network.
        assert_eq!(grid("bench --rtt 1ms").unwrap().guests.len(), 2);
        assert!(grid("bench --rtt 1ms --bandwidth unlimited").unwrap_err().contains("give --bandwidth"));
        assert!(
            grid("bench --bandwidth 1Gbit").unwrap_err().contains("--rtt"),
            "there is no network without"
        );
    }

    #[test]
    fn fills() {
        assert_eq!("none".parse(), Ok(Fill::None));
        assert_eq!("90%".parse(), Ok(Fill::Percent(90)));
        assert_eq!("256M".parse(), Ok(Fill::Mib(256)));
        assert!("99%".parse::<Fill>().unwrap_err().contains("0% to 95%"));
        assert!(grid("bench --fill 1G").unwrap_err().contains("do not fit"));
    }
}
