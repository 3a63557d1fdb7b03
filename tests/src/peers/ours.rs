//! Our side: `vmm run`, `vmm receive`, and the `migrate` command.

use std::process::Stdio;
use std::time::{Duration, Instant};

use migrate::client::Client;
use migrate::options::Mode;
use migrate::progress::Event;
use migrate::report::{Phase, Report};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use vmm::lab::guest::GuestPlan;
use vmm::lab::slow::Network;
use vmm::lab::verdict;

use super::error::{PeersError, within};
use super::route::Route;
use super::ruler::console;
use super::tied::tied;
use super::usage::Meters;
use super::{DESTINATION, LIMIT, SOURCE, Told};
use crate::{Process, World};

const START: Duration = Duration::from_secs(20);
/// Between two looks for an answer.
const PAUSE: Duration = Duration::from_millis(10);
/// Post-copy goes on after the engine's own limit.
const AFTER: Duration = Duration::from_secs(10);

/// Two VMMs, one with a guest, the other waiting for it.
#[derive(Debug)]
pub(super) struct Pair {
    pub(super) source: Process,
    pub(super) destination: Process,
}

impl Pair {
    pub(super) fn start(world: &World, guest: &GuestPlan) -> Self {
        let (memory, cpus) = (guest.memory.to_string(), guest.cpus.get().to_string());
        let line = guest.command_line();
        let run = ["run", "--memory", &memory, "--cpus", &cpus, "--cmdline", &line];
        let source = start(world, SOURCE, &run);
        let destination = start(world, DESTINATION, &["receive", "--listen", "127.0.0.1:0"]);
        Self { source, destination }
    }

    /// Moves the guest.
    pub(super) async fn migrate(
        &self,
        world: &World,
        (mode, streams): (Mode, Option<u32>),
        network: Option<Network>,
        meters: &mut Meters,
    ) -> Result<Told, PeersError> {
        let there = within(START, "the destination listens", address(world)).await?;
        let there = there.parse().map_err(|_| PeersError::Failed(format!("{there} is no address")))?;
        let route = Route::to(there, network)?;
        let to = route.address.to_string();
        let mode = migrate::cli::words::mode(mode).replace('-', "");
        let (streams, limit) = (streams.map(|n| n.to_string()), format!("{}s", LIMIT.as_secs()));
        let mut words = vec!["--vm", SOURCE, "--to", &to, "--mode", &mode, "--timeout", &limit, "--json"];
        words.extend(streams.iter().flat_map(|streams| ["--streams", streams]));
        let mut command = tokio::process::Command::from(tied(&world.command("migrate", words)));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let start = Instant::now();
        let mut child = command.spawn().map_err(PeersError::host("start migrate"))?;
        if let Some(pid) = child.id() {
            meters.add(pid)?;
        }
        let (out, mut err) =
            (child.stdout.take().expect("asked for"), child.stderr.take().expect("asked for"));
        let followed = follow(BufReader::new(out), meters, start);
        let (report, wall) = within(LIMIT + AFTER, "the migration ends", followed).await??;
        within(START, "migrate ends", child.wait()).await?.map_err(PeersError::host("wait for migrate"))?;
        let Some(report) = report else {
            let mut said = String::new();
            let _ = within(START, "migrate's words", err.read_to_string(&mut said)).await?;
            return Err(PeersError::Failed(format!("no report: {}", said.trim())));
        };
        let problems = verdict::of_report(&report, false);
        if !problems.is_empty() {
            return Err(PeersError::Failed(problems.join("; ")));
        }
        let downtime_ms = report.switchover.map(|switchover| switchover.downtime_us as f64 / 1e3);
        let (total_ms, wire_bytes) = (Some(report.total_us as f64 / 1e3), report.traffic.bytes);
        Ok(Told { wall, total_ms, downtime_ms, wire_bytes }.over(&route))
    }
}

/// Reads events to the end. What the source uses is read when the guest has left it, and at the end: soon it is gone.
/// The migration is over when nothing is left on the source; what follows is what the guest says of it, which the source
/// waits for 0.25 s for the report's sake.
async fn follow(
    out: BufReader<tokio::process::ChildStdout>,
    meters: &mut Meters,
    start: Instant,
) -> Result<(Option<Report>, Duration), PeersError> {
    let (mut lines, mut report, mut over) = (out.lines(), None, None);
    while let Some(line) = lines.next_line().await.map_err(PeersError::host("hear migrate"))? {
        match serde_json::from_str(&line) {
            Ok(Event::Switched { .. }) => meters.read(),
            Ok(Event::Phase { phase: Phase::Finish }) => {
                over.get_or_insert_with(|| start.elapsed());
            }
            Ok(Event::Ended { report: it }) => {
                meters.read();
                report = Some(*it);
            }
            _ => {}
        }
    }
    Ok((report, over.unwrap_or_else(|| start.elapsed())))
}

fn start(world: &World, name: &str, words: &[&str]) -> Process {
    let mut command = world.command("vmm", words.iter().copied());
    command.args(["--name", name, "--console"]).arg(console(world, name));
    world.start(tied(&command), name)
}

/// Where the destination waits for a guest.
async fn address(world: &World) -> String {
    loop {
        if let Ok(client) = Client::named_in(&world.runtime(), DESTINATION)
            && let Ok(info) = client.info().await
            && let Some(listen) = info.listen
        {
            return listen;
        }
        tokio::time::sleep(PAUSE).await;
    }
}
