//! The command line: words and `name=value` pairs in any order; unknown ones are ignored, since a
//! loader may add its own. The front of the host library documents them.

use crate::telemetry::workload;

/// Which page of the working set is written next.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Pattern {
    Sequential,
    Random,
    /// Nine writes of ten go to the first tenth.
    Hot,
}

/// What memory is filled with.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Filling {
    Random,
    Text,
    Zero,
}

/// What is broken on purpose, to see that it is found.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Sabotage {
    None,
    Stamp,
    Generation,
    Content,
    Ticks,
    Tsc,
    Fault,
}

/// Pages a second, or as fast as it goes.
pub(crate) const RATE_MAX: u64 = u64::MAX;

pub(crate) struct Args {
    /// One of `telemetry::workload`.
    pub(crate) workload: u64,
    pub(crate) working_set_mib: u64,
    /// Pages a second, of all vCPUs together.
    pub(crate) rate: u64,
    pub(crate) pattern: Pattern,
    pub(crate) fill_mib: u64,
    pub(crate) filling: Filling,
    pub(crate) tsc_khz: Option<u64>,
    pub(crate) tick_us: u64,
    pub(crate) cpus: Option<u64>,
    pub(crate) sabotage: Sabotage,
    /// Seconds of work.
    pub(crate) reset_after: Option<u64>,
}

impl Args {
    pub(crate) fn parse(line: &str) -> Self {
        let mut args = Self {
            workload: workload::IDLE,
            working_set_mib: 64,
            rate: 10_000,
            pattern: Pattern::Random,
            fill_mib: 0,
            filling: Filling::Random,
            tsc_khz: None,
            tick_us: 10_000,
            cpus: None,
            sabotage: Sabotage::None,
            reset_after: None,
        };
        for word in line.split(' ') {
            let (name, value) = word.split_once('=').unwrap_or((word, ""));
            args.apply(name, value);
        }
        args
    }

    /// A value that makes no sense leaves the default.
    fn apply(&mut self, name: &str, value: &str) {
        let number = value.parse::<u64>().ok();
        match (name, value, number) {
            ("idle", "", _) => self.workload = workload::IDLE,
            ("dirty", "", _) => self.workload = workload::DIRTY,
            ("compute", "", _) => self.workload = workload::COMPUTE,
            ("ws", _, Some(mib)) => self.working_set_mib = mib.min(1 << 20),
            ("rate", "max", _) => self.rate = RATE_MAX,
            ("rate", _, Some(rate)) => self.rate = rate,
            ("pattern", "seq", _) => self.pattern = Pattern::Sequential,
            ("pattern", "random", _) => self.pattern = Pattern::Random,
            ("pattern", "hot", _) => self.pattern = Pattern::Hot,
            ("fill", _, Some(mib)) => self.fill_mib = mib.min(1 << 20),
            ("content", "random", _) => self.filling = Filling::Random,
            ("content", "text", _) => self.filling = Filling::Text,
            ("content", "zero", _) => self.filling = Filling::Zero,
            ("tsc_khz", _, Some(khz)) if khz > 0 => self.tsc_khz = Some(khz),
            ("tick", _, Some(ms @ 1..=1000)) => self.tick_us = ms * 1000,
            ("cpus", _, Some(cpus)) if cpus > 0 => self.cpus = Some(cpus),
            ("sabotage", "1" | "stamp", _) => self.sabotage = Sabotage::Stamp,
            ("sabotage", "generation", _) => self.sabotage = Sabotage::Generation,
            ("sabotage", "content", _) => self.sabotage = Sabotage::Content,
            ("sabotage", "ticks", _) => self.sabotage = Sabotage::Ticks,
            ("sabotage", "tsc", _) => self.sabotage = Sabotage::Tsc,
            ("sabotage", "fault", _) => self.sabotage = Sabotage::Fault,
            ("reset-after", _, Some(s)) => self.reset_after = Some(s.min(1 << 20)),
            _ => {}
        }
    }
}
