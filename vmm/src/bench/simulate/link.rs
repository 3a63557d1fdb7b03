//! A network and two hosts that exist on paper only.

use std::str::FromStr;
use std::time::Duration;

use super::constants::Constants;
use crate::lab::slow::Network;

/// The network between both hosts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Link {
    /// How fast it is.
    pub(super) bandwidth: Bandwidth,
    /// There and back.
    pub(super) round_trip: Duration,
    /// Whether a connection has no more than a window under way: so on every network but one that is made here, whose
    /// connections end at either end of the link.
    pub(super) windows: bool,
}

/// Bits a second on the cable; or none that limits: loopback.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bandwidth(f64);

impl Bandwidth {
    /// Only the hosts limit.
    pub(super) const UNLIMITED: Self = Self(f64::INFINITY);

    /// In bytes, where it is limited.
    pub(in crate::bench) fn bytes_per_s(self) -> Option<u64> {
        self.0.is_finite().then_some((self.0 / 8.0) as u64)
    }

    /// Of a network that was made here, which counts what is in frames, not their heads.
    pub(super) fn of(network: Network, constants: &Constants) -> Self {
        Self(network.bytes_per_s as f64 * 8.0 / constants.payload_share)
    }
}

impl FromStr for Bandwidth {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "unlimited" {
            return Ok(Self::UNLIMITED);
        }
        let wrong = || "not a bandwidth: write for example 100Gbit or 2.5Gbit, or unlimited".to_owned();
        let unit = |unit: &str, bits: f64| text.strip_suffix(unit).map(|number| (number, bits));
        let (number, bits) = unit("Gbit", 1e9)
            .or_else(|| unit("Mbit", 1e6))
            .or_else(|| unit("Tbit", 1e12))
            .ok_or_else(wrong)?;
        match number.parse::<f64>() {
            Ok(number) if number.is_finite() && number * bits >= 1e6 => Ok(Self(number * bits)),
            _ => Err(wrong()),
        }
    }
}

impl std::fmt::Display for Bandwidth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.0.is_infinite() { f.write_str("unlimited") } else { write!(f, "{} Gbit/s", self.0 / 1e9) }
    }
}

impl Link {
    /// There and back, seconds.
    pub(super) fn round_trip_s(&self) -> f64 {
        self.round_trip.as_secs_f64()
    }

    /// Bytes a second that so many connections carry: what the cable leaves beside heads, and no more than a connection's
    /// window a round trip each.
    pub(super) fn bytes_per_s(&self, streams: u32, constants: &Constants) -> f64 {
        let cable = self.bandwidth.0 / 8.0 * constants.payload_share;
        if !self.windows {
            return cable;
        }
        cable.min(f64::from(streams) * constants.window_bytes / self.round_trip_s().max(1e-9))
    }
}

/// What the engine's bulk threads run on.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Hosts {
    /// Two hosts with so many cores each.
    Two { cores: u32 },
    /// One host for both sides, as `vmm bench` has it.
    One { cores: u32 },
}

/// A task for the bulk threads of both sides, in seconds of CPU.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Effort {
    pub(super) source: f64,
    pub(super) destination: f64,
}

/// vCPUs that are busy meanwhile.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Busy {
    /// On the source.
    Source(u32),
    /// On the destination.
    Destination(u32),
    /// The guest is paused.
    Nobody,
}

impl Hosts {
    /// How long an effort takes where each side has so many bulk threads: both sides work at the same time.
    pub(super) fn seconds(&self, effort: Effort, streams: u32, busy: Busy, weight: f64) -> f64 {
        let Effort { source, destination } = effort;
        let (at_source, at_destination) = match busy {
            Busy::Source(vcpus) => (vcpus, 0),
            Busy::Destination(vcpus) => (0, vcpus),
            Busy::Nobody => (0, 0),
        };
        match *self {
            Self::Two { cores } => {
                let share = |vcpus| share(cores, streams, vcpus, weight);
                (source / share(at_source)).max(destination / share(at_destination))
            }
            Self::One { cores } => {
                let together =
                    (source + destination) / share(cores, 2 * streams, at_source + at_destination, weight);
                together.max(source.max(destination) / f64::from(streams))
            }
        }
    }
}

/// Cores that bulk threads get, where each weighs `weight` of a vCPU and none can be on two cores.
fn share(cores: u32, threads: u32, vcpus: u32, weight: f64) -> f64 {
    let (cores, threads, vcpus) = (f64::from(cores), f64::from(threads), f64::from(vcpus));
    let by_weight = cores * threads * weight / (threads * weight + vcpus);
    by_weight.max(cores - vcpus).min(threads)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bandwidths_as_people_write_them() {
        let bits = |text: &str| text.parse::<Bandwidth>().map(|bandwidth| bandwidth.0);
        assert_eq!(bits("100Gbit"), Ok(100e9));
        assert_eq!(bits("2.5Gbit"), Ok(2.5e9));
        assert_eq!(bits("100Mbit"), Ok(100e6));
        assert_eq!("unlimited".parse(), Ok(Bandwidth::UNLIMITED));
        assert_eq!("400Gbit".parse::<Bandwidth>().unwrap().to_string(), "400 Gbit/s");
        for wrong in ["", "100", "Gbit", "-1Gbit", "0Gbit", "infGbit", "NaNGbit", "100GB"] {
            assert!(bits(wrong).unwrap_err().starts_with("not a bandwidth"), "{wrong}");
        }
    }

    #[test]
    fn a_long_way_is_limited_by_the_windows_of_its_connections() {
        let constants = Constants { payload_share: 1.0, window_bytes: 4e6, ..Constants::default() };
        let bandwidth = "80Gbit".parse().unwrap();
        let link = |ms| Link { bandwidth, round_trip: Duration::from_millis(ms), windows: true };
        let rate = |ms, streams| link(ms).bytes_per_s(streams, &constants);
        assert!((rate(0, 1) - 10e9).abs() < 1.0);
        assert!((rate(10, 1) - 0.4e9).abs() < 1.0 && (rate(10, 16) - 6.4e9).abs() < 1.0);
        assert_eq!(Link { windows: false, ..link(10) }.bytes_per_s(1, &constants), 10e9);
    }

    #[test]
    fn bulk_threads_have_what_vcpus_leave_and_never_nothing() {
        let got = |cores, threads, vcpus| share(cores, threads, vcpus, 1.0 / 3.0);
        assert_eq!(got(2, 2, 1), 1.0, "one core is the vCPU's");
        assert_eq!(got(2, 2, 0), 2.0);
        assert_eq!(got(64, 16, 32), 16.0, "no thread is on two cores");
        assert!(got(2, 2, 8) > 0.1 && got(2, 2, 8) < got(2, 2, 4));
    }

    #[test]
    fn one_host_does_the_work_of_both() {
        let effort = Effort { source: 1.0, destination: 2.0 };
        let seconds = |hosts: Hosts, busy| hosts.seconds(effort, 1, busy, 1.0 / 3.0);
        assert_eq!(seconds(Hosts::Two { cores: 2 }, Busy::Source(1)), 2.0);
        assert_eq!(seconds(Hosts::One { cores: 2 }, Busy::Source(1)), 3.0);
        assert_eq!(seconds(Hosts::One { cores: 2 }, Busy::Nobody), 2.0);
    }
}
