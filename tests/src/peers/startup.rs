//! What a VMM costs before anything is moved: how soon its guest is heard, what it has in memory beside an idle guest, how
//! large its program is.
//!
//! These processes are not [tied](super::tied): to become another program takes a millisecond, which would count. Instead
//! they may use the CPU for so long only, which the guest, who never sleeps, does; so none outlives this program by much.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Resource, Rlimit, prlimit};
use serde::Serialize;
use tokio::io::AsyncReadExt;
use tokio::process::{Child, ChildStdout};
use vmm::lab::guest::GuestPlan;
use vmm::lab::stats::Spread;

use super::cloud_hypervisor::CloudHypervisor;
use super::error::{PeersError, within};
use super::qemu::Qemu;
use super::usage::Resident;
use super::{Peers, SOURCE, cells};
use crate::{Transcript, World};

/// From the start of the process to the guest's first report.
const DEADLINE: Duration = Duration::from_secs(20);
/// CPU time that a process may use, seconds.
const MOST_CPU_S: u64 = 30;

/// One VMM.
#[derive(Debug, Clone, Serialize)]
pub struct StartUp {
    /// Whose it is.
    pub vmm: String,
    /// From the start of the process to the first byte of the guest's console, ms.
    pub first_byte_ms: Spread,
    /// Resident memory beyond the guest's, when that has booted and is idle; bytes.
    pub rss_beyond_guest: Spread,
    /// Its program without symbols, bytes.
    pub program_bytes: u64,
    /// The shared libraries that it had loaded, bytes.
    pub library_bytes: u64,
}

/// Whose start is measured.
#[derive(Debug, Clone, Copy)]
enum Whose<'a> {
    Ours,
    Qemu(&'a Qemu),
    CloudHypervisor(&'a CloudHypervisor),
}

/// What one start showed.
#[derive(Debug, Clone, Copy)]
struct Start {
    first_byte_ms: f64,
    rss_beyond_guest: u64,
    program_bytes: u64,
    library_bytes: u64,
}

/// Starts each so many times, in turn.
pub(super) async fn measure(world: &World, peers: &Peers, times: u32) -> Result<Vec<StartUp>, PeersError> {
    let mut all = vec![Whose::Ours, Whose::Qemu(&peers.qemu)];
    all.extend(peers.cloud_hypervisor.iter().map(Whose::CloudHypervisor));
    let mut starts = vec![Vec::new(); all.len()];
    for _ in 0..times {
        for (whose, starts) in all.iter().zip(&mut starts) {
            starts.push(start(&world.beside(), *whose).await?);
        }
    }
    let summed = all.iter().zip(&starts).filter_map(|(whose, starts)| whose.sum_up(starts));
    Ok(summed.collect())
}

impl Whose<'_> {
    fn name(self) -> String {
        match self {
            Self::Ours => "vmm".to_owned(),
            Self::Qemu(qemu) => format!("QEMU {}", qemu.machine),
            Self::CloudHypervisor(_) => "Cloud Hypervisor".to_owned(),
        }
    }

    /// With the guest's console on standard output.
    fn command(self, world: &World, guest: &GuestPlan) -> Result<Command, PeersError> {
        match self {
            Self::Ours => {
                let (memory, cpus) = (guest.memory.to_string(), guest.cpus.get().to_string());
                let line = guest.command_line();
                let run = ["run", "--memory", &memory, "--cpus", &cpus, "--cmdline", &line];
                Ok(world.command("vmm", run.into_iter().chain(["--name", SOURCE])))
            }
            Self::Qemu(qemu) => qemu.command(world, guest, "stdio"),
            Self::CloudHypervisor(it) => it.command(world, guest),
        }
    }

    fn sum_up(self, starts: &[Start]) -> Option<StartUp> {
        let spread = |of: fn(&Start) -> f64| Spread::of(starts.iter().map(of));
        let last = starts.last()?;
        Some(StartUp {
            vmm: self.name(),
            first_byte_ms: spread(|start| start.first_byte_ms)?,
            rss_beyond_guest: spread(|start| start.rss_beyond_guest as f64)?,
            program_bytes: last.program_bytes,
            library_bytes: last.library_bytes,
        })
    }
}

async fn start(world: &World, whose: Whose<'_>) -> Result<Start, PeersError> {
    let mut command = tokio::process::Command::from(whose.command(world, &cells::bare())?);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let begin = Instant::now();
    let mut child = command.spawn().map_err(PeersError::host(format!("start {}", whose.name())))?;
    let mut out = child.stdout.take().expect("asked for");
    let pid = bounded(&child)?;
    let mut said = vec![0];
    let heard = within(DEADLINE, "the guest says something", out.read_exact(&mut said)).await?;
    let first_byte_ms = begin.elapsed().as_secs_f64() * 1e3;
    if heard.is_err() {
        return Err(silent(child, whose).await);
    }
    within(DEADLINE, "the guest's first report", report(&mut out, said)).await?;
    let resident = Resident::of(pid);
    let program = fs::read_link(format!("/proc/{pid}/exe")).map_err(PeersError::host("find a program"))?;
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).map_err(PeersError::host("read its maps"))?;
    let libraries = libraries(&maps).iter().filter_map(|path| Some(fs::metadata(path).ok()?.len())).sum();
    let _ = child.kill().await;
    Ok(Start {
        first_byte_ms,
        rss_beyond_guest: resident.other,
        program_bytes: stripped(world, &program)?,
        library_bytes: libraries,
    })
}

/// The process's id, now that it cannot work for ever.
fn bounded(child: &Child) -> Result<u32, PeersError> {
    let ended = || PeersError::Failed("it has ended at once".to_owned());
    let pid = child.id().ok_or_else(ended)?;
    let process = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or_else(ended)?;
    let most = Rlimit { current: Some(MOST_CPU_S), maximum: Some(MOST_CPU_S) };
    prlimit(Some(process), Resource::Cpu, most)
        .map_err(|error| PeersError::host("limit a process's CPU time")(error.into()))?;
    Ok(pid)
}

/// Listens until the guest has reported, after which it has nothing to do but that. `said`: its first byte.
async fn report(out: &mut ChildStdout, mut said: Vec<u8>) {
    while Transcript::of([&said]).work().is_empty() && out.read_buf(&mut said).await.is_ok_and(|n| n > 0) {}
}

async fn silent(mut child: Child, whose: Whose<'_>) -> PeersError {
    let mut said = String::new();
    let _ = child.kill().await;
    if let Some(err) = &mut child.stderr {
        let _ = err.read_to_string(&mut said).await;
    }
    let last = said.lines().last().unwrap_or("it says nothing");
    PeersError::Failed(format!("{} ended before its guest spoke: {last}", whose.name()))
}

fn libraries(maps: &str) -> BTreeSet<PathBuf> {
    let paths = maps.lines().filter_map(|line| line.find('/').map(|at| &line[at..]));
    paths.filter(|path| path.contains(".so")).map(PathBuf::from).collect()
}

/// The size of a program without symbols; with them where there is no `strip` here.
fn stripped(world: &World, program: &Path) -> Result<u64, PeersError> {
    let bare = world.path("stripped");
    let strip = Command::new("strip").arg("-o").arg(&bare).arg(program).stderr(Stdio::null()).status();
    let path = if strip.is_ok_and(|status| status.success()) { &bare } else { program };
    let size = fs::metadata(path).map_err(PeersError::host(format!("read {}", program.display())))?;
    Ok(size.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_library_counts_once() {
        let maps = "1-2 r--p 0 fe:00 7  /usr/lib/libc.so.6\n2-3 r-xp 0 fe:00 7  /usr/lib/libc.so.6\n\
                    3-4 r-xp 0 fe:00 8  /usr/bin/vmm\n4-5 rw-p 0 0:0 0  [stack]\n5-6 rw-p 0 0:0 0\n";
        assert_eq!(libraries(maps), BTreeSet::from([PathBuf::from("/usr/lib/libc.so.6")]));
    }
}
