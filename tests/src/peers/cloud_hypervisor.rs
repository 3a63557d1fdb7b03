//! Cloud Hypervisor's side, where it is installed: two processes with the demo guest's image, driven by its `ch-remote`.
//!
//! Its words are those of versions 53 and 54 (its `docs/live_migration.md`).

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde::Serialize;
use tokio::net::UnixStream;
use tokio::process::Child;
use vmm::lab::guest::GuestPlan;
use vmm::lab::slow::Network;

use super::error::{PeersError, within};
use super::route::Route;
use super::ruler::{Consoles, console};
use super::tied::tied;
use super::usage::Meters;
use super::ways::CloudHypervisorWay;
use super::{DESTINATION, LIMIT, SOURCE, Told, cells};
use crate::{Process, World};

const PROGRAM: &str = "cloud-hypervisor";
const REMOTE: &str = "ch-remote";
/// The first whose `ch-remote` takes the words used here.
const SINCE: u32 = 53;
const START: Duration = Duration::from_secs(20);
const BOOT: Duration = Duration::from_secs(10);
/// Between two looks for what cannot be waited for.
const PAUSE: Duration = Duration::from_millis(10);
/// Between two looks at what the source has used, which ends with the move: its vCPUs' time is not known after.
const LOOK: Duration = Duration::from_millis(50);

/// A Cloud Hypervisor that boots the guest here.
#[derive(Debug, Clone, Serialize)]
pub struct CloudHypervisor {
    /// What it says of itself.
    pub version: String,
}

/// Two of them, one with a guest.
#[derive(Debug)]
pub(super) struct Pair {
    pub(super) source: Process,
    pub(super) destination: Process,
    controls: [PathBuf; 2],
}

/// A destination that waits for a guest.
#[derive(Debug)]
pub(super) struct Ready {
    way: CloudHypervisorWay,
    source: PathBuf,
    source_id: u32,
    receiving: Child,
    route: Route,
}

impl CloudHypervisor {
    /// Looks for one that boots the demo guest.
    ///
    /// # Errors
    /// When there is none, it is too old, or it does not.
    pub(super) async fn find(world: &World) -> Result<Self, PeersError> {
        let (Some(version), Some(_)) = (version(PROGRAM), version(REMOTE)) else {
            return Err(PeersError::Failed(format!("{PROGRAM} and {REMOTE} are not on PATH")));
        };
        if major(&version).is_none_or(|major| major < SINCE) {
            return Err(PeersError::Failed(format!("{version}: {SINCE} or newer is needed")));
        }
        let it = Self { version };
        let _process = it.start(world, SOURCE, Some(&cells::bare()))?;
        Consoles::of(world).hear(1, BOOT, "Cloud Hypervisor boots the demo guest").await?;
        Ok(it)
    }

    pub(super) fn pair(&self, world: &World, guest: &GuestPlan) -> Result<Pair, PeersError> {
        Ok(Pair {
            source: self.start(world, SOURCE, Some(guest))?,
            destination: self.start(world, DESTINATION, None)?,
            controls: [SOURCE, DESTINATION].map(|name| control(world, name)),
        })
    }

    fn start(&self, world: &World, name: &str, guest: Option<&GuestPlan>) -> Result<Process, PeersError> {
        let mut command = match guest {
            Some(guest) => self.command(world, guest)?,
            None => Command::new(PROGRAM),
        };
        // What an error takes to show where it comes from the program forbids itself: it would end without a word.
        command.env("RUST_BACKTRACE", "0");
        command.arg("--api-socket").arg(control(world, name)).current_dir(world.folder());
        let process = world.start(tied(&command), name);
        // The destination learns from the source where the console is. In a file of that name it would write over
        // what the source has written; standard output is each one's own.
        symlink(process.out_path(), console(world, name)).map_err(PeersError::host("link a console"))?;
        Ok(process)
    }

    /// One that boots the guest, with its console on standard output.
    pub(super) fn command(&self, world: &World, guest: &GuestPlan) -> Result<Command, PeersError> {
        let kernel = world.path("kernel");
        fs::write(&kernel, ::guest::IMAGE).map_err(PeersError::host("write the guest's image"))?;
        let mut command = Command::new(PROGRAM);
        command.args(machine(&kernel, guest));
        Ok(command)
    }
}

impl Pair {
    /// Has the destination wait for the guest.
    pub(super) async fn prepare(
        &self,
        way: CloudHypervisorWay,
        network: Option<Network>,
    ) -> Result<Ready, PeersError> {
        for control in &self.controls {
            let answers = async {
                while UnixStream::connect(control).await.is_err() {
                    tokio::time::sleep(PAUSE).await;
                }
            };
            within(START, "Cloud Hypervisor's control socket", answers).await?;
        }
        // It cannot be asked which port it was given: one that is free now.
        let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|free| free.local_addr());
        let port = free.map_err(PeersError::host("find a free port"))?.port();
        let receiving = remote(&self.controls[1], "receive-migration", &receive(way, port))?;
        // To connect would be to begin.
        let listens = async {
            while !listens(&fs::read_to_string("/proc/net/tcp").unwrap_or_default(), port) {
                tokio::time::sleep(PAUSE).await;
            }
        };
        within(START, "the destination listens", listens).await?;
        let (source, source_id) = (self.controls[0].clone(), self.source.id());
        Ok(Ready { way, source, source_id, receiving, route: Route::to_port(port, network)? })
    }
}

impl Ready {
    /// Moves the guest. It is over when both commands have ended well: the destination's does when the guest runs there; the source's
    /// when the move has begun, which says nothing yet. By post-copy it is over when the source has ended, which it does when all
    /// pages are there.
    pub(super) async fn migrate(self, meters: &mut Meters) -> Result<Told, PeersError> {
        let Self { way, source, source_id, receiving, route } = self;
        let (carried, start) = (carried(), Instant::now());
        let sending = remote(&source, "send-migration", &send(way, route.address))?;
        for child in [&sending, &receiving] {
            // It may have ended already: then there is nothing to add.
            let _ = child.id().map(|pid| meters.add(pid));
        }
        let over = async {
            tokio::try_join!(ended(sending, SOURCE), ended(receiving, DESTINATION))?;
            if way.postcopy {
                ended_well(source_id).await?;
            }
            Ok::<_, PeersError>(())
        };
        let watched = async {
            tokio::pin!(over);
            loop {
                tokio::select! {
                    over = &mut over => break over,
                    () = tokio::time::sleep(LOOK) => meters.read_source(),
                }
            }
        };
        within(LIMIT, "the migration ends", watched).await??;
        let wall = start.elapsed();
        let wire_bytes = self::carried() - carried;
        Ok(Told { wall, total_ms: None, downtime_ms: None, wire_bytes }.over(&route))
    }
}

/// Whether it says so of something that went wrong.
pub(super) fn complains(line: &str) -> bool {
    line.starts_with(PROGRAM) && line.contains(" ERROR:")
}

fn version(program: &str) -> Option<String> {
    let output = Command::new(program).arg("--version").output().ok()?;
    Some(String::from_utf8_lossy(&output.stdout).lines().next()?.to_owned())
}

/// `cloud-hypervisor v53.0.0` → 53.
fn major(version: &str) -> Option<u32> {
    let number = version.split_whitespace().last()?.trim_start_matches('v');
    number.split('.').next()?.parse().ok()
}

fn machine(kernel: &Path, guest: &GuestPlan) -> Vec<String> {
    let kernel = kernel.display().to_string();
    let (cpus, memory) =
        (format!("boot={}", guest.cpus.get()), format!("size={}M", guest.memory.bytes() >> 20));
    let line = guest.command_line();
    let words = ["--kernel", &kernel, "--cmdline", &line, "--cpus", &cpus, "--memory", &memory];
    words.into_iter().chain(["--serial", "tty", "--console", "off"]).map(str::to_owned).collect()
}

fn receive(way: CloudHypervisorWay, port: u16) -> String {
    format!("receiver_url=tcp:127.0.0.1:{port}{}", memory_mode(way))
}

fn send(way: CloudHypervisorWay, to: SocketAddr) -> String {
    let CloudHypervisorWay { connections, downtime_ms, .. } = way;
    let limit = LIMIT.as_secs();
    format!(
        "destination_url=tcp:{to},connections={connections},downtime_ms={downtime_ms},timeout_s={limit}{}",
        memory_mode(way)
    )
}

/// Both sides are to be told.
fn memory_mode(way: CloudHypervisorWay) -> &'static str {
    if way.postcopy { ",memory_mode=postcopy" } else { "" }
}

/// Waits until the source has ended, for as long as whoever waits for this.
async fn ended_well(source: u32) -> Result<(), PeersError> {
    loop {
        match exit_status(source) {
            None => tokio::time::sleep(PAUSE).await,
            Some(0) => return Ok(()),
            Some(status) => {
                let why = format!("Cloud Hypervisor's {SOURCE} ended with status {status:#x}");
                return Err(PeersError::Failed(why));
            }
        }
    }
}

/// How a process has ended, if it has. Until it is dropped that is still to be seen (state Z, and the last word; proc(5)).
fn exit_status(pid: u32) -> Option<i32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let words: Vec<_> = stat.rsplit(") ").next()?.split_whitespace().collect();
    let (state, status) = (words.first()?, words.last()?);
    (*state == "Z").then(|| status.parse().unwrap_or(-1))
}

fn remote(control: &Path, order: &str, words: &str) -> Result<Child, PeersError> {
    let mut command = Command::new(REMOTE);
    command.arg("--api-socket").arg(control).args([order, words]);
    let mut command = tokio::process::Command::from(tied(&command));
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
    command.spawn().map_err(PeersError::host(format!("start {REMOTE}")))
}

async fn ended(child: Child, whose: &str) -> Result<(), PeersError> {
    let output = child.wait_with_output().await.map_err(PeersError::host(format!("wait for {REMOTE}")))?;
    let said = String::from_utf8_lossy(&output.stderr);
    let last = said.lines().last().unwrap_or("no word");
    let failed = || PeersError::Failed(format!("Cloud Hypervisor's {whose} says: {last}"));
    output.status.success().then_some(()).ok_or_else(failed)
}

/// Whether someone listens at this port, by `/proc/net/tcp` (state 0A).
fn listens(table: &str, port: u16) -> bool {
    table.lines().any(|line| {
        let words: Vec<_> = line.split_whitespace().collect();
        matches!(words[..], [_, local, _, "0A", ..] if local.ends_with(&format!(":{port:04X}")))
    })
}

/// Bytes that loopback has carried: Cloud Hypervisor does not say how many it sends.
fn carried() -> u64 {
    let bytes = fs::read_to_string("/sys/class/net/lo/statistics/tx_bytes").unwrap_or_default();
    bytes.trim().parse().unwrap_or(0)
}

fn control(world: &World, name: &str) -> PathBuf {
    world.path(&format!("{name}.api"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn its_own_words() {
        let words = machine(Path::new("/w/kernel"), &cells::bare()).join(" ");
        assert_eq!(
            words,
            "--kernel /w/kernel --cmdline fill=0 content=random idle --cpus boot=1 --memory size=1024M \
             --serial tty --console off"
        );
        let mut way = CloudHypervisorWay { connections: 4, downtime_ms: 300, postcopy: false };
        assert_eq!(receive(way, 7400), "receiver_url=tcp:127.0.0.1:7400");
        let sent = "destination_url=tcp:127.0.0.1:7400,connections=4,downtime_ms=300,timeout_s=30";
        let to = ([127, 0, 0, 1], 7400).into();
        assert_eq!(send(way, to), sent);
        way.postcopy = true;
        assert_eq!(receive(way, 7400), "receiver_url=tcp:127.0.0.1:7400,memory_mode=postcopy");
        assert_eq!(send(way, to), format!("{sent},memory_mode=postcopy"));
    }

    #[test]
    fn versions() {
        let versions = ["cloud-hypervisor v53.0.0", "cloud-hypervisor v54.0-12-gae44c29", "cloud-hypervisor"];
        assert_eq!(versions.map(major), [Some(53), Some(54), None]);
    }

    #[test]
    fn a_complaint_is_no_warning() {
        let of_vcpu = "cloud-hypervisor:   0.003702s: <vcpu0> WARN:vmm/src/cpu.rs:278 -- no SMT isolation";
        let of_move = "cloud-hypervisor:   7.990129s: <vmm> ERROR:vmm/src/lib.rs:2090 -- Migration failed: GetNestedState";
        assert!(!complains(of_vcpu) && complains(of_move) && !complains("vmm: ERROR: no"));
    }

    #[test]
    fn how_a_process_has_ended() {
        assert_eq!(exit_status(std::process::id()), None);
        for (program, status) in [("true", 0), ("false", 1 << 8)] {
            let mut child = Command::new(program).spawn().unwrap();
            let ended = crate::until("the program has ended", || exit_status(child.id()));
            assert_eq!(ended, status, "{program}");
            child.wait().unwrap();
        }
    }

    #[test]
    fn who_listens() {
        let table = "  sl  local_address rem_address   st\n   0: 0100007F:1CE8 00000000:0000 0A 00000000:00000000\n\
                     1: 0100007F:1CE9 0100007F:1CE8 01 00000000:00000000\n";
        assert_eq!([7400, 7401, 7402].map(|port| listens(table, port)), [true, false, false]);
    }
}
