//! What a guest's CPU says of itself, for the whole machine: CPUID, and the MSRs that only tell.
//!
//! Its one invariant: it does not contradict itself. Whoever changes features calls [`settle`](Template::settle), which
//! makes everything that follows from them follow: register state and its sizes, leaves that describe a feature, how
//! many subleaves there are. It does not depend on which of a host's CPUs KVM was asked on.

use kvm_bindings::kvm_cpuid_entry2;
use serde::{Deserialize, Serialize};

use super::cpuid::{CpuidEntry, shape};
use super::features::{Feature, Register, Word};
use super::xsave;

/// IA32_ARCH_CAPABILITIES: what the CPU is not vulnerable to.
pub(super) const ARCH_CAPABILITIES: u32 = 0x10a;

/// An MSR that only tells, and what it tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FeatureMsr {
    /// Which.
    pub index: u32,
    /// What the guest reads.
    pub value: u64,
}

/// A guest's CPU.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Template {
    /// CPUID, before each vCPU's own APIC id is put in.
    pub cpuid: Vec<CpuidEntry>,
    /// MSRs that only tell.
    #[serde(default)]
    pub feature_msrs: Vec<FeatureMsr>,
}

/// Bits that mirror leaf 1 EDX in leaf 0x80000001 EDX on AMD (APM volume 3, appendix E.4.2).
const MIRRORED: u32 = 0x0183_f3ff;

/// Leaves that describe one feature and are empty without it.
const DESCRIBING: [(u32, &str); 8] = [
    (0x12, "sgx"),
    (0x14, "intel-pt"),
    (0x1c, "arch-lbr"),
    (0x1d, "amx-tile"),
    (0x1e, "amx-tile"),
    (0x24, "avx10"),
    (0x8000_000a, "svm"),
    (0x8000_0022, "perfmon-v2"),
];

impl Template {
    /// One entry, if it is there.
    #[must_use]
    pub fn leaf(&self, function: u32, index: u32) -> Option<&CpuidEntry> {
        self.cpuid.iter().find(|entry| (entry.function, entry.index) == (function, index))
    }

    pub(super) fn leaf_mut(&mut self, function: u32, index: u32) -> Option<&mut CpuidEntry> {
        self.cpuid.iter_mut().find(|entry| (entry.function, entry.index) == (function, index))
    }

    /// The bits of a word that are features: not those that follow CR4 or the machine's shape.
    pub(super) fn bits(&self, word: Word) -> u32 {
        let bits = match word {
            Word::Cpuid(leaf, subleaf, register) => {
                self.leaf(leaf, subleaf).map_or(0, |entry| *entry.clone().register(register))
            }
            Word::Msr(index, first) => {
                let msr = self.feature_msrs.iter().find(|msr| msr.index == index);
                msr.map_or(0, |msr| (msr.value >> first) as u32)
            }
        };
        bits & !no_features(word)
    }

    /// Whether it has a feature.
    #[must_use]
    pub fn has(&self, feature: Feature) -> bool {
        self.bits(feature.word) & 1 << feature.bit != 0
    }

    /// Gives or takes one feature and nothing else; [`settle`](Self::settle) is to follow. A word that is not there is
    /// made where something is to be in it.
    pub(super) fn put(&mut self, feature: Feature, present: bool) {
        let (mask, on) = (1 << feature.bit, if present { 1 << feature.bit } else { 0 });
        match feature.word {
            Word::Cpuid(leaf, subleaf, register) => {
                if present && self.leaf(leaf, subleaf).is_none() {
                    self.add_leaf(leaf, subleaf);
                }
                if let Some(entry) = self.leaf_mut(leaf, subleaf) {
                    let word = entry.register(register);
                    *word = *word & !mask | on;
                }
            }
            Word::Msr(index, first) => {
                if let Some(msr) = self.feature_msrs.iter_mut().find(|msr| msr.index == index) {
                    msr.value = msr.value & !(u64::from(mask) << first) | u64::from(on) << first;
                }
            }
        }
    }

    fn add_leaf(&mut self, function: u32, index: u32) {
        // Bit 0: the subleaf matters.
        let flags = u32::from(matches!(function, 7 | 0xd));
        self.cpuid.push(CpuidEntry::from(&kvm_cpuid_entry2 { function, index, flags, ..Default::default() }));
    }

    /// Makes all that follows from the features follow, for a machine of `vcpus` vCPUs.
    pub fn settle(&mut self, vcpus: u32) {
        self.make_topology();
        self.cpuid.iter_mut().for_each(|entry| shape(entry, vcpus));
        self.forget_what_changes();
        self.mirror();
        for (function, name) in DESCRIBING {
            if !self.has_named(name) {
                self.cpuid.retain(|entry| entry.function != function);
            }
        }
        if !self.has_named("arch-capabilities") {
            self.feature_msrs.retain(|msr| msr.index != ARCH_CAPABILITIES);
        }
        xsave::settle(self);
        self.narrow_linear();
        self.count_subleaves();
        // A leaf of zeros says what one that is not there says.
        let numbered = if self.has_named("topoext") { 0x8000_001e } else { 0xb };
        let stays = |function| matches!(function, 7 | 0xb | 0xd) || function == numbered;
        self.cpuid.retain(|entry| stays(entry.function) || !entry.is_empty());
        self.cpuid.sort_by_key(|entry| (entry.function, entry.index));
    }

    /// Leaf 0xb has a level for threads and one for cores, whatever KVM lists: it leaves them to us.
    fn make_topology(&mut self) {
        const SUBLEAF_MATTERS: u32 = 1;
        let Some(first) = self.leaf_mut(0xb, 0) else { return };
        first.flags |= SUBLEAF_MATTERS;
        let second = CpuidEntry { index: 1, ..*first };
        if self.leaf(0xb, 1).is_none() {
            self.cpuid.push(second);
        }
    }

    /// Takes away what shows what a guest does at the moment.
    fn forget_what_changes(&mut self) {
        // OSXSAVE and OSPKE follow CR4.
        for (function, bit) in [(1, 27), (7, 4)] {
            if let Some(entry) = self.leaf_mut(function, 0) {
                entry.ecx &= !(1 << bit);
            }
        }
    }

    /// AMD's second copy of leaf 1 EDX.
    fn mirror(&mut self) {
        let first = self.leaf(1, 0).map_or(0, |entry| entry.edx);
        let amd = matches!(self.vendor().as_deref(), Some("AuthenticAMD" | "HygonGenuine"));
        if let Some(entry) = self.leaf_mut(0x8000_0001, 0) {
            entry.edx = entry.edx & !MIRRORED | if amd { first & MIRRORED } else { 0 };
        }
    }

    /// Leaf 7 subleaf 0 EAX: the highest subleaf in which something is.
    fn count_subleaves(&mut self) {
        let highest =
            self.cpuid.iter().filter(|entry| entry.function == 7 && entry.index > 0 && !entry.is_empty());
        let highest = highest.map(|entry| entry.index).max().unwrap_or(0);
        self.cpuid.retain(|entry| entry.function != 7 || entry.index <= highest);
        if let Some(entry) = self.leaf_mut(7, 0) {
            entry.eax = highest;
        }
    }

    /// Takes away Intel's performance counters. AMD's are features.
    pub(super) fn take_performance_counters(&mut self) {
        self.cpuid.retain(|entry| !matches!(entry.function, 0xa | 0x23));
    }

    /// Lowers the size of physical addresses to this many bits.
    pub(super) fn narrow_physical(&mut self, bits: u32) {
        if let Some(entry) = self.leaf_mut(0x8000_0008, 0) {
            // Bits 16..24 are for guests that are to use fewer than are there; zero: the same.
            let here = entry.eax & 0xff;
            entry.eax = entry.eax & 0xff00 | here.min(bits);
        }
    }

    /// Lowers the size of linear addresses to what goes with its paging.
    fn narrow_linear(&mut self) {
        let wide = self.has_named("la57");
        if let (Some(entry), false) = (self.leaf_mut(0x8000_0008, 0), wide) {
            entry.eax = entry.eax & !0xff00 | (entry.eax >> 8 & 0xff).min(48) << 8;
        }
    }

    /// Bits of a physical address.
    #[must_use]
    pub fn physical_bits(&self) -> Option<u32> {
        self.leaf(0x8000_0008, 0).map(|entry| entry.eax & 0xff)
    }

    /// Bits of a linear address.
    #[must_use]
    pub fn linear_bits(&self) -> Option<u32> {
        self.leaf(0x8000_0008, 0).map(|entry| entry.eax >> 8 & 0xff)
    }

    /// What AVX10 has grown to. Zero without it.
    #[must_use]
    pub fn avx10_version(&self) -> Option<u32> {
        Some(self.leaf(0x24, 0).map_or(0, |entry| entry.ebx & 0xff))
    }

    /// Counters of Intel's architectural performance monitoring, or of AMD's second version.
    #[must_use]
    pub fn performance_counters(&self) -> Option<u32> {
        let intel = self.leaf(0xa, 0).filter(|entry| entry.eax & 0xff != 0);
        let intel = intel.map(|entry| entry.eax >> 8 & 0xff);
        let amd = self.leaf(0x8000_0022, 0).map(|entry| entry.ebx & 0xf);
        Some(intel.or(amd).unwrap_or(0))
    }

    /// Twelve letters.
    #[must_use]
    pub fn vendor(&self) -> Option<String> {
        let leaf = self.leaf(0, 0)?;
        let bytes = [leaf.ebx, leaf.edx, leaf.ecx].map(u32::to_le_bytes).concat();
        Some(bytes.escape_ascii().to_string())
    }

    /// Whether it has the feature of this name.
    #[must_use]
    pub fn has_named(&self, name: &str) -> bool {
        Feature::named(name).is_some_and(|feature| self.has(feature))
    }
}

/// Bits of a word that are no features: OSXSAVE and OSPKE follow CR4, HTT says whether there are several vCPUs, AMD
/// mirrors leaf 1.
fn no_features(word: Word) -> u32 {
    match word {
        Word::Cpuid(1, 0, Register::Ecx) => 1 << 27,
        Word::Cpuid(1, 0, Register::Edx) => 1 << 28,
        Word::Cpuid(7, 0, Register::Ecx) => 1 << 4,
        Word::Cpuid(0x8000_0001, 0, Register::Edx) => MIRRORED,
        _ => 0,
    }
}
