//! `--cpu`: the CPU that an operator chooses for a guest, out of what the host offers.

use std::fmt;
use std::str::FromStr;

use super::features::{Feature, lacking};
use super::level::{Level, is_essential};
use super::template::Template;

/// Bits of a physical address in a model: what the smallest CPUs of the last fifteen years have. More where the guest's
/// RAM needs more.
const PHYSICAL_BITS: u32 = 39;

/// Leaves of hosts' own: not in a model.
const NOT_IN_MODELS: [u32; 3] = [0x8000_001f, 0x8000_0020, 0x8000_0026];

/// Why a CPU cannot be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CpuError {
    /// Neither `host` nor a model.
    #[error(
        "CPU \"{0}\" is not known: write host, x86-64-v1, x86-64-v2, x86-64-v3 or x86-64-v4, \
         then +FEATURE or -FEATURE, with commas between"
    )]
    Model(String),
    /// Not a feature's name.
    #[error("CPU feature \"{0}\" is not known: vmm cpu --names lists all that are")]
    Feature(String),
    /// A feature without which nothing runs.
    #[error("CPU feature \"{0}\" cannot be taken away: no guest can be without {1}")]
    Essential(String, String),
    /// What is wrong with a CPU.
    #[error("CPU feature \"{0}\" cannot be taken away: a guest is told of it wherever it is")]
    Flaw(String),
    /// This host does not have it.
    #[error("this host's KVM cannot give a guest {}: choose a smaller --cpu (vmm cpu says what there is)", list(.0))]
    Lacks(Vec<Feature>),
    /// This host cannot hide it.
    #[error("this host's KVM shows every guest {}: it cannot be taken away here (vmm cpu says what can)", list(.0))]
    Shows(Vec<Feature>),
}

fn list(features: &[Feature]) -> String {
    features.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// A CPU as it was asked for. Parses from `host`, `x86-64-v3,+aes,-avx2`, `-avx`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CpuChoice {
    /// `None`: the host's.
    model: Option<Level>,
    /// In the order given: what is added, or taken away.
    changes: Vec<(bool, Feature)>,
}

impl CpuChoice {
    pub(super) fn of_level(level: Level) -> Self {
        Self { model: Some(level), changes: Vec::new() }
    }

    pub(super) fn change(&mut self, present: bool, feature: Feature) {
        self.changes.push((present, feature));
    }

    /// The CPU of a guest with `vcpus` vCPUs and physical addresses below `end`, of a host that offers `offer`.
    ///
    /// # Errors
    /// Everything that the host does not offer.
    pub fn cpu(&self, offer: &Template, vcpus: u32, end: u64) -> Result<Template, CpuError> {
        let mut cpu = self.model.map_or_else(|| offer.clone(), |level| model(offer, level, end));
        for (present, feature) in &self.changes {
            let all = if *present { feature.with_needs() } else { feature.with_dependents() };
            all.into_iter().for_each(|one| cpu.put(one, *present));
        }
        // What is wrong with the host's CPU is no choice. A guest may be told of more: it only guards itself more.
        Feature::all_of(offer).filter(|one| one.is_flaw()).for_each(|one| cpu.put(one, true));
        let lacks = lacking(&cpu, offer);
        if !lacks.is_empty() {
            return Err(CpuError::Lacks(lacks));
        }
        cpu.settle(vcpus);
        Ok(cpu)
    }
}

/// The host's CPU with the features of a model and no others.
fn model(offer: &Template, level: Level, end: u64) -> Template {
    let mut cpu = offer.clone();
    Feature::all_of(offer).for_each(|feature| cpu.put(feature, false));
    level.model().into_iter().for_each(|feature| cpu.put(feature, true));
    cpu.take_performance_counters();
    cpu.cpuid.retain(|entry| !NOT_IN_MODELS.contains(&entry.function));
    cpu.narrow_physical(PHYSICAL_BITS.max(64 - end.saturating_sub(1).leading_zeros()));
    cpu
}

impl FromStr for CpuChoice {
    type Err = CpuError;

    fn from_str(text: &str) -> Result<Self, CpuError> {
        let mut choice = Self::default();
        for (place, word) in text.split(',').map(str::trim).enumerate() {
            match (word.chars().next(), place) {
                (Some('+'), _) => choice.changes.push((true, feature(&word[1..])?)),
                (Some('-'), _) => choice.changes.push((false, removable(&word[1..])?)),
                (_, 0) if word == "host" => {}
                (_, 0) => {
                    choice.model = Some(Level::named(word).ok_or_else(|| CpuError::Model(word.into()))?)
                }
                _ => return Err(CpuError::Model(word.into())),
            }
        }
        Ok(choice)
    }
}

fn feature(name: &str) -> Result<Feature, CpuError> {
    Feature::named(name).ok_or_else(|| CpuError::Feature(name.into()))
}

fn removable(name: &str) -> Result<Feature, CpuError> {
    let feature = feature(name)?;
    if feature.is_flaw() {
        return Err(CpuError::Flaw(name.into()));
    }
    match feature.with_dependents().into_iter().find(|one| is_essential(*one)).and_then(Feature::name) {
        Some(needed) => Err(CpuError::Essential(name.into(), needed.into())),
        None => Ok(feature),
    }
}

impl fmt::Display for CpuChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.model {
            Some(level) => write!(f, "{level}")?,
            None => f.write_str("host")?,
        }
        for (present, feature) in &self.changes {
            write!(f, ",{}{}", if *present { '+' } else { '-' }, feature.name().unwrap_or_default())?;
        }
        Ok(())
    }
}
