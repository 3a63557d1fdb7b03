//! `vmm bench watch`: what it costs a guest that its writes are watched, without any move.
//!
//! A page that is watched is caught in a fault when it is written next, once, and free again. A move of a running guest watches what
//! it has sent, so a guest that writes all its memory all the time loses at least one such fault a page, or the page waits for the
//! pause. Beside it stands what it takes to send a page: that is the choice a move has.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use clap::Args;
use migrate::guest::{Departing, Telemetry};
use migrate::pages::{PAGE_SIZE, PageRun, PageSet};
use serde::Serialize;
use uuid::Uuid;

use super::raw::RawTcp;
use super::{Document, Fill};
use crate::config::{Kernel, MachineConfig, MemorySize, OnReset, Vcpus};
use crate::devices::Console;
use crate::lab::guest::{Content, GuestPlan, Load};
use crate::lab::measuring::Measuring;
use crate::lab::setting::Setting;
use crate::lab::stats::Spread;
use crate::lab::table::{Table, ms, short};
use crate::lab::{self, LabError, unless_interrupted};
use crate::machine::Machine;
use crate::migration::{Identity, Resident};
use crate::vcpu::CpuChoice;

/// How long the guest works by itself, for its pace, and then watched: by the end all it writes was caught.
const EACH: Duration = Duration::from_secs(1);
/// For boot and filling.
const BOOT_DEADLINE: Duration = Duration::from_secs(60);
/// Pages watched in one call, as a move does at most.
const AT_ONCE: u64 = 8192;

/// Arguments of `vmm bench watch`.
#[derive(Debug, Clone, Args)]
pub struct WatchArgs {
    /// The guest's RAM; it writes pages of half of it at random, as fast as it can
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
    runs: Vec<Caught>,
    raw_tcp: RawTcp,
}

/// What one round of watching cost.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
struct Caught {
    /// Pages the guest wrote a second before.
    pages_per_s: f64,
    /// Work not done in the second after all was watched, in time at its own pace, µs.
    lost_us: f64,
    /// Pages caught.
    pages: u64,
}

impl Caught {
    fn us_a_page(&self) -> f64 {
        self.lost_us / self.pages.max(1) as f64
    }
}

/// Measures, prints a table and writes the document.
///
/// # Errors
/// When the guest cannot be started, or the document cannot be written.
pub(super) async fn run(args: &WatchArgs) -> Result<ExitCode, LabError> {
    let file = args.json.as_deref().map(Document::create).transpose()?;
    let watched = unless_interrupted(async {
        let _alone = Measuring::begin().await;
        measure(args).await
    })
    .await?;
    watched.setting.warning().iter().for_each(|warning| eprintln!("{warning}"));
    lab::show(&words(&watched));
    file.map_or(Ok(()), |file| file.write(&watched))?;
    Ok(ExitCode::SUCCESS)
}

async fn measure(args: &WatchArgs) -> Result<Watched, LabError> {
    let guest = GuestPlan {
        memory: args.memory,
        cpus: args.cpus,
        fill_mib: Fill::Percent(90).mib_of(args.memory.bytes()),
        content: Content::Random,
        working_set_mib: (args.memory.bytes() >> 20) / 2,
        load: Load::Max,
    };
    let setting = Setting::here();
    let raw_tcp = RawTcp::measure(1, &guest).await?;
    let runs = args.runs;
    let watching = tokio::task::spawn_blocking(move || {
        let resident = boot(&guest)?;
        (0..runs).map(|_| watch(&*resident)).collect::<Result<Vec<_>, LabError>>()
    });
    let runs = watching.await.expect("watching does not panic")?;
    Ok(Watched { setting, guest, runs, raw_tcp })
}

/// The guest, at work, in this process.
fn boot(plan: &GuestPlan) -> Result<Arc<Resident>, LabError> {
    let refused = |error: &dyn std::fmt::Display| LabError::Arguments(error.to_string());
    let config = MachineConfig {
        name: "watched".parse().map_err(|error| refused(&error))?,
        uuid: Uuid::nil(),
        memory: plan.memory,
        cpus: plan.cpus,
        cpu: CpuChoice::default(),
        cmdline: plan.command_line().parse().map_err(|error| refused(&error))?,
        kernel: Kernel::Demo,
        initramfs: None,
        disks: Vec::new(),
        nics: Vec::new(),
        virtio_console: false,
        on_reset: OnReset::Reboot,
    };
    let machine = Machine::boot(&config, Console::new()).map_err(|error| refused(&error))?;
    let resident =
        Resident::new(machine, Identity { name: "watched".to_owned(), uuid: Uuid::nil(), epoch: 0 });
    resident.resume().map_err(|error| refused(&error))?;
    let deadline = Instant::now() + BOOT_DEADLINE;
    // It says how fast it works when it has worked for a second.
    while resident.telemetry().is_none_or(|told| told.work_per_s == 0.0) {
        if Instant::now() >= deadline {
            let what = "the guest fills its memory and begins to work".to_owned();
            return Err(LabError::Late { what, after: BOOT_DEADLINE });
        }
        thread::sleep(EACH / 10);
    }
    Ok(resident)
}

/// Has it work for a while, and for a while with all of it watched.
fn watch(guest: &dyn Departing) -> Result<Caught, LabError> {
    let refused = |error: migrate::guest::GuestError| LabError::Arguments(error.to_string());
    let tell = || {
        let silent = || LabError::Died { said: "the guest tells nothing of its work any more".to_owned() };
        guest.telemetry().ok_or_else(silent)
    };
    let ram = guest.description().ram;
    let limit = ram.last().map_or(0, PageRun::end);
    let before = tell()?;
    thread::sleep(EACH);
    let alone = tell()?;
    guest.start_dirty_log().map_err(refused)?;
    let result = (|| {
        let mut all = PageSet::new(limit);
        guest.harvest(&mut all).map_err(refused)?;
        for region in &ram {
            for first in (region.first..region.end()).step_by(AT_ONCE as usize) {
                let count = AT_ONCE.min(region.end() - first);
                guest.protect(&all, PageRun { first, count }).map_err(refused)?;
            }
        }
        thread::sleep(EACH);
        let watched = tell()?;
        let mut caught = PageSet::new(limit);
        guest.harvest(&mut caught).map_err(refused)?;
        Ok(Caught {
            pages_per_s: pace(&before, &alone) * 1e6,
            lost_us: lost_us(&alone, &watched, pace(&before, &alone)),
            pages: caught.len(),
        })
    })();
    guest.stop_dirty_log();
    result
}

fn us_between(from: &Telemetry, to: &Telemetry) -> f64 {
    to.tsc.saturating_sub(from.tsc) as f64 * 1e3 / to.tsc_khz as f64
}

/// Units of work a µs.
fn pace(from: &Telemetry, to: &Telemetry) -> f64 {
    to.work.saturating_sub(from.work) as f64 / us_between(from, to).max(1.0)
}

fn lost_us(from: &Telemetry, to: &Telemetry, pace: f64) -> f64 {
    us_between(from, to) - to.work.saturating_sub(from.work) as f64 / pace.max(1e-9)
}

fn words(watched: &Watched) -> String {
    let spread = |of: fn(&Caught) -> f64| {
        let spread = Spread::of(watched.runs.iter().map(of)).expect("was measured");
        (spread.median, spread.min, spread.max)
    };
    let cells = |unit: fn(f64) -> String, (median, min, max): (f64, f64, f64)| {
        vec![unit(median), unit(min), unit(max)]
    };
    let mut table = Table::new(1, &["", "median", "least", "most"]);
    let mut row = |what: &str, cells: Vec<String>| table.row([vec![what.to_owned()], cells].concat());
    row("pages written a second before", cells(short, spread(|run| run.pages_per_s)));
    row("pages caught when all was watched", cells(short, spread(|run| run.pages as f64)));
    row("work lost by that, ms", cells(ms, spread(|run| run.lost_us)));
    row("a page caught, µs of the guest's time", cells(short, spread(Caught::us_a_page)));
    let rate = watched.raw_tcp.beside_bytes_per_s;
    let sent = |bytes_per_s: f64| PAGE_SIZE as f64 * 1e6 / bytes_per_s;
    row(
        "a page sent by plain TCP beside busy threads, µs",
        cells(short, (sent(rate.median), sent(rate.max), sent(rate.min))),
    );
    format!("{}; watched {} times\n\n{table}", watched.guest.describe(), watched.runs.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(seconds: u64, work: u64) -> Telemetry {
        Telemetry { tsc: seconds * 2_000_000_000, tsc_khz: 2_000_000, work, ..Telemetry::default() }
    }

    #[test]
    fn what_is_lost_is_what_would_have_been_done() {
        let (before, alone, watched) = (told(1, 500), told(2, 1500), told(3, 2250));
        assert_eq!(pace(&before, &alone), 0.001);
        assert_eq!(lost_us(&alone, &watched, pace(&before, &alone)), 250_000.0);
        let caught = Caught { pages_per_s: 1000.0, lost_us: 250_000.0, pages: 500 };
        assert_eq!(caught.us_a_page(), 500.0);
    }

    #[test]
    #[cfg_attr(no_kvm, ignore = "needs /dev/kvm")]
    fn each_page_that_is_written_is_caught_once() {
        let plan = GuestPlan {
            memory: "64M".parse().unwrap(),
            working_set_mib: 8,
            fill_mib: 16,
            ..lab::guest::tests::plan(Load::Max)
        };
        let guest = boot(&plan).unwrap();
        let caught = watch(&*guest).unwrap();
        // Besides the working set: its figures, its stacks, its console.
        assert!((2048..2048 + 512).contains(&caught.pages), "{caught:?}");
        assert!(caught.pages_per_s > 0.0, "{caught:?}");
    }
}
