//! The ways to move a guest: those of our VMM, QEMU's at its best, and Cloud Hypervisor's.
//!
//! QEMU's bandwidth is unlimited in all of them: its default of 128 MiB/s is meant for shared networks.

use migrate::options::Mode;
use serde::Serialize;

/// Pre-copy's limit of downtime where none is under test, ms: the default of both.
const USUAL_DOWNTIME_MS: u64 = 300;
/// With this QEMU never ends pre-copy of its own accord: it goes on until it is told to switch to post-copy.
const NEVER_MS: u64 = 0;

/// One way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Way {
    /// What the table calls it.
    pub name: &'static str,
    /// Whose it is, and how.
    #[serde(flatten)]
    pub how: How,
}

/// Whose, and how.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "vmm", rename_all = "lowercase")]
pub enum How {
    /// `vmm` and `migrate`.
    Vmm {
        /// `--mode`.
        mode: Mode,
        /// `--streams`; its default when absent.
        streams: Option<u32>,
    },
    /// QEMU.
    Qemu(QemuWay),
    /// Cloud Hypervisor.
    #[serde(rename = "cloud-hypervisor")]
    CloudHypervisor(CloudHypervisorWay),
}

/// What Cloud Hypervisor is told, in its own words. All else is as it is by default.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct CloudHypervisorWay {
    /// `connections`.
    pub connections: u32,
    /// `downtime_ms`.
    pub downtime_ms: u64,
    /// `memory_mode=postcopy`.
    pub postcopy: bool,
}

/// What QEMU is told, in its own words.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct QemuWay {
    /// `downtime-limit`, ms.
    pub downtime_limit: u64,
    /// `multifd`, with so many `multifd-channels`.
    pub multifd_channels: Option<u32>,
    /// `postcopy-ram`, and when it is begun.
    pub postcopy: Option<Start>,
    /// `multifd-compression` by zstd, with this `multifd-zstd-level`.
    pub zstd_level: Option<u8>,
    /// Further capabilities.
    pub capabilities: &'static [&'static str],
}

/// When post-copy begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Start {
    /// As soon as can be.
    AtOnce,
    /// When all memory was sent once.
    AfterOnePass,
}

impl Way {
    /// Whether it is our VMM's.
    #[must_use]
    pub fn is_ours(&self) -> bool {
        matches!(self.how, How::Vmm { .. })
    }

    /// Whether it is Cloud Hypervisor's.
    #[must_use]
    pub fn is_cloud_hypervisors(&self) -> bool {
        matches!(self.how, How::CloudHypervisor(_))
    }

    fn vmm(name: &'static str, mode: Mode, streams: Option<u32>) -> Self {
        Self { name, how: How::Vmm { mode, streams } }
    }

    fn precopy(
        name: &'static str,
        downtime_limit: u64,
        channels: Option<u32>,
        more: &'static [&str],
    ) -> Self {
        let way = QemuWay {
            downtime_limit,
            multifd_channels: channels,
            postcopy: None,
            zstd_level: None,
            capabilities: more,
        };
        Self { name, how: How::Qemu(way) }
    }

    /// By two channels.
    fn packed(name: &'static str, level: u8) -> Self {
        let way = QemuWay {
            downtime_limit: USUAL_DOWNTIME_MS,
            multifd_channels: Some(2),
            postcopy: None,
            zstd_level: Some(level),
            capabilities: &[],
        };
        Self { name, how: How::Qemu(way) }
    }

    fn cloud_hypervisor(name: &'static str, connections: u32, downtime_ms: u64) -> Self {
        let way = CloudHypervisorWay { connections, downtime_ms, postcopy: false };
        Self { name, how: How::CloudHypervisor(way) }
    }

    fn cloud_hypervisor_postcopy(name: &'static str) -> Self {
        let way = CloudHypervisorWay { connections: 1, downtime_ms: USUAL_DOWNTIME_MS, postcopy: true };
        Self { name, how: How::CloudHypervisor(way) }
    }

    fn postcopy(name: &'static str, start: Start, more: &'static [&str]) -> Self {
        let downtime_limit = if start == Start::AtOnce { USUAL_DOWNTIME_MS } else { NEVER_MS };
        let way = QemuWay {
            downtime_limit,
            multifd_channels: None,
            postcopy: Some(start),
            zstd_level: None,
            capabilities: more,
        };
        Self { name, how: How::Qemu(way) }
    }
}

const PREEMPT: &[&str] = &["postcopy-preempt"];

/// All of them that suit a fast network, ours and the others' in turn.
#[must_use]
pub fn all() -> Vec<Way> {
    let ours = [
        Way::vmm("vmm pre-copy", Mode::Precopy, None),
        Way::vmm("vmm hybrid", Mode::Hybrid, None),
        Way::vmm("vmm post-copy", Mode::Postcopy, None),
        Way::vmm("vmm pre-copy 4 streams", Mode::Precopy, Some(4)),
    ];
    let theirs = [
        Way::precopy("QEMU pre-copy 300 ms", USUAL_DOWNTIME_MS, None, &[]),
        Way::precopy("QEMU pre-copy 10 ms", 10, None, &[]),
        Way::precopy("QEMU multifd 2", USUAL_DOWNTIME_MS, Some(2), &[]),
        Way::precopy("QEMU multifd 4", USUAL_DOWNTIME_MS, Some(4), &[]),
        Way::precopy("QEMU auto-converge", USUAL_DOWNTIME_MS, None, &["auto-converge"]),
        Way::postcopy("QEMU post-copy at once", Start::AtOnce, &[]),
        Way::postcopy("QEMU post-copy at once + preempt", Start::AtOnce, PREEMPT),
        Way::postcopy("QEMU post-copy after a pass + preempt", Start::AfterOnePass, PREEMPT),
        Way::cloud_hypervisor("Cloud Hypervisor 1 connection", 1, USUAL_DOWNTIME_MS),
        Way::cloud_hypervisor("Cloud Hypervisor 4 connections", 4, USUAL_DOWNTIME_MS),
        Way::cloud_hypervisor("Cloud Hypervisor 4 connections 10 ms", 4, 10),
        Way::cloud_hypervisor_postcopy("Cloud Hypervisor post-copy"),
    ];
    in_turn(ours.into(), theirs.into())
}

/// Those that suit a slow network: ours by default, QEMU's with each compression it has, and without.
#[must_use]
pub fn slow() -> Vec<Way> {
    let ours = [
        Way::vmm("vmm pre-copy", Mode::Precopy, None),
        Way::vmm("vmm hybrid", Mode::Hybrid, None),
        Way::vmm("vmm post-copy", Mode::Postcopy, None),
    ];
    let theirs = [
        Way::precopy("QEMU pre-copy 300 ms", USUAL_DOWNTIME_MS, None, &[]),
        Way::precopy("QEMU xbzrle", USUAL_DOWNTIME_MS, None, &["xbzrle"]),
        Way::packed("QEMU multifd 2 zstd 1", 1),
        Way::packed("QEMU multifd 2 zstd 6", 6),
        Way::postcopy("QEMU post-copy at once + preempt", Start::AtOnce, PREEMPT),
    ];
    in_turn(ours.into(), theirs.into())
}

/// Those of a check: ours, and QEMU's that are best at something.
const CHECKED: [&str; 5] = [
    "vmm pre-copy",
    "vmm hybrid",
    "vmm post-copy",
    "QEMU pre-copy 300 ms",
    "QEMU post-copy at once + preempt",
];
/// Those of a short look besides.
const FEW: [&str; 2] = ["QEMU multifd 4", "Cloud Hypervisor 1 connection"];

/// The ways of a short look.
#[must_use]
pub fn few() -> Vec<Way> {
    all().into_iter().filter(|way| CHECKED.contains(&way.name) || FEW.contains(&way.name)).collect()
}

/// The ways of a check.
#[must_use]
pub fn checked() -> Vec<Way> {
    all().into_iter().filter(|way| CHECKED.contains(&way.name)).collect()
}

/// Both lists in one, spread evenly: what is compared is measured at about the same time.
fn in_turn(ours: Vec<Way>, theirs: Vec<Way>) -> Vec<Way> {
    let placed = |list: Vec<Way>| {
        let length = list.len() as f64;
        list.into_iter().enumerate().map(move |(at, way)| ((at as f64 + 0.5) / length, way))
    };
    let mut all: Vec<_> = placed(ours).chain(placed(theirs)).collect();
    all.sort_by(|(one, _), (other, _)| one.total_cmp(other));
    all.into_iter().map(|(_, way)| way).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_of_both_take_turns() {
        for ways in [all(), slow()] {
            let whose: Vec<_> = ways.iter().map(Way::is_ours).collect();
            assert!(whose.windows(4).all(|four| four.contains(&true) && four.contains(&false)), "{whose:?}");
        }
        assert_eq!([all(), few(), checked(), slow()].map(|ways| ways.len()), [16, 7, 5, 8]);
    }
}
