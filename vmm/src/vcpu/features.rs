//! CPU features by name: which bit each is, and which of them one CPU has and another lacks.
//!
//! A feature is one bit of a register that CPUID fills, or of an MSR that only tells. The tables name the bits that
//! people know ([`table`]); a bit without a name counts all the same, and is called by its place.

mod needs;
mod table;

use std::fmt;
use std::sync::LazyLock;

use super::template::Template;
use super::xsave;
use table::WORDS;

/// A register that CPUID fills.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Register {
    Eax,
    Ebx,
    Ecx,
    Edx,
}

/// 32 bits of which each is a feature.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Word {
    /// Leaf, subleaf, register.
    Cpuid(u32, u32, Register),
    /// Index of the MSR, and the first of the 32 bits: 0 or 32.
    Msr(u32, u32),
}

/// One feature: a bit of a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Feature {
    pub(super) word: Word,
    pub(super) bit: u32,
}

impl Feature {
    /// The feature of this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::all_named().find_map(|(known, feature)| (known == name).then_some(feature))
    }

    /// Every name with its feature, in the order of the tables.
    pub fn all_named() -> impl Iterator<Item = (&'static str, Self)> {
        static ALL: LazyLock<Vec<(&str, Feature)>> = LazyLock::new(|| {
            let of = |(word, names): &(Word, &'static str)| {
                let word = *word;
                pairs(names).map(move |(bit, name)| (name, Feature { word, bit }))
            };
            WORDS.iter().flat_map(of).collect()
        });
        ALL.iter().copied()
    }

    /// Its name, if it has one.
    #[must_use]
    pub fn name(self) -> Option<&'static str> {
        Self::all_named().find_map(|(name, feature)| (feature == self).then_some(name))
    }

    /// Every feature of `cpu`, in the order of the tables.
    pub fn all_of(cpu: &Template) -> impl Iterator<Item = Self> {
        WORDS.iter().flat_map(|(word, _)| {
            let bits = cpu.bits(*word);
            (0..32).filter(move |bit| bits & 1 << bit != 0).map(|bit| Self { word: *word, bit })
        })
    }

    /// What it needs directly to be of any use.
    pub(super) fn needs(self) -> impl Iterator<Item = Self> {
        needs::all().iter().filter(move |(feature, _)| *feature == self).map(|(_, needed)| *needed)
    }

    /// Itself, and all that is of no use without it.
    #[must_use]
    pub fn with_dependents(self) -> Vec<Self> {
        let dependents = |of: Self| needs::all().iter().filter(move |(_, needed)| *needed == of);
        closure(self, |feature| dependents(feature).map(|(one, _)| *one).collect())
    }

    /// Itself, and all that it needs.
    #[must_use]
    pub fn with_needs(self) -> Vec<Self> {
        closure(self, |feature| feature.needs().collect())
    }

    /// Those of `cpu` that are of no use there: what they need is missing.
    pub(super) fn useless(cpu: &Template) -> Vec<Self> {
        let lacks = |feature: &Self| feature.needs().any(|needed| !cpu.has(needed));
        let mut all: Vec<_> = Self::all_of(cpu)
            .filter(lacks)
            .flat_map(Self::with_dependents)
            .filter(|one| cpu.has(*one))
            .collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    /// Says of a CPU not that it can do more but that it can be trusted less: to have it where the guest was told
    /// otherwise is what another host must not.
    pub(super) fn is_flaw(self) -> bool {
        // Asked of all features of a CPU, and to look for names takes a while: none of CPUID's is one.
        matches!(self.word, Word::Msr(..)) && matches!(self.name(), Some("rsba" | "rrsba"))
    }
}

/// What is reached from `start` by `next`, itself first.
fn closure(start: Feature, next: impl Fn(Feature) -> Vec<Feature>) -> Vec<Feature> {
    let mut all = vec![start];
    let mut at = 0;
    while let Some(feature) = all.get(at) {
        let more: Vec<_> = next(*feature).into_iter().filter(|one| !all.contains(one)).collect();
        all.extend(more);
        at += 1;
    }
    all
}

fn pairs(names: &'static str) -> impl Iterator<Item = (u32, &'static str)> {
    names.split_whitespace().filter_map(|pair| {
        let (bit, name) = pair.split_once(':')?;
        Some((bit.parse().ok()?, name))
    })
}

impl fmt::Display for Word {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpuid(leaf, subleaf, register) => {
                write!(f, "CPUID {leaf:#x}.{subleaf} {}", format!("{register:?}").to_uppercase())
            }
            Self::Msr(index, _) => write!(f, "MSR {index:#x}"),
        }
    }
}

/// The name and the place, or the place alone.
impl fmt::Display for Feature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let first = if let Word::Msr(_, first) = self.word { first } else { 0 };
        let (word, bit) = (self.word, first + self.bit);
        match self.name() {
            Some(name) => write!(f, "{name} ({word} bit {bit})"),
            None => write!(f, "{word} bit {bit}"),
        }
    }
}

/// What a guest with the CPU `given` needs and one with the CPU `here` would not have.
#[must_use]
pub fn lacking(given: &Template, here: &Template) -> Vec<Feature> {
    Feature::all_of(given)
        .filter(|feature| !feature.is_flaw() && !here.has(*feature))
        .chain(
            Feature::all_of(here).filter(|feature| feature.is_flaw() && told(given) && !given.has(*feature)),
        )
        .collect()
}

/// Whether it can read the MSR with the flaws.
fn told(cpu: &Template) -> bool {
    Feature::named("arch-capabilities").is_some_and(|feature| cpu.has(feature))
}

/// What a CPU with `given` needs that one with `here` does not have, one line each.
#[must_use]
pub fn missing_features(given: &Template, here: &Template) -> Vec<String> {
    let mut missing = Vec::new();
    if let (Some(there), Some(here)) = (given.vendor(), here.vendor())
        && there != here
    {
        missing.push(format!("the guest's CPU is of vendor {there}, this host's of {here}"));
    }
    missing.extend(lacking(given, here).into_iter().map(|feature| match feature.is_flaw() {
        true => format!("this host's CPU has {feature}, of which the guest was not told"),
        false => format!("this host's CPU lacks {feature}"),
    }));
    missing.extend(xsave::displacements(given, here));
    missing.extend(less(given, here, Template::physical_bits, |there, here| {
        format!("the guest's CPU has physical addresses of {there} bits, this host's of {here}")
    }));
    missing.extend(less(given, here, Template::linear_bits, |there, here| {
        format!("the guest's CPU has linear addresses of {there} bits, this host's of {here}")
    }));
    missing.extend(less(given, here, Template::avx10_version, |there, here| {
        format!("the guest's CPU has version {there} of AVX10, this host's {here}")
    }));
    missing.extend(less(given, here, Template::performance_counters, |there, here| {
        format!("the guest's CPU has {there} performance counters, this host's has {here}")
    }));
    missing
}

/// Says so where the guest has more of a size.
fn less(
    given: &Template,
    here: &Template,
    size: impl Fn(&Template) -> Option<u32>,
    say: impl Fn(u32, u32) -> String,
) -> Option<String> {
    let (there, here) = (size(given)?, size(here)?);
    (there > here).then(|| say(there, here))
}
