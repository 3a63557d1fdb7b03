//! Watches one migration: follows its events to the end, and reads what both processes use at the moments that count.

use std::io;

use migrate::client::{Client, Events};
use migrate::progress::Event;
use migrate::report::Report;
use serde::Serialize;

use super::LabError;
use super::host::Host;
use super::usage::{CpuTime, HostTime, VCPU_THREADS, peak_rss};

/// What a move cost the hosts, from the request until the end. CPU times in seconds, memory in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Usage {
    /// Used by the source.
    pub source: Share,
    /// Used by the destination.
    pub destination: Share,
    /// Taken by the host below this one, of all cores together: what was measured meanwhile is that host's, too.
    pub stolen_s: f64,
}

/// One side's part of it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Share {
    /// CPU time.
    pub cpu: CpuTime,
    /// Most memory the process ever had resident, guest memory included.
    pub peak_rss: Option<u64>,
}

impl Usage {
    /// CPU time of both sides without that of the vCPUs, seconds.
    #[must_use]
    pub fn engine_cpu(&self) -> f64 {
        [self.source, self.destination].iter().map(|share| (share.cpu.all - share.cpu.vcpus).max(0.0)).sum()
    }

    /// CPU time of the vCPUs of both sides, seconds.
    #[must_use]
    pub fn vcpu_cpu(&self) -> f64 {
        self.source.cpu.vcpus + self.destination.cpu.vcpus
    }
}

/// One migration under watch.
#[derive(Debug)]
pub struct Watch {
    client: Client,
    events: Events,
    source: Meter,
    destination: Meter,
    /// What was stolen before, and by the end.
    stolen_s: (f64, Option<f64>),
}

impl Watch {
    /// Begins, before the migration does: no event is missed.
    ///
    /// # Errors
    /// When one of both does not answer.
    pub async fn begin(source: &Host, destination: &Host) -> Result<Self, LabError> {
        let meter = |host: &Host| {
            Meter::start(host.pid(), VCPU_THREADS).map_err(LabError::host("read the CPU time of a VMM"))
        };
        let client = source.client().clone();
        let events = client.events().await?;
        let (source, destination) = (meter(source)?, meter(destination)?);
        Ok(Self { client, events, source, destination, stolen_s: (HostTime::now().stolen, None) })
    }

    /// Follows it to its end.
    ///
    /// # Errors
    /// When the source falls silent before.
    pub async fn to_the_end(&mut self) -> Result<Report, LabError> {
        loop {
            match self.events.next().await? {
                Some(Event::Ended { report }) => return Ok(*report),
                // The source still has its vCPU threads. Not at other times: reading takes a core for a millisecond,
                // and the guest may want it.
                Some(Event::Switched { .. }) => self.read(),
                Some(_) => {}
                None => return self.last_word().await,
            }
        }
    }

    /// The events have ended without the end. Perhaps only the connection did: asks once more.
    async fn last_word(&self) -> Result<Report, LabError> {
        let silent =
            || LabError::Died { said: "the source fell silent in the middle of the migration".to_owned() };
        let status = self.client.migration().await?;
        status.report.filter(|_| !status.active).ok_or_else(silent)
    }

    fn read(&mut self) {
        self.source.read();
        self.destination.read();
    }

    /// What both have used until now, or until they ended; and what was stolen until this was asked first.
    pub fn usage(&mut self) -> Usage {
        self.read();
        let (before, by_the_end) = &mut self.stolen_s;
        let stolen_s = *by_the_end.get_or_insert_with(|| HostTime::now().stolen) - *before;
        Usage { source: self.source.used(), destination: self.destination.used(), stolen_s }
    }
}

/// Reads one process again and again; what it does not show any more keeps its last value.
#[derive(Debug)]
pub struct Meter {
    pid: u32,
    vcpus: &'static str,
    start: CpuTime,
    last: CpuTime,
    peak_rss: Option<u64>,
}

impl Meter {
    /// Begins with a process whose vCPU threads' names begin with `vcpus`.
    ///
    /// # Errors
    /// When there is no such process.
    pub fn start(pid: u32, vcpus: &'static str) -> io::Result<Self> {
        let start = CpuTime::of(pid, vcpus)?;
        Ok(Self { pid, vcpus, start, last: start, peak_rss: None })
    }

    /// Reads it.
    pub fn read(&mut self) {
        if let Ok(now) = CpuTime::of(self.pid, self.vcpus) {
            self.last = CpuTime { all: now.all, vcpus: self.last.vcpus.max(now.vcpus) };
        }
        self.peak_rss = peak_rss(self.pid).max(self.peak_rss);
    }

    /// What was used from the beginning until it was read last.
    #[must_use]
    pub fn used(&self) -> Share {
        let cpu = CpuTime { all: self.last.all - self.start.all, vcpus: self.last.vcpus - self.start.vcpus };
        Share { cpu, peak_rss: self.peak_rss }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_gone_keeps_its_last_value() {
        let mut meter = Meter::start(std::process::id(), VCPU_THREADS).unwrap();
        meter.read();
        let alive = meter.used();
        assert!(alive.peak_rss.is_some() && alive.cpu.all >= 0.0);
        meter.pid = 0;
        meter.read();
        assert_eq!(meter.used(), alive);
    }

    #[test]
    fn the_guests_own_time_is_not_the_engines() {
        let share = |all, vcpus| Share { cpu: CpuTime { all, vcpus }, peak_rss: None };
        let usage = Usage { source: share(2.0, 1.5), destination: share(1.0, 0.25), stolen_s: 0.0 };
        assert_eq!((usage.engine_cpu(), usage.vcpu_cpu()), (1.25, 1.75));
    }
}
