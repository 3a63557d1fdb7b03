//! What a host offers, as a description that can be kept in a file; and what several hosts have in common.

use serde::{Deserialize, Serialize};

use super::choice::{CpuChoice, CpuError};
use super::features::Feature;
use super::level::Level;
use super::offer::{always_shown, offer};
use super::template::Template;
use super::xsave;
use crate::kvm::{KvmError, KvmHost};

/// Version of the description.
const FORMAT: u32 = 1;

/// A host's CPU, as guests can have it. Serialises to the JSON that `docs/cpu.md` describes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostCpu {
    /// Version of this description.
    pub format: u32,
    /// For readers; follows from the rest.
    #[serde(default)]
    pub vendor: String,
    /// For readers; follows from the rest.
    #[serde(default)]
    pub level: Option<String>,
    /// For readers; follows from the rest.
    #[serde(default)]
    pub features: Vec<String>,
    /// Names of the features that no guest here can be without.
    pub always: Vec<String>,
    /// The largest CPU that a guest with one vCPU can have here.
    #[serde(flatten)]
    pub cpu: Template,
}

impl HostCpu {
    /// This host.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn here(kvm: &KvmHost) -> Result<Self, KvmError> {
        let cpu = offer(kvm, 1)?;
        Ok(Self::new(cpu.clone(), &always_shown(kvm, &cpu)?))
    }

    pub(super) fn new(cpu: Template, always: &[Feature]) -> Self {
        let names =
            |features: &[Feature]| features.iter().filter_map(|one| one.name().map(str::to_owned)).collect();
        Self {
            format: FORMAT,
            vendor: cpu.vendor().unwrap_or_default(),
            level: Level::of(&cpu).map(|level| level.to_string()),
            features: names(&Feature::all_of(&cpu).collect::<Vec<_>>()),
            always: names(always),
            cpu,
        }
    }

    /// Reads a description.
    ///
    /// # Errors
    /// One line: what is wrong with it.
    pub fn read(text: &[u8]) -> Result<Self, String> {
        let host: Self = serde_json::from_slice(text).map_err(|error| {
            format!("is no description of a host ({error}): write one with vmm cpu --json")
        })?;
        if host.format != FORMAT {
            return Err(format!("is a description of format {}, this program reads {FORMAT}", host.format));
        }
        if host.cpu.vendor().is_none() {
            return Err("is no description of a host: CPUID leaf 0x0 is not there".into());
        }
        match host.always.iter().find(|name| Feature::named(name).is_none()) {
            Some(name) => Err(format!(
                "names a CPU feature in \"always\" that is not known: \"{}\" (vmm cpu --names lists all that are)",
                name.escape_debug()
            )),
            None => Ok(host),
        }
    }

    /// The features that no guest here can be without and that `cpu` does not have.
    #[must_use]
    pub fn cannot_hide(&self, cpu: &Template) -> Vec<&str> {
        self.always.iter().map(String::as_str).filter(|name| !cpu.has_named(name)).collect()
    }
}

/// What several hosts have in common.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Common {
    /// The highest level that all have.
    pub level: Level,
    /// The features that all have, but for how they count and trace what they do.
    pub features: Vec<Feature>,
    /// The CPU for guests that are to move among them.
    pub choice: CpuChoice,
    /// That CPU.
    pub cpu: Template,
}

/// Why a guest cannot move among hosts.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NothingCommon {
    /// Of different makers.
    #[error("hosts of vendors {0} and {1}: no guest can move from one to the other")]
    Vendors(String, String),
    /// Not one level.
    #[error("the hosts do not even have x86-64-v1 in common")]
    Level,
    /// A contradiction in a description.
    #[error("the hosts have no CPU in common: {0}")]
    Cpu(#[from] CpuError),
}

/// What all of these have, and the CPU to choose for a guest that is to move among them.
///
/// # Errors
/// When there is nothing to choose.
pub fn common(hosts: &[HostCpu]) -> Result<Common, NothingCommon> {
    let vendor = |host: &HostCpu| host.cpu.vendor().unwrap_or_default();
    let (first, rest) = hosts.split_first().ok_or(NothingCommon::Level)?;
    if let Some(other) = rest.iter().find(|host| vendor(host) != vendor(first)) {
        return Err(NothingCommon::Vendors(vendor(first), vendor(other)));
    }
    let mut shared = first.cpu.clone();
    for feature in Feature::all_of(&first.cpu) {
        shared.put(feature, rest.iter().all(|host| host.cpu.has(feature)));
    }
    // What all have and not all have alike: registers that one of them keeps elsewhere, another version, counters.
    let displaced = rest.iter().flat_map(|host| xsave::displaced(&first.cpu, &host.cpu));
    let versions = rest.iter().any(|host| host.cpu.avx10_version() != first.cpu.avx10_version());
    let avx10 = versions.then(|| Feature::named("avx10")).flatten();
    let counting = COUNTING.split_whitespace().filter_map(Feature::named);
    let unlike = displaced.chain(avx10).chain(counting);
    unlike.flat_map(Feature::with_dependents).for_each(|feature| shared.put(feature, false));
    // A guest must guard against what is wrong with any of them.
    let flaws = hosts.iter().flat_map(|host| Feature::all_of(&host.cpu)).filter(|one| one.is_flaw());
    flaws.for_each(|flaw| shared.put(flaw, true));
    let level = Level::of(&shared).ok_or(NothingCommon::Level)?;
    let choice = choice(level, &shared);
    // The same on all: that is what it is for.
    let cpus: Vec<_> = hosts.iter().map(|host| choice.cpu(&host.cpu, 1, 0)).collect::<Result<_, _>>()?;
    let features = Feature::all_of(&shared).filter(|one| !one.is_flaw()).collect();
    Ok(Common { level, features, choice, cpu: cpus.into_iter().next().unwrap_or_default() })
}

/// How a CPU counts and traces what it does: each CPU does so otherwise, and no model has it.
const COUNTING: &str = "intel-pt ds dtes64 ds-cpl pdcm arch-lbr arch-perfmon-ext ibs perfctr-core perfctr-nb perfctr-llc \
                        perfmon-v2 amd-lbr-v2 amd-lbr-pmc-freeze brs";

/// The level, without what of its model is not shared, and with all else that is and can be named, flaws among it.
fn choice(level: Level, shared: &Template) -> CpuChoice {
    let model = level.model();
    let mut choice = CpuChoice::of_level(level);
    let gone: Vec<_> =
        model.iter().filter(|one| !shared.has(**one)).flat_map(|one| one.with_dependents()).collect();
    model.iter().filter(|one| !shared.has(**one)).for_each(|one| choice.change(false, *one));
    let mut there: Vec<_> = model.into_iter().filter(|one| !gone.contains(one)).collect();
    for feature in Feature::all_of(shared).filter(|one| one.name().is_some()) {
        let all = feature.with_needs();
        if !there.contains(&feature) && all.iter().all(|one| shared.has(*one)) {
            choice.change(true, feature);
            there.extend(all);
        }
    }
    choice
}
