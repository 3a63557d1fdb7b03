//! What a process has used up: CPU time, with that of its vCPU threads told apart, and memory.
//!
//! From /proc (proc(5)). A process that has exited but was not waited for can still be asked for its CPU time,
//! all its threads included; its memory is gone by then.

use std::fs;
use std::io;
use std::path::Path;

use serde::Serialize;

/// How the names of the vCPU threads of a `vmm` begin.
pub const VCPU_THREADS: &str = "vcpu";

/// CPU time of a process since its start, in seconds. Its grain is a clock tick, as a rule 10 ms.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct CpuTime {
    /// Of all threads, past ones included, in user and kernel mode.
    pub all: f64,
    /// Of the vCPU threads that live: the guest's own work, and what the kernel did on its behalf.
    pub vcpus: f64,
}

impl CpuTime {
    /// Of process `pid`, now. The names of its vCPU threads begin with `vcpus`.
    ///
    /// # Errors
    /// When there is no such process.
    pub fn of(pid: u32, vcpus: &str) -> io::Result<Self> {
        let process = Path::new("/proc").join(pid.to_string());
        let all = Stat::read(&process.join("stat"))?.seconds;
        // Of a process that has exited, threads cannot be asked any more.
        let threads = fs::read_dir(process.join("task")).into_iter().flatten().flatten();
        let threads = threads.filter_map(|thread| Stat::read(&thread.path().join("stat")).ok());
        let vcpus =
            threads.filter(|thread| thread.name.starts_with(vcpus)).map(|thread| thread.seconds).sum();
        Ok(Self { all, vcpus })
    }
}

/// The most memory process `pid` had resident, in bytes; nothing when it has exited.
#[must_use]
pub fn peak_rss(pid: u32) -> Option<u64> {
    peak_of(&fs::read_to_string(format!("/proc/{pid}/status")).ok()?)
}

/// Memory that process `pid` has resident, in bytes; nothing when it has exited.
#[must_use]
pub fn resident_bytes(pid: u32) -> Option<u64> {
    resident_of(&fs::read_to_string(format!("/proc/{pid}/statm")).ok()?)
}

/// CPU time of all of this host's cores since it booted, seconds.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct HostTime {
    /// Used, by whomever, guests and the host below included.
    pub busy: f64,
    /// Taken by the host below this one; nothing on a host of metal.
    pub stolen: f64,
}

impl HostTime {
    /// Until now.
    #[must_use]
    pub fn now() -> Self {
        let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
        Self::parse(&stat, rustix::param::clock_ticks_per_second())
    }

    /// proc(5): user, nice, system, idle, iowait, irq, softirq, steal. What guests used is in the first two.
    fn parse(stat: &str, ticks_per_second: u64) -> Self {
        let line = stat.lines().find_map(|line| line.strip_prefix("cpu "));
        let ticks: Vec<u64> = line.unwrap_or_default().split_whitespace().flat_map(str::parse).collect();
        let busy = ticks.iter().take(8).sum::<u64>() - ticks.iter().skip(3).take(2).sum::<u64>();
        let seconds = |ticks: u64| ticks as f64 / ticks_per_second as f64;
        Self { busy: seconds(busy), stolen: seconds(ticks.get(7).copied().unwrap_or(0)) }
    }
}

/// The second number is in pages; a process that has ended has none.
fn resident_of(statm: &str) -> Option<u64> {
    let pages: u64 = statm.split_whitespace().nth(1)?.parse().ok()?;
    Some(pages * rustix::param::page_size() as u64).filter(|bytes| *bytes > 0)
}

fn peak_of(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? << 10)
}

/// The parts of a stat file that are of use.
#[derive(Debug, PartialEq)]
struct Stat {
    name: String,
    seconds: f64,
}

impl Stat {
    fn read(path: &Path) -> io::Result<Self> {
        let text = fs::read_to_string(path)?;
        let ticks_per_second = rustix::param::clock_ticks_per_second();
        Self::parse(&text, ticks_per_second)
            .ok_or_else(|| io::Error::other(format!("not a stat file: {text:?}")))
    }

    /// The name stands in parentheses and may contain some; utime and stime are fields 14 and 15 from 1.
    fn parse(text: &str, ticks_per_second: u64) -> Option<Self> {
        let (head, tail) = text.rsplit_once(')')?;
        let name = head.split_once('(')?.1.to_owned();
        let mut times = tail.split_whitespace().skip(11).map(str::parse::<u64>);
        let (user, system) = (times.next()?.ok()?, times.next()?.ok()?);
        Some(Self { name, seconds: (user + system) as f64 / ticks_per_second as f64 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_parentheses_does_not_shift_the_fields() {
        let line = "42 (vcpu) (0) S 1 1 1 0 -1 4194304 100 0 0 0 150 50 0 0 20 0 4 0 100 1000 10";
        assert_eq!(Stat::parse(line, 100), Some(Stat { name: "vcpu) (0".into(), seconds: 2.0 }));
        assert_eq!(Stat::parse("42 (a) S 1", 100), None);
    }

    #[test]
    fn this_process_has_used_something() {
        let pid = std::process::id();
        assert!(CpuTime::of(pid, VCPU_THREADS).unwrap().all >= 0.0);
        assert!(peak_rss(pid).unwrap() > 1 << 20);
        assert!(resident_bytes(pid).unwrap() > 1 << 20);
    }

    #[test]
    fn a_host_is_busy_with_all_but_idling_and_what_was_stolen_is_told_apart() {
        let stat = "cpu  1 2 4 1000 2000 8 16 32 4000 4000\ncpu0 1 1 1 1 1 1 1 1 1 1\n";
        assert_eq!(HostTime::parse(stat, 1), HostTime { busy: 63.0, stolen: 32.0 });
        assert_eq!(HostTime::parse("cpu  10 20 30 40 50 60 70\n", 10).stolen, 0.0, "Linux before 2.6.11");
        assert_eq!(HostTime::parse("", 100), HostTime::default());
        assert!(HostTime::now().busy > 0.0);
    }

    #[test]
    fn the_peak_is_in_kilobytes() {
        assert_eq!(peak_of("Name:\tx\nVmHWM:\t    2048 kB\n"), Some(2 << 20));
        assert_eq!(peak_of("State:\tZ (zombie)\n"), None);
        assert_eq!(resident_of("0 0 0 0 0 0 0\n"), None, "a zombie");
    }
}
