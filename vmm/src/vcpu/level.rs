//! The levels of x86-64 (System V ABI, AMD64 supplement, section 3.1.1), as CPUs that a guest can be given.
//!
//! A model is the same on every host, so it has the level's features, those that they need, and beyond them only what a
//! kernel expects of any CPU and every KVM since Linux 5.17 gives on every CPU of the level ([`KERNEL`]). `docs/cpu.md`
//! says what is left out and why.

use std::fmt;

use super::features::Feature;
use super::template::Template;

/// A level of x86-64.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Every 64-bit CPU.
    V1,
    /// About 2009.
    V2,
    /// About 2015.
    V3,
    /// With AVX-512.
    V4,
}

/// What each level adds to the one before.
const LEVELS: [(Level, &str, &str); 4] = [
    (Level::V1, "x86-64-v1", "cmov cx8 fpu fxsr mmx sse sse2 syscall lm"),
    (Level::V2, "x86-64-v2", "cx16 lahf-lm popcnt sse3 sse4.1 sse4.2 ssse3"),
    (Level::V3, "x86-64-v3", "avx avx2 bmi1 bmi2 f16c fma abm movbe xsave"),
    (Level::V4, "x86-64-v4", "avx512f avx512bw avx512cd avx512dq avx512vl"),
];

/// What a kernel expects of any CPU; and what KVM makes itself, whatever the CPU.
const KERNEL: &str = "de pse tsc msr pae mce apic sep mtrr pge mca pat pse36 clflush nx \
    hypervisor x2apic tsc-deadline tsc-adjust arat \
    kvmclock kvmclock2 kvmclock-stable kvm-nopiodelay kvm-pv-eoi kvm-pv-unhalt kvm-pv-ipi kvm-poll-control";

/// What no guest can be without: its first instructions need them.
const ESSENTIAL: &str = "fpu tsc msr pae cx8 apic cmov fxsr mmx sse sse2 syscall lm";

impl Level {
    /// All, the lowest first.
    pub fn all() -> impl Iterator<Item = Self> {
        LEVELS.iter().map(|(level, ..)| *level)
    }

    /// The level of this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        LEVELS.iter().find_map(|(level, known, _)| (*known == name).then_some(*level))
    }

    /// The highest of which `cpu` has every feature.
    #[must_use]
    pub fn of(cpu: &Template) -> Option<Self> {
        Self::all().take_while(|level| level.own().all(|feature| cpu.has(feature))).last()
    }

    /// What the ABI says that it adds.
    fn own(self) -> impl Iterator<Item = Feature> {
        let names = LEVELS.iter().filter(move |(level, ..)| *level == self);
        features(names.map(|(.., names)| *names))
    }

    /// All that a CPU of this model has.
    #[must_use]
    pub fn model(self) -> Vec<Feature> {
        let own = Self::all().filter(|level| *level <= self).flat_map(Self::own);
        let mut all: Vec<_> =
            own.chain(features([KERNEL].into_iter())).flat_map(Feature::with_needs).collect();
        all.sort_unstable();
        all.dedup();
        all
    }
}

/// What no guest can be without.
pub(super) fn is_essential(feature: Feature) -> bool {
    feature.name().is_some_and(|name| ESSENTIAL.split_whitespace().any(|known| known == name))
}

fn features(names: impl Iterator<Item = &'static str>) -> impl Iterator<Item = Feature> {
    names.flat_map(str::split_whitespace).filter_map(Feature::named)
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = LEVELS.iter().find_map(|(level, name, _)| (level == self).then_some(*name));
        f.write_str(name.unwrap_or_default())
    }
}
