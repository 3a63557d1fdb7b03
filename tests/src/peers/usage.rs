//! What a move costs the host: CPU time of every process that takes part, and memory beyond the guest's own.

use std::fs;

use serde::Serialize;
use vmm::lab::usage::HostTime;
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
    /// CPU time that all else on this host took meanwhile, and the host below it, seconds: what disturbed the move.
    pub others_cpu_s: f64,
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
    /// CPU time of the whole host at the beginning, and when it was read last; seconds.
    host: [f64; 2],
    source_guest: u64,
}

impl Meters {
    /// Begins with the source, which is the first, and the destination. `source_guest`: as [`Resident`] says.
    pub(super) fn start(pids: [u32; 2], vcpus: &'static str, source_guest: u64) -> Result<Self, PeersError> {
        let mut meters = Self { vcpus, all: Vec::new(), host: [0.0; 2], source_guest };
        pids.into_iter().try_for_each(|pid| meters.add(pid))?;
        meters.host = [HostTime::now().busy; 2];
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
        self.host[1] = HostTime::now().busy;
    }

    /// Reads the source, while it lives.
    pub(super) fn read_source(&mut self) {
        self.all[0].read();
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
            others_cpu_s: (self.host[1] - self.host[0] - cpu).max(0.0),
            source_rss_beyond_guest: beyond(0, self.source_guest),
            destination_rss_beyond_guest: beyond(1, Resident::of(destination).guest),
        }
    }
}

/// Memory that is resident in a process, bytes (smaps, proc(5)).
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Resident {
    /// The guest's.
    pub(super) guest: u64,
    /// All other.
    pub(super) other: u64,
}

impl Resident {
    /// Of this process, now.
    pub(super) fn of(pid: u32) -> Self {
        Self::parse(&fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap_or_default())
    }

    fn parse(smaps: &str) -> Self {
        let kib =
            |line: &str, name: &str| line.strip_prefix(name)?.trim().strip_suffix(" kB")?.parse::<u64>().ok();
        let (mut size, mut sums) = (0, Self::default());
        for line in smaps.lines() {
            if let Some(it) = kib(line, "Size:") {
                size = it;
            } else if let Some(it) = kib(line, "Rss:") {
                let sum = if size > LARGE_KIB { &mut sums.guest } else { &mut sums.other };
                *sum += it << 10;
            }
        }
        sums
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_large_mappings_are_the_guests() {
        let smaps = "1-2 rw-p 0 0:0 0\nSize: 65536 kB\nKernelPageSize: 4 kB\nRss: 9 kB\n3-4 rw-s\n\
                     Size: 1048576 kB\nRss:   7 kB\nPss: 7 kB\n";
        assert_eq!(Resident::parse(smaps), Resident { guest: 7 << 10, other: 9 << 10 });
    }
}
