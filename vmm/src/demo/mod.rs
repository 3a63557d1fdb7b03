//! `vmm demo`: shows on this host alone that a running guest moves, what it costs, and that nothing is lost.
//!
//! A demo guest under load hops from VMM to VMM, two hops for each mode: there for the figures, and back with all RAM
//! compared on both sides, which happens inside the pause and would spoil the figures. The guest's oracle watches its
//! memory all the time, and its console must be without a gap over all hosts. With many rounds this is a soak test.

mod tally;

use std::process::ExitCode;
use std::time::Instant;

use clap::Args;
use migrate::options::{DEFAULT_MAX_DOWNTIME, DEFAULT_TIMEOUT, Mode, default_streams};
use migrate::report::Outcome;

use self::tally::{Purpose, Tally};
use crate::config::{MemorySize, Vcpus};
use crate::lab::guest::{Content, GuestPlan, Load};
use crate::lab::journey::{Journey, Order, Wire};
use crate::lab::{self, Lab, LabError, unless_interrupted};

/// A soak test says how far it is after so many rounds.
const ROUNDS_A_SUMMARY: u32 = 10;

/// Arguments of `vmm demo`.
#[derive(Debug, Clone, Args)]
pub struct DemoArgs {
    /// How often each mode is shown: a move for the figures, and one back with all memory compared
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub rounds: u32,
    /// Modes to show
    #[arg(long, value_enum, value_delimiter = ',', default_value = "precopy,stopcopy,postcopy,hybrid")]
    pub modes: Vec<Mode>,
    /// The guest's RAM; half of it is filled with random data
    #[arg(long, value_name = "SIZE", default_value = "512M")]
    pub memory: MemorySize,
    /// The guest's vCPUs
    #[arg(long, value_name = "N", default_value = "1")]
    pub cpus: Vcpus,
    /// What the guest does: idle, a number of pages written a second (over an eighth of its RAM), or max
    #[arg(long, value_name = "LOAD", default_value = "5000")]
    pub load: Load,
    /// Print all reports as one JSON document
    #[arg(long)]
    pub json: bool,
}

impl DemoArgs {
    fn plan(&self) -> GuestPlan {
        let mib = self.memory.bytes() >> 20;
        GuestPlan {
            memory: self.memory,
            cpus: self.cpus,
            fill_mib: mib / 2,
            content: Content::Random,
            working_set_mib: mib / 8,
            load: self.load,
        }
    }

    fn is_soak(&self) -> bool {
        self.rounds > ROUNDS_A_SUMMARY
    }
}

/// Shows it. Succeeds only when every move was good.
///
/// # Errors
/// When the guest cannot be started, or was lost on the way: what was found until then has been printed.
pub async fn run(args: &DemoArgs) -> Result<ExitCode, LabError> {
    let mut tally = Tally::new(args.plan(), args.rounds);
    tally.warning().iter().for_each(|warning| eprintln!("{warning}"));
    let toured = unless_interrupted(tour(args, &mut tally)).await;
    if !tally.is_empty() {
        tally.stop(toured.as_ref().err().map(ToString::to_string));
        let output = if args.json { tally.json() } else { tally.words() };
        lab::show(&output);
    }
    toured?;
    Ok(if tally.is_good() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn tour(args: &DemoArgs, tally: &mut Tally) -> Result<(), LabError> {
    let lab = Lab::new()?;
    let (plan, start) = (args.plan(), Instant::now());
    eprintln!("Booting a guest: {}", plan.describe());
    let mut journey = Journey::begin(&lab, &plan).await?;
    eprintln!("It is at work after {:.1} s.", start.elapsed().as_secs_f64());
    for round in 1..=args.rounds {
        for &mode in &args.modes {
            for purpose in [Purpose::Figures, Purpose::Comparison] {
                move_once(&mut journey, tally, args, (round, mode, purpose)).await?;
            }
        }
        if args.is_soak() && round.is_multiple_of(ROUNDS_A_SUMMARY) {
            eprintln!("{}", tally.summary(round));
        }
    }
    tally.end(journey.end().await?);
    Ok(())
}

async fn move_once(
    journey: &mut Journey<'_>,
    tally: &mut Tally,
    args: &DemoArgs,
    (round, mode, purpose): (u32, Mode, Purpose),
) -> Result<(), LabError> {
    let order = Order {
        network: None,
        mode,
        streams: default_streams(),
        max_downtime: DEFAULT_MAX_DOWNTIME,
        timeout: DEFAULT_TIMEOUT,
        verify: purpose == Purpose::Comparison,
        wire: Wire::Plain,
    };
    let hop = journey.hop(&order, None).await?;
    let outcome = hop.report.outcome;
    let entry = tally.add(round, purpose, hop);
    if !args.is_soak() || !entry.is_good() {
        eprintln!("{}", entry.line());
    }
    match outcome {
        Outcome::Moved => Ok(()),
        // It goes on from here; but first it must.
        Outcome::Kept => journey.settle(1).await.map(drop),
        Outcome::Unknown => {
            Err(LabError::Died { said: "the guest is in doubt: the demo ends here".to_owned() })
        }
    }
}
