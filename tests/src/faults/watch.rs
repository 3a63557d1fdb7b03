//! Two processes watched while one may hand its guest to the other: by the processor time of their vCPUs, as the kernel
//! counts it, and by what a process keeps open.

use std::fs;
use std::path::PathBuf;

/// Processor time of vCPUs below this is not a guest that runs, ns: they are set up, or restored.
const RUNS: u64 = 1_000_000;
/// So many samples in a row in which both run are no handover any more.
const TOO_MANY: u32 = 4;

/// Both sides of a migration.
#[derive(Debug)]
pub(super) struct Watch {
    sides: [Vcpus; 2],
    together: u32,
}

/// The vCPUs of one process.
#[derive(Debug)]
pub(super) struct Vcpus {
    pid: u32,
    spent: Option<u64>,
}

/// What a process that rests keeps: open files, and its threads by name.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Rest {
    files: usize,
    threads: Vec<String>,
}

impl Watch {
    pub(super) fn of(source: u32, destination: u32) -> Self {
        Self { sides: [source, destination].map(|pid| Vcpus { pid, spent: None }), together: 0 }
    }

    /// One sample.
    ///
    /// # Panics
    /// When the guest runs on both sides.
    pub(super) fn look(&mut self) {
        let [source, destination] = self.sides.each_mut().map(Vcpus::have_run);
        self.together = if source && destination { self.together + 1 } else { 0 };
        assert!(self.together < TOO_MANY, "TWO RUNNERS: the vCPUs of both sides run");
    }
}

impl Vcpus {
    pub(super) fn of(pid: u32) -> Self {
        Self { pid, spent: None }
    }

    /// Whether they have run since the last time this was asked.
    pub(super) fn have_run(&mut self) -> bool {
        let now = self.read();
        let before = std::mem::replace(&mut self.spent, now);
        now.zip(before).is_some_and(|(now, before)| now > before + RUNS)
    }

    /// All of them together, ns; none where there are none.
    fn read(&self) -> Option<u64> {
        let times = tasks(self.pid).into_iter().filter_map(|task| {
            let name = fs::read_to_string(task.join("comm")).ok()?;
            let times = fs::read_to_string(task.join("schedstat")).ok()?;
            name.starts_with("vcpu").then(|| times.split(' ').next()?.parse::<u64>().ok())?
        });
        times.reduce(|one, other| one + other)
    }
}

impl Rest {
    /// Of threads only those that are not of a pool, which come and go; nor those of the kernel.
    pub(super) fn of(pid: u32) -> Self {
        let names = tasks(pid).into_iter().filter_map(|task| fs::read_to_string(task.join("comm")).ok());
        let mut threads: Vec<_> = names
            .map(|name| name.trim().to_owned())
            .filter(|name| !name.starts_with("tokio") && !name.starts_with("kvm"))
            .collect();
        threads.sort();
        Self { files: files(pid).len(), threads }
    }

    /// Whether nothing has been left beside what was there before.
    pub(super) fn is_within(&self, before: &Self) -> bool {
        let mut allowed = before.threads.iter();
        // Both are sorted.
        self.files <= before.files && self.threads.iter().all(|thread| allowed.any(|before| before == thread))
    }
}

/// Numbers of a process's open files.
pub(super) fn files(pid: u32) -> Vec<u64> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

fn tasks(pid: u32) -> Vec<PathBuf> {
    let entries = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).collect()
}
