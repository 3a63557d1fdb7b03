//! QEMU's side: two processes with the demo guest's image, driven as its own tools would.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::json;
use vmm::lab::guest::GuestPlan;
use vmm::lab::slow::Network;

use super::error::{PeersError, within};
use super::qmp::Qmp;
use super::route::Route;
use super::ruler::{Consoles, console};
use super::tied::tied;
use super::ways::{QemuWay, Start};
use super::{DESTINATION, LIMIT, SOURCE, Told, cells};
use crate::{Process, World};

pub(super) const PROGRAM: &str = "qemu-system-x86_64";
/// How the names of its vCPU threads begin, with `debug-threads=on`.
pub(super) const VCPU_THREADS: &str = "CPU ";
/// Bytes a second: no limit in practice. (0 is none as well, but not in all versions.)
const UNLIMITED: u64 = 1 << 40;
/// What is tried, the leanest first. QEMU takes the bits of IA32_ARCH_CAPABILITIES for settable; not every KVM does.
const MACHINES: [&str; 3] = ["microvm", "q35", "pc"];
const CPUS: [&str; 2] = ["host", "host,-arch-capabilities"];
const BOOT: Duration = Duration::from_secs(10);
/// Between two looks at a guest that boots.
const PAUSE: Duration = Duration::from_millis(20);

/// A QEMU that boots the guest here.
#[derive(Debug, Clone, Serialize)]
pub struct Qemu {
    /// What it says of itself.
    pub version: String,
    /// `-machine`.
    pub machine: &'static str,
    /// `-cpu`.
    pub cpu: &'static str,
}

/// Two QEMUs, one with a guest, the other waiting for it.
#[derive(Debug)]
pub(super) struct Pair {
    pub(super) source: Process,
    pub(super) destination: Process,
    controls: [PathBuf; 2],
}

impl Qemu {
    /// Looks for a machine and a CPU with which it boots the demo guest.
    ///
    /// # Errors
    /// When there is none, or no QEMU.
    pub async fn find(world: &World) -> Result<Self, PeersError> {
        let missing = |error| PeersError::Unfit(format!("{PROGRAM} does not start: {error}"));
        let output = Command::new(PROGRAM).arg("--version").output().map_err(missing)?;
        let version = String::from_utf8_lossy(&output.stdout).lines().next().unwrap_or_default().to_owned();
        let mut said = String::new();
        for machine in MACHINES {
            for cpu in CPUS {
                let qemu = Self { version: version.clone(), machine, cpu };
                match qemu.boots(&world.beside()).await? {
                    None => return Ok(qemu),
                    Some(why) => said = why,
                }
            }
        }
        Err(PeersError::Unfit(format!("{version} cannot boot the demo guest on this host: {said}")))
    }

    /// Nothing when it boots the guest, else why not.
    async fn boots(&self, world: &World) -> Result<Option<String>, PeersError> {
        let mut process = self.start(world, SOURCE, &cells::bare(), &[])?;
        let consoles = Consoles::of(world);
        let start = Instant::now();
        while consoles.transcript().work().is_empty() {
            let ended = process.has_ended().is_some();
            if ended || start.elapsed() > BOOT {
                let err = process.err();
                let said =
                    err.lines().rfind(|line| !line.starts_with("warning")).unwrap_or("the guest is silent");
                return Ok(Some(said.to_owned()));
            }
            tokio::time::sleep(PAUSE).await;
        }
        Ok(None)
    }

    pub(super) fn pair(&self, world: &World, guest: &GuestPlan) -> Result<Pair, PeersError> {
        Ok(Pair {
            source: self.start(world, SOURCE, guest, &[])?,
            destination: self.start(world, DESTINATION, guest, &["-incoming", "defer"])?,
            controls: [SOURCE, DESTINATION].map(|name| control(world, name)),
        })
    }

    fn start(
        &self,
        world: &World,
        name: &str,
        guest: &GuestPlan,
        more: &[&str],
    ) -> Result<Process, PeersError> {
        let mut command = self.command(world, guest, &format!("file:{}", console(world, name).display()))?;
        command.args(["-name", &format!("{name},debug-threads=on")]);
        command.args(["-qmp", &format!("unix:{},server=on,wait=off", control(world, name).display())]);
        command.args(more);
        Ok(world.start(tied(&command), name))
    }

    /// A QEMU that boots the guest, whose console is at `serial`.
    pub(super) fn command(
        &self,
        world: &World,
        guest: &GuestPlan,
        serial: &str,
    ) -> Result<Command, PeersError> {
        let kernel = world.path("kernel");
        fs::write(&kernel, ::guest::IMAGE).map_err(PeersError::host("write the guest's image"))?;
        let (memory, cpus) = ((guest.memory.bytes() >> 20).to_string(), guest.cpus.get().to_string());
        let mut command = Command::new(PROGRAM);
        command.args(["-accel", "kvm", "-machine", self.machine, "-cpu", self.cpu]);
        command.args(["-m", &memory, "-smp", &cpus, "-serial", serial]);
        command.args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-kernel"]);
        command.arg(&kernel).args(["-append", &guest.command_line()]).current_dir(world.folder());
        Ok(command)
    }
}

impl Pair {
    /// Tells both how the guest is to be moved, and has the destination wait for it.
    pub(super) async fn prepare(&self, way: &QemuWay, network: Option<Network>) -> Result<Ready, PeersError> {
        let mut source = Qmp::connect(&self.controls[0]).await?;
        let mut destination = Qmp::connect(&self.controls[1]).await?;
        for side in [&mut source, &mut destination] {
            let multifd = way.multifd_channels.map(|_| "multifd");
            let postcopy = way.postcopy.map(|_| "postcopy-ram");
            let names = way.capabilities.iter().copied().chain(["events"]).chain(multifd).chain(postcopy);
            let on: Vec<_> = names.map(|name| json!({ "capability": name, "state": true })).collect();
            side.execute("migrate-set-capabilities", json!({ "capabilities": on })).await?;
            let mut parameters = json!({ "max-bandwidth": UNLIMITED, "downtime-limit": way.downtime_limit });
            if let Some(channels) = way.multifd_channels {
                parameters["multifd-channels"] = json!(channels);
            }
            if let Some(level) = way.zstd_level {
                parameters["multifd-compression"] = json!("zstd");
                parameters["multifd-zstd-level"] = json!(level);
            }
            side.execute("migrate-set-parameters", parameters).await?;
        }
        destination.execute("migrate-incoming", json!({ "uri": "tcp:127.0.0.1:0" })).await?;
        let said = destination.execute("query-migrate", json!({})).await?;
        let port = said["socket-address"][0]["port"].as_str().and_then(|port| port.parse().ok());
        let port = port.ok_or_else(|| PeersError::Failed(format!("QEMU listens nowhere: {said}")))?;
        Ok(Ready { source, destination, route: Route::to_port(port, network)? })
    }
}

/// Two QEMUs that need only be told to begin.
#[derive(Debug)]
pub(super) struct Ready {
    source: Qmp,
    destination: Qmp,
    route: Route,
}

impl Ready {
    /// Moves the guest. It is over when both say so.
    pub(super) async fn migrate(mut self, way: &QemuWay) -> Result<Told, PeersError> {
        let start = Instant::now();
        within(LIMIT, "the migration ends", self.go(way)).await??;
        let wall = start.elapsed();
        let said = self.source.execute("query-migrate", json!({})).await?;
        let figure = |value: &serde_json::Value| {
            value.as_u64().ok_or_else(|| PeersError::Failed(format!("QEMU has no figures: {said}")))
        };
        let (total, bytes) = (figure(&said["total-time"])?, figure(&said["ram"]["transferred"])?);
        let downtime_ms = said["downtime"].as_f64();
        let told = Told { wall, total_ms: Some(total as f64), downtime_ms, wire_bytes: bytes };
        Ok(told.over(&self.route))
    }

    async fn go(&mut self, way: &QemuWay) -> Result<(), PeersError> {
        let uri = format!("tcp:{}", self.route.address);
        self.source.execute("migrate", json!({ "uri": uri })).await?;
        if way.postcopy == Some(Start::AfterOnePass) {
            // The first pass begins with the first harvest of the dirty log and ends with the second.
            while self.source.event("MIGRATION_PASS").await?["data"]["pass"].as_u64() < Some(2) {}
        }
        if way.postcopy.is_some() {
            self.source.execute("migrate-start-postcopy", json!({})).await?;
        }
        completed(&mut self.source, SOURCE).await?;
        completed(&mut self.destination, DESTINATION).await
    }
}

async fn completed(side: &mut Qmp, whose: &str) -> Result<(), PeersError> {
    loop {
        let said = side.event("MIGRATION").await?;
        match said["data"]["status"].as_str().unwrap_or_default() {
            "completed" => return Ok(()),
            bad @ ("failed" | "cancelled" | "postcopy-paused") => {
                return Err(PeersError::Failed(format!("QEMU's {whose} says: {bad}")));
            }
            _ => {}
        }
    }
}

fn control(world: &World, name: &str) -> PathBuf {
    world.path(&format!("{name}.qmp"))
}
