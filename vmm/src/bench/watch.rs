//! `vmm bench watch`: what it costs a guest that its writes are watched, without any move.
//!
//! A page that is watched is caught in a fault when it is written next, once, and free again. A move of a running guest watches what
//! it has sent. So a page of a guest that writes all its memory all the time is caught, again perhaps, or waits for the pause, or
//! for post-copy. Beside it stands what it takes to send a page.

use std::fmt::Display;
use std::io;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Args;
use migrate::pages::{PAGE_SIZE, PageSet};
use serde::Serialize;
use tokio::time::sleep;

use super::Document;
use super::grid::{Fill, plan};
use super::raw::RawTcp;
use crate::config::{MachineConfig, MemorySize, Vcpus};
use crate::devices::Console;
use crate::lab::guest::{Content, GuestPlan, Load};
use crate::lab::measuring::Measuring;
use crate::lab::setting::Setting;
use crate::lab::stats::Spread;
use crate::lab::table::{Table, ms, short};
use crate::lab::{self, LabError, unless_interrupted};
use crate::machine::Machine;
use crate::migration::{Identity, Resident};

/// How long its pace is taken, before and after.
const PACE: Duration = Duration::from_secs(1);
/// Between two looks at what was caught.
const LOOK: Duration = Duration::from_millis(50);
/// When so many in a row find no more than before, it is all: one may meet a host that stands still.
const LOOKS_IN_VAIN: u32 = 3;
/// By then it is all of any guest that fits here.
const DEADLINE: Duration = Duration::from_secs(60);

/// Arguments of `vmm bench watch`.
#[derive(Debug, Clone, Args)]
pub struct WatchArgs {
    /// The guest's RAM, of which 90% is filled; it writes pages of half of it at random, as fast as it can
    #[arg(long, value_name = "SIZE", default_value = "1G")]
    memory: MemorySize,
    /// Its vCPUs
    #[arg(long, value_name = "N", default_value = "1")]
    cpus: Vcpus,
    /// How often it is watched
    #[arg(long, value_name = "N", default_value = "5", value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// Write all runs and their circumstances to FILE as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// What was measured, and where.
#[derive(Debug, Serialize)]
struct Watched {
    setting: Setting,
    guest: GuestPlan,
    /// None where it was stopped before.
    raw_tcp: Option<RawTcp>,
    runs: Vec<Caught>,
    /// Why there are not as many as were asked for.
    stopped: Option<String>,
}

/// What one round of watching cost.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
struct Caught {
    /// Pages written a second before.
    before_per_s: f64,
    /// Pages caught.
    pages: u64,
    /// How long it took until all were.
    took_us: f64,
    /// Work that was not done meanwhile, in time of all vCPUs at the pace after: where memory is watched it is mapped page by page,
    /// which alone makes a guest slower.
    lost_us: f64,
    /// Pages written a second after, still watched by a log but not caught any more.
    after_per_s: f64,
}

impl Caught {
    /// What a page caught costs a vCPU.
    fn us_a_page(&self, vcpus: u32) -> f64 {
        self.lost_us * f64::from(vcpus) / self.pages.max(1) as f64
    }
}

/// Measures, prints a table and writes the document.
///
/// # Errors
/// When the guest cannot be started, or ends; or the document cannot be written.
pub(super) async fn run(args: &WatchArgs) -> Result<ExitCode, LabError> {
    let guest = plan(args.memory, args.cpus, Fill::Percent(90), Content::Random, Load::Max)?;
    guest.must_fit(1)?;
    let file = args.json.as_deref().map(Document::create).transpose()?;
    let setting = Setting::here();
    setting.warning().iter().for_each(|warning| eprintln!("{warning}"));
    let mut watched = Watched { setting, guest, raw_tcp: None, runs: Vec::new(), stopped: None };
    let measured = unless_interrupted(async {
        let _alone = Measuring::begin().await;
        watched.raw_tcp = Some(RawTcp::measure(1, &guest).await?);
        measure(&guest, args.runs, &mut watched.runs).await
    })
    .await;
    watched.stopped = measured.as_ref().err().map(ToString::to_string);
    let written = file.map_or(Ok(()), |file| file.write(&watched));
    if !watched.runs.is_empty() {
        lab::show(&words(&watched));
    }
    written?;
    measured?;
    Ok(ExitCode::SUCCESS)
}

async fn measure(plan: &GuestPlan, runs: u32, into: &mut Vec<Caught>) -> Result<(), LabError> {
    let guest = boot(plan).await?;
    for _ in 0..runs {
        let caught = watch(&guest).await?;
        eprintln!("  {} pages caught, {} ms of work lost", caught.pages, ms(caught.lost_us));
        into.push(caught);
    }
    Ok(())
}

/// The guest, at work, in this process. It ends with what is returned.
async fn boot(plan: &GuestPlan) -> Result<Arc<Resident>, LabError> {
    let cmdline = plan.command_line().parse().map_err(refused("tell the guest what to do"))?;
    let config = MachineConfig::demo(plan.memory, plan.cpus, cmdline);
    let machine = Machine::boot(&config, Console::new()).map_err(refused("boot a guest"))?;
    let identity = Identity { name: config.name.to_string(), uuid: config.uuid, epoch: 0 };
    let guest = Resident::new(machine, identity);
    guest.resume().map_err(refused("run the guest"))?;
    let begun = Instant::now();
    // It says how fast it works when it has worked for a second.
    while guest.telemetry().is_none_or(|told| told.work_per_s == 0.0) {
        if begun.elapsed() >= plan.boot_deadline() {
            let what = "the guest fills its memory and begins to work".to_owned();
            return Err(LabError::Late { what, after: plan.boot_deadline() });
        }
        sleep(LOOK).await;
    }
    Ok(guest)
}

/// For `map_err`: this host refused `what`.
fn refused<E: Display>(what: &'static str) -> impl FnOnce(E) -> LabError {
    move |error| LabError::Host { what, error: io::Error::other(error.to_string()) }
}

/// Has it work by itself; until all it writes was caught; and for a while after that.
async fn watch(guest: &Resident) -> Result<Caught, LabError> {
    let logging = Logging(guest);
    let tell = || {
        let silent = || LabError::Died { said: "the guest tells nothing of its work any more".to_owned() };
        guest.telemetry().ok_or_else(silent)
    };
    let first = tell()?;
    sleep(PACE).await;
    let before = tell()?;
    guest.start_clean_dirty_log().map_err(refused("watch the guest"))?;
    let (begun, mut pages, mut in_vain) = (Instant::now(), PageSet::new(guest.description().gfn_limit()), 0);
    while in_vain < LOOKS_IN_VAIN {
        sleep(LOOK).await;
        let known = pages.len();
        guest.harvest(&mut pages).map_err(refused("read what was caught"))?;
        in_vain = if pages.len() == known && known > 0 { in_vain + 1 } else { 0 };
        if begun.elapsed() >= DEADLINE {
            let what = format!("the guest writes all it writes once ({known} pages by then)");
            return Err(LabError::Late { what, after: DEADLINE });
        }
    }
    let caught = tell()?;
    sleep(PACE).await;
    let after = tell()?;
    if after.work == caught.work {
        return Err(LabError::Died { said: "the guest has stopped working".to_owned() });
    }
    drop(logging);
    // Its memory is mapped in large pages again.
    sleep(PACE).await;
    let (took_s, after_per_s) = (caught.seconds_since(&before), after.pace_since(&caught));
    Ok(Caught {
        before_per_s: before.pace_since(&first),
        pages: pages.len(),
        took_us: took_s * 1e6,
        lost_us: (took_s - caught.work_since(&before) / after_per_s) * 1e6,
        after_per_s,
    })
}

/// The log ends with it.
struct Logging<'a>(&'a Resident);

impl Drop for Logging<'_> {
    fn drop(&mut self) {
        self.0.stop_dirty_log();
    }
}

fn words(watched: &Watched) -> String {
    let mut table = Table::new(1, &["", "median", "least", "most"]);
    let mut row = |what: &str, unit: fn(f64) -> String, [median, min, max]: [f64; 3]| {
        table.row(vec![what.to_owned(), unit(median), unit(min), unit(max)]);
    };
    let of = |of: &dyn Fn(&Caught) -> f64| {
        let spread = Spread::of(watched.runs.iter().map(of)).expect("was measured");
        [spread.median, spread.min, spread.max]
    };
    let vcpus = watched.guest.cpus.get();
    row("pages written a second before", short, of(&|run| run.before_per_s));
    row("… after, with the log on", short, of(&|run| run.after_per_s));
    row("pages caught when all was watched", short, of(&|run| run.pages as f64));
    row("until all were, ms", ms, of(&|run| run.took_us));
    row("work lost by it, ms", ms, of(&|run| run.lost_us));
    row("a page caught, µs of a vCPU's time", short, of(&|run| run.us_a_page(vcpus)));
    if let Some(RawTcp { beside_bytes_per_s: rate, .. }) = watched.raw_tcp {
        let sent = [rate.median, rate.max, rate.min].map(|bytes_per_s| PAGE_SIZE as f64 * 1e6 / bytes_per_s);
        row("a page sent by plain TCP beside busy threads, µs", short, sent);
    }
    format!("{}; watched {} times\n\n{table}", watched.guest.describe(), watched.runs.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_costs_a_vcpu_its_share_of_what_all_have_lost() {
        let caught =
            Caught { before_per_s: 1e6, pages: 500, took_us: 3e5, lost_us: 250_000.0, after_per_s: 1e6 };
        assert_eq!([1, 4].map(|vcpus| caught.us_a_page(vcpus)), [500.0, 2000.0]);
    }

    #[tokio::test]
    #[cfg_attr(no_kvm, ignore = "needs /dev/kvm")]
    async fn what_it_writes_is_caught_and_little_else() {
        let memory = "64M".parse().unwrap();
        let plan = plan(memory, "2".parse().unwrap(), Fill::Mib(16), Content::Random, Load::Max).unwrap();
        let mut runs = Vec::new();
        measure(&plan, 2, &mut runs).await.unwrap();
        assert_eq!(runs.len(), 2);
        for caught in runs {
            // Half of RAM; besides its figures, its stacks, its console.
            assert!((8192..8192 + 512).contains(&caught.pages), "{caught:?}");
            assert!(caught.before_per_s > 0.0 && caught.after_per_s > 0.0, "{caught:?}");
        }
    }
}
