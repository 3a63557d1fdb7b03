//! What a move costs the host: CPU time of every process that takes part, and memory beyond the guest's own.

use std::fs;

use serde::Serialize;
use vmm::lab::watch::Meter;

use super::error::PeersError;

/// Guest memory is mapped in pieces larger than this; nothing else that a VMM fills is.
const LARGE_KIB: u64 = 64 << 10;

/// What a move cost.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Cost {
    /// CPU time of all processes, from the command until it was over, seconds.
    pub cpu_s: f64,
    /// The same without the vCPU threads.
    pub engine_cpu_s: f64,
    /// The source's peak of resident memory, beyond what it had of the guest's memory; bytes.
    pub source_rss_beyond_guest: Option<u64>,
    /// The destination's.
    pub destination_rss_beyond_guest: Option<u64>,
}

/// Watches the processes of one move.
#[derive(Debug)]
pub(super) struct Meters {
    vcpus: &'static str,
    all: Vec<Meter>,
    source_guest: u64,
}

impl Meters {
    /// Begins with the source, which is the first, and the destination. `source_guest`: as [`resident_guest`] says.
    pub(super) fn start(pids: [u32; 2], vcpus: &'static str, source_guest: u64) -> Result<Self, PeersError> {
        let mut meters = Self { vcpus, all: Vec::new(), source_guest };
        pids.into_iter().try_for_each(|pid| meters.add(pid))?;
        Ok(meters)
    }

    /// A further process.
    pub(super) fn add(&mut self, pid: u32) -> Result<(), PeersError> {
        let meter = Meter::start(pid, self.vcpus).map_err(PeersError::host("read what a process uses"))?;
        self.all.push(meter);
        Ok(())
    }

    /// Reads all of them: before one ends, and at the end.
    pub(super) fn read(&mut self) {
        self.all.iter_mut().for_each(Meter::read);
    }

    /// What was used. `destination`: its process, which has the guest now.
    pub(super) fn cost(&self, destination: u32) -> Cost {
        let shares: Vec<_> = self.all.iter().map(Meter::used).collect();
        let cpu = shares.iter().map(|share| share.cpu.all).sum::<f64>();
        let vcpus = shares.iter().map(|share| share.cpu.vcpus).sum::<f64>();
        let beyond = |at: usize, guest: u64| Some(shares[at].peak_rss?.saturating_sub(guest));
        Cost {
            cpu_s: cpu,
            engine_cpu_s: (cpu - vcpus).max(0.0),
            source_rss_beyond_guest: beyond(0, self.source_guest),
            destination_rss_beyond_guest: beyond(1, resident_guest(destination)),
        }
    }
}

/// Guest memory that is resident in this process, bytes (smaps, proc(5)).
pub(super) fn resident_guest(pid: u32) -> u64 {
    large(&fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap_or_default())
}

fn large(smaps: &str) -> u64 {
    let kib =
        |line: &str, name: &str| line.strip_prefix(name)?.trim().strip_suffix(" kB")?.parse::<u64>().ok();
    let (mut size, mut sum) = (0, 0);
    for line in smaps.lines() {
        if let Some(it) = kib(line, "Size:") {
            size = it;
        } else if let Some(it) = kib(line, "Rss:").filter(|_| size > LARGE_KIB) {
            sum += it << 10;
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_large_mappings_are_the_guests() {
        let smaps = "1-2 rw-p 0 0:0 0\nSize: 65536 kB\nKernelPageSize: 4 kB\nRss: 9 kB\n3-4 rw-s\n\
                     Size: 1048576 kB\nRss:   7 kB\nPss: 7 kB\n";
        assert_eq!(large(smaps), 7 << 10);
    }
}
