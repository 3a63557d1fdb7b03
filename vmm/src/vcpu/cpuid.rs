//! Entries of CPUID: the machine's shape in the place of the host's, and each vCPU's own copy.

use kvm_bindings::{CpuId, kvm_cpuid_entry2};
use serde::{Deserialize, Serialize};

use super::features::Register;
use crate::kvm::KvmError;

/// One entry of the template, as `kvm_cpuid_entry2` has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuidEntry {
    /// The leaf: EAX when CPUID is executed.
    pub function: u32,
    /// The subleaf: ECX, where the leaf has several.
    pub index: u32,
    /// Bit 0: the subleaf matters.
    pub flags: u32,
    /// Result.
    pub eax: u32,
    /// Result.
    pub ebx: u32,
    /// Result.
    pub ecx: u32,
    /// Result.
    pub edx: u32,
}

impl CpuidEntry {
    /// The seven numbers in order, little-endian: what a template's checksum is taken over.
    #[must_use]
    pub fn to_bytes(self) -> [u8; 28] {
        let words = [self.function, self.index, self.flags, self.eax, self.ebx, self.ecx, self.edx];
        let mut bytes = [0; 28];
        for (place, word) in bytes.chunks_exact_mut(4).zip(words) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }
}

impl CpuidEntry {
    pub(super) fn register(&mut self, register: Register) -> &mut u32 {
        match register {
            Register::Eax => &mut self.eax,
            Register::Ebx => &mut self.ebx,
            Register::Ecx => &mut self.ecx,
            Register::Edx => &mut self.edx,
        }
    }

    /// Whether it says nothing.
    pub(super) fn is_empty(&self) -> bool {
        self.eax | self.ebx | self.ecx | self.edx == 0
    }
}

impl From<&kvm_cpuid_entry2> for CpuidEntry {
    fn from(e: &kvm_cpuid_entry2) -> Self {
        let kvm_cpuid_entry2 { function, index, flags, eax, ebx, ecx, edx, .. } = *e;
        Self { function, index, flags, eax, ebx, ecx, edx }
    }
}

impl From<&CpuidEntry> for kvm_cpuid_entry2 {
    fn from(e: &CpuidEntry) -> Self {
        let CpuidEntry { function, index, flags, eax, ebx, ecx, edx } = *e;
        Self { function, index, flags, eax, ebx, ecx, edx, ..Default::default() }
    }
}

/// Leaf 1 EDX bit 28: more than one logical CPU a package.
const HTT: u32 = 1 << 28;
/// Leaf 0xb ECX bits 8..16: this level counts threads of a core.
const LEVEL_THREAD: u32 = 1 << 8;
/// Leaf 0xb ECX bits 8..16: this level counts cores of a package.
const LEVEL_CORE: u32 = 2 << 8;

/// Puts the machine's shape in the place of the host's.
pub(super) fn shape(entry: &mut CpuidEntry, vcpus: u32) {
    let ids = vcpus.next_power_of_two();
    let id_bits = ids.trailing_zeros();
    match (entry.function, entry.index) {
        (1, _) => {
            entry.edx = entry.edx & !HTT | if vcpus > 1 { HTT } else { 0 };
            // EBX: APIC id (put in for each vCPU), number of APIC ids, cache line size and brand of the host.
            entry.ebx = entry.ebx & 0xffff | ids << 16;
        }
        // EDX: APIC id. KVM lists that of the host's CPU it was asked on.
        (0xb | 0x1f, 0) => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 1, LEVEL_THREAD, 0),
        (0xb | 0x1f, 1) => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (id_bits, vcpus, LEVEL_CORE | 1, 0),
        // Caches. EAX bits 26..32: cores less one; 14..26: CPUs less one that share it (AMD: 14..26 alone).
        (4, _) if entry.eax & 0x1f != 0 => {
            entry.eax = entry.eax & 0x3fff | (ids - 1) << 26 | sharing(entry, ids) << 14;
        }
        (0x8000_001d, _) if entry.eax & 0x1f != 0 => {
            entry.eax = entry.eax & 0x3fff | sharing(entry, ids) << 14;
        }
        // AMD: ECX has the number of cores less one, and the bits of an APIC id that number them.
        (0x8000_0008, _) => entry.ecx = entry.ecx & !0xf0ff | (vcpus - 1) | id_bits << 12,
        // AMD: APIC id, threads a core less one, nodes less one.
        (0x8000_001e, _) => (entry.eax, entry.ebx, entry.ecx) = (0, 0, 0),
        _ => {}
    }
}

/// How many CPUs less one share this cache: all of them the third level, none the others.
fn sharing(cache: &CpuidEntry, ids: u32) -> u32 {
    let level = cache.eax >> 5 & 7;
    if level >= 3 { ids - 1 } else { 0 }
}

/// The copy for one vCPU: the template with its APIC id, which is its number.
///
/// # Errors
/// When the template has more entries than KVM takes.
pub(super) fn cpuid_for(template: &[CpuidEntry], vcpu: u32) -> Result<CpuId, KvmError> {
    let entries: Vec<kvm_cpuid_entry2> = template
        .iter()
        .map(|entry| {
            let mut entry = *entry;
            match entry.function {
                1 => entry.ebx = entry.ebx & 0x00ff_ffff | vcpu << 24,
                0xb | 0x1f => entry.edx = vcpu,
                // EBX bits 0..8: the core's number.
                0x8000_001e => (entry.eax, entry.ebx) = (vcpu, entry.ebx & !0xff | vcpu & 0xff),
                _ => {}
            }
            kvm_cpuid_entry2::from(&entry)
        })
        .collect();
    let too_many = || std::io::Error::from(std::io::ErrorKind::ArgumentListTooLong);
    CpuId::from_entries(&entries).map_err(|_| KvmError::refused("take this many CPUID entries")(too_many()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(function: u32, index: u32) -> CpuidEntry {
        CpuidEntry { function, index, flags: 0, eax: 0, ebx: 0xffff_ffff, ecx: 0, edx: 0xffff_ffff }
    }

    #[test]
    fn each_vcpu_has_its_own_apic_id() {
        let mut template = vec![leaf(1, 0), leaf(0xb, 1), leaf(0x8000_001e, 0)];
        template.iter_mut().for_each(|entry| shape(entry, 3));
        let cpuid = cpuid_for(&template, 2).unwrap();
        let entries = cpuid.as_slice();
        assert_eq!(entries[0].ebx >> 16, 0x0204, "APIC id 2, ids for 4");
        assert_eq!((entries[1].eax, entries[1].ebx, entries[1].edx), (2, 3, 2));
        assert_eq!((entries[2].eax, entries[2].ebx), (2, 2));
    }

    /// KVM puts the APIC id of the host's CPU that it is asked on into its list, and how that host shares its caches.
    #[test]
    fn nothing_is_left_of_the_cpu_that_kvm_was_asked_on() {
        let asked_on = |id: u32, shared: u32| {
            let mut template = vec![leaf(1, 0), leaf(4, 3), leaf(0xb, 0), leaf(0xb, 1), leaf(0x1f, 0)];
            template[0].ebx = id << 24 | 0x0800;
            template[1].eax = 0x163 | shared << 14 | shared << 26;
            template[2..].iter_mut().for_each(|entry| entry.edx = id);
            template.iter_mut().for_each(|entry| shape(entry, 2));
            template
        };
        assert_eq!(asked_on(0, 1), asked_on(77, 5));
        assert_eq!(asked_on(0, 0)[1].eax, 0x163 | 1 << 14 | 1 << 26, "two CPUs share the third level");
    }

    #[test]
    fn one_vcpu_is_not_several() {
        let mut entry = leaf(1, 0);
        shape(&mut entry, 1);
        assert_eq!(entry.edx & HTT, 0);
    }
}
