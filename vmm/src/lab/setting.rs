//! Under what circumstances figures were taken: they mean little without.

use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;

/// Beyond this load average for each core, others are at work.
const QUIET_LOAD_PER_CORE: f64 = 0.5;

/// The circumstances.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Setting {
    /// Version of this program.
    pub version: &'static str,
    /// How it was called.
    pub command_line: Vec<String>,
    /// When it was started, in UTC, as RFC 3339 has it.
    pub date: String,
    /// Model of the CPU.
    pub cpu: String,
    /// CPUs this process may use.
    pub cores: usize,
    /// Host memory, bytes.
    pub memory: Option<u64>,
    /// Load average of the last minute, before anything was started.
    pub load: Option<f64>,
    /// The host's kernel.
    pub kernel: String,
    /// The kernel modules that can be behind `/dev/kvm`, as far as they are loaded or built in.
    pub kvm: Vec<String>,
}

impl Setting {
    /// Here and now.
    #[must_use]
    pub fn here() -> Self {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self {
            version: env!("CARGO_PKG_VERSION"),
            command_line: std::env::args().collect(),
            date: rfc3339(since_1970.as_secs()),
            cpu: field(&cpuinfo, "model name").unwrap_or("unknown").to_owned(),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            memory: field(&meminfo, "MemTotal").and_then(kilobytes),
            load: load.split(' ').next().and_then(|load| load.parse().ok()),
            kernel: kernel.trim().to_owned(),
            kvm: kvm_modules(),
        }
    }

    /// In one line.
    #[must_use]
    pub fn line(&self) -> String {
        let kvm = if self.kvm.is_empty() { String::new() } else { format!(", {}", self.kvm.join(" ")) };
        format!("{}, {} cores, Linux {}{kvm}", self.cpu, self.cores, self.kernel)
    }

    /// What spoils figures, if anything does: others at work on this host.
    #[must_use]
    pub fn warning(&self) -> Option<String> {
        let load = self.load.filter(|load| *load > QUIET_LOAD_PER_CORE * self.cores as f64)?;
        Some(format!(
            "warning: this host was busy with something else (load average {load}): figures will be worse"
        ))
    }
}

fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let values = text.lines().filter_map(|line| line.split_once(':'));
    values.into_iter().find(|(key, _)| key.trim() == name).map(|(_, value)| value.trim())
}

fn kilobytes(value: &str) -> Option<u64> {
    Some(value.strip_suffix(" kB")?.parse::<u64>().ok()? << 10)
}

fn kvm_modules() -> Vec<String> {
    let names = fs::read_dir("/sys/module").into_iter().flatten().flatten();
    let names = names.map(|entry| entry.file_name().to_string_lossy().into_owned());
    let mut modules: Vec<_> = names.filter(|name| name.starts_with("kvm_")).collect();
    modules.sort();
    modules
}

/// Seconds since 1970 as a date and a time.
fn rfc3339(seconds: u64) -> String {
    let (year, month, day) = civil(seconds / 86_400);
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

/// Days since 1970 as a date. Years begin in March here, so that the leap day is the last of its year;
/// five months from there have 153 days.
fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468; // from 0000-03-01
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (era * 400 + year + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00Z");
        assert_eq!(rfc3339(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(rfc3339(1_700_000_000), "2023-11-14T22:13:20Z");
        assert_eq!(rfc3339(4_107_542_399), "2100-02-28T23:59:59Z");
        assert_eq!(rfc3339(4_107_542_400), "2100-03-01T00:00:00Z");
    }

    #[test]
    fn fields_of_proc_files() {
        assert_eq!(field("processor\t: 0\nmodel name\t: EPYC: 9\n", "model name"), Some("EPYC: 9"));
        assert_eq!(field("MemTotal:  1024 kB\n", "MemTotal").and_then(kilobytes), Some(1 << 20));
        assert!(!Setting::here().kernel.is_empty());
    }
}
