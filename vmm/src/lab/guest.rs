//! The demo guest to be moved: how large, how full, and what it does meanwhile.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use clap::ValueEnum;
use serde::{Serialize, Serializer};

use super::LabError;
use crate::config::{MemorySize, Vcpus};
use crate::migration::memory_available;

/// What a guest's memory is filled with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Content {
    /// Nothing compresses it.
    Random,
    /// Compresses well.
    Text,
    /// Pages that exist, but hold only zeros.
    Zero,
}

impl Content {
    fn word(self) -> &'static str {
        match self {
            Self::Random => "random",
            Self::Text => "text",
            Self::Zero => "zero",
        }
    }
}

/// What the guest does: how fast it writes pages of its working set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Load {
    /// Writes none; only watches the clock.
    Idle,
    /// Pages a second.
    Rate(u64),
    /// As fast as it can.
    Max,
}

impl FromStr for Load {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match (text, text.parse()) {
            ("idle", _) | (_, Ok(0)) => Ok(Self::Idle),
            ("max", _) => Ok(Self::Max),
            (_, Ok(rate)) => Ok(Self::Rate(rate)),
            _ => Err("not a load: write idle, a number of pages a second, or max".to_owned()),
        }
    }
}

impl fmt::Display for Load {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Idle => f.pad("idle"),
            Self::Rate(rate) => f.pad(&rate.to_string()),
            Self::Max => f.pad("max"),
        }
    }
}

impl Serialize for Load {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A demo guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct GuestPlan {
    /// RAM.
    #[serde(serialize_with = "bytes")]
    pub memory: MemorySize,
    /// vCPUs.
    #[serde(serialize_with = "number")]
    pub cpus: Vcpus,
    /// How much of RAM is filled, MiB.
    pub fill_mib: u64,
    /// With what.
    pub content: Content,
    /// Over how much of RAM pages are written, MiB.
    pub working_set_mib: u64,
    /// How fast.
    pub load: Load,
}

impl GuestPlan {
    /// The guest's command line. The guest's crate says what its words mean.
    #[must_use]
    pub fn command_line(&self) -> String {
        let fill = format!("fill={} content={}", self.fill_mib, self.content.word());
        match self.load {
            Load::Idle => format!("{fill} idle"),
            load => format!("{fill} dirty ws={} rate={load} pattern=random", self.working_set_mib),
        }
    }

    /// How long it may take to boot and to fill its memory: a fixed part, and what a slow host needs for each MiB.
    #[must_use]
    pub fn boot_deadline(&self) -> Duration {
        const BOOT: Duration = Duration::from_secs(30);
        const FILL_PER_MIB: Duration = Duration::from_millis(50);
        BOOT + FILL_PER_MIB * u32::try_from(self.fill_mib).unwrap_or(u32::MAX)
    }

    /// Whether this host has memory for what it writes, `times` over: Linux would end whoever takes too much.
    ///
    /// # Errors
    /// When it has not.
    pub fn must_fit(&self, times: u64) -> Result<(), LabError> {
        let needed = times * self.written_bytes();
        let available = memory_available().filter(|available| *available < needed);
        available.map_or(Ok(()), |available| {
            let (mib, has) = (self.written_bytes() >> 20, available >> 20);
            let by = if times == 1 { "" } else { " on both sides" };
            let error =
                format!("the guest writes {mib} MiB{by}, this host has {has} MiB to give: take a smaller one, or fill less of it");
            Err(LabError::Arguments(error))
        })
    }

    /// Memory that it has written by the time it is at work, with room for its kernel.
    #[must_use]
    pub fn written_bytes(&self) -> u64 {
        const KERNEL_MIB: u64 = 64;
        let work_mib = if self.load == Load::Idle { 0 } else { self.working_set_mib };
        (self.fill_mib.max(work_mib) + KERNEL_MIB) << 20
    }

    /// For people.
    #[must_use]
    pub fn describe(&self) -> String {
        let filled = match self.fill_mib {
            0 => "mostly empty".to_owned(),
            mib => format!("{mib} MiB filled with {} data", self.content.word()),
        };
        let work = match self.load {
            Load::Idle => "idle".to_owned(),
            Load::Rate(rate) => format!("dirtying {rate} pages/s over {} MiB", self.working_set_mib),
            Load::Max => format!("dirtying {} MiB as fast as it can", self.working_set_mib),
        };
        let vcpus = self.cpus.get();
        let vcpus = if vcpus == 1 { "1 vCPU".to_owned() } else { format!("{vcpus} vCPUs") };
        format!("{}, {vcpus}, {filled}, {work}", self.memory)
    }
}

fn bytes<S: Serializer>(memory: &MemorySize, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(memory.bytes())
}

fn number<S: Serializer>(cpus: &Vcpus, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u32(cpus.get())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// One with this load, to be changed at will.
    pub(crate) fn plan(load: Load) -> GuestPlan {
        GuestPlan {
            memory: "1G".parse().unwrap(),
            cpus: "1".parse().unwrap(),
            fill_mib: 920,
            content: Content::Random,
            working_set_mib: 512,
            load,
        }
    }

    #[test]
    fn the_words_the_guest_knows() {
        let words = plan(Load::Rate(10_000)).command_line();
        assert_eq!(words, "fill=920 content=random dirty ws=512 rate=10000 pattern=random");
        assert_eq!(plan(Load::Max).command_line().split(' ').nth(4), Some("rate=max"));
        assert_eq!(plan(Load::Idle).command_line(), "fill=920 content=random idle");
    }

    #[test]
    fn a_guest_that_is_too_large_for_this_host_is_refused_in_a_line() {
        let huge = GuestPlan { fill_mib: 1 << 40, ..plan(Load::Idle) };
        let error = huge.must_fit(2).unwrap_err().to_string();
        assert!(
            error.starts_with("the guest writes 1099511627840 MiB on both sides, this host has "),
            "{error}"
        );
        assert!(GuestPlan { fill_mib: 0, ..plan(Load::Idle) }.must_fit(1).is_ok());
    }

    #[test]
    fn loads_as_people_write_them() {
        let parsed = ["idle", "0", "max", "5000"].map(|text| text.parse::<Load>().unwrap());
        assert_eq!(parsed, [Load::Idle, Load::Idle, Load::Max, Load::Rate(5000)]);
        assert!("-5".parse::<Load>().is_err() && "fast".parse::<Load>().is_err());
    }

    #[test]
    fn a_guest_in_one_line() {
        let line = "1G, 1 vCPU, 920 MiB filled with random data, dirtying 10000 pages/s over 512 MiB";
        assert_eq!(plan(Load::Rate(10_000)).describe(), line);
    }
}
