//! What a guest's CPUID template asks for and another host does not have, by name.

use super::cpuid::CpuidEntry;

#[derive(Clone, Copy)]
enum Register {
    Eax,
    Ebx,
    Ecx,
    Edx,
}

use Register::{Eax, Ebx, Ecx, Edx};

impl Register {
    fn of(self, entry: &CpuidEntry) -> u32 {
        match self {
            Eax => entry.eax,
            Ebx => entry.ebx,
            Ecx => entry.ecx,
            Edx => entry.edx,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Eax => "EAX",
            Ebx => "EBX",
            Ecx => "ECX",
            Edx => "EDX",
        }
    }
}

/// Leaf, subleaf, register, and the names of its bits: `bit:name`, separated by spaces.
type Features = (u32, u32, Register, &'static str);

/// The registers in which every bit is a feature (SDM volume 2A, CPUID; APM volume 3, appendix E;
/// Documentation/virt/kvm/x86/cpuid.rst), with the names that people know.
const FEATURES: &[Features] = &[
    (
        1,
        0,
        Ecx,
        "0:sse3 1:pclmulqdq 3:monitor 5:vmx 9:ssse3 12:fma 13:cx16 17:pcid 19:sse4.1 20:sse4.2 \
         21:x2apic 22:movbe 23:popcnt 24:tsc-deadline 25:aes 26:xsave 28:avx 29:f16c 30:rdrand",
    ),
    (
        1,
        0,
        Edx,
        "0:fpu 3:pse 4:tsc 5:msr 6:pae 8:cx8 9:apic 11:sep 12:mtrr 15:cmov 16:pat 19:clflush 23:mmx \
         24:fxsr 25:sse 26:sse2",
    ),
    (6, 0, Eax, "2:arat"),
    (
        7,
        0,
        Ebx,
        "0:fsgsbase 1:tsc-adjust 3:bmi1 4:hle 5:avx2 7:smep 8:bmi2 9:erms 10:invpcid 11:rtm \
         16:avx512f 17:avx512dq 18:rdseed 19:adx 20:smap 21:avx512ifma 23:clflushopt 24:clwb \
         28:avx512cd 29:sha 30:avx512bw 31:avx512vl",
    ),
    (
        7,
        0,
        Ecx,
        "1:avx512vbmi 2:umip 3:pku 5:waitpkg 6:avx512vbmi2 7:cet-ss 8:gfni 9:vaes 10:vpclmulqdq \
         11:avx512vnni 12:avx512bitalg 14:avx512vpopcntdq 16:la57 22:rdpid",
    ),
    (
        7,
        0,
        Edx,
        "4:fsrm 10:md-clear 14:serialize 20:cet-ibt 22:amx-bf16 23:avx512-fp16 24:amx-tile \
         25:amx-int8 26:spec-ctrl 27:stibp 29:arch-capabilities 31:ssbd",
    ),
    (7, 1, Eax, "4:avx-vnni 5:avx512-bf16 23:avx-ifma"),
    (7, 1, Edx, "4:avx-vnni-int8 14:prefetchi 19:avx10"),
    (7, 2, Edx, ""),
    (
        0xd,
        0,
        Eax,
        "0:xsave-x87 1:xsave-sse 2:xsave-avx 5:xsave-avx512-masks 6:xsave-avx512-upper-halves \
         7:xsave-avx512-upper-registers 9:xsave-pkru 17:xsave-amx-config 18:xsave-amx-data",
    ),
    (0xd, 0, Edx, ""),
    (0xd, 1, Eax, "0:xsaveopt 1:xsavec 2:xgetbv1 3:xsaves"),
    (0xd, 1, Ecx, "11:xsaves-cet-user 12:xsaves-cet-supervisor"),
    (
        0x4000_0001,
        0,
        Eax,
        "0:kvmclock 3:kvmclock2 4:kvm-asyncpf 5:kvm-steal-time 6:kvm-pv-eoi 7:kvm-pv-unhalt \
         9:kvm-pv-tlb-flush 11:kvm-pv-ipi 14:kvm-asyncpf-int 24:kvmclock-stable",
    ),
    (
        0x8000_0001,
        0,
        Ecx,
        "0:lahf-lm 2:svm 4:cr8-legacy 5:abm 6:sse4a 7:misalignsse 8:3dnowprefetch 11:xop 16:fma4 \
         22:topoext 23:perfctr-core",
    ),
    (0x8000_0001, 0, Edx, "11:syscall 20:nx 22:mmxext 25:fxsr-opt 26:pdpe1gb 27:rdtscp 29:lm"),
    (0x8000_0007, 0, Edx, "8:invariant-tsc"),
    (
        0x8000_0008,
        0,
        Ebx,
        "0:clzero 2:xsaveerptr 9:wbnoinvd 12:ibpb 14:ibrs 15:amd-stibp 24:amd-ssbd 25:virt-ssbd \
         28:amd-psfd",
    ),
    (0x8000_0021, 0, Eax, "2:lfence-always-serializing 6:null-sel-clears-base 8:autoibrs"),
];

/// Leaf 1 ECX bit 27 (OSXSAVE) and leaf 7 ECX bit 4 (OSPKE) follow CR4: KVM keeps them up to date itself.
fn follows_cr4(function: u32, register: Register, bit: u32) -> bool {
    matches!((function, register, bit), (1, Ecx, 27) | (7, Ecx, 4))
}

/// What a CPU with `template` needs that one with `here` does not have, one line each.
#[must_use]
pub fn missing_features(template: &[CpuidEntry], here: &[CpuidEntry]) -> Vec<String> {
    let mut missing = Vec::new();
    if let (Some(there), Some(here)) = (vendor(template), vendor(here))
        && there != here
    {
        missing.push(format!("the guest's CPU is of vendor {there}, this host's of {here}"));
    }
    for (function, index, register, names) in FEATURES {
        let bits = |entries| find(entries, *function, *index).map_or(0, |entry| register.of(entry));
        let lacking = bits(template) & !bits(here);
        let each = (0..32).filter(|bit| lacking & 1 << bit != 0);
        for bit in each.filter(|bit| !follows_cr4(*function, *register, *bit)) {
            missing.push(format!(
                "this host's CPU lacks {}",
                describe(*function, *index, *register, bit, names)
            ));
        }
    }
    missing.extend(narrower("physical", template, here, |e| e.eax & 0xff));
    missing.extend(narrower("linear", template, here, |e| e.eax >> 8 & 0xff));
    missing
}

fn describe(function: u32, index: u32, register: Register, bit: u32, names: &str) -> String {
    let place = format!("CPUID {function:#x}.{index} {} bit {bit}", register.name());
    let mut pairs = names.split_whitespace().filter_map(|pair| pair.split_once(':'));
    match pairs.find(|(known, _)| known.parse() == Ok(bit)) {
        Some((_, name)) => format!("{name} ({place})"),
        None => place,
    }
}

/// Address sizes: leaf 0x80000008 EAX.
fn narrower(
    what: &str,
    template: &[CpuidEntry],
    here: &[CpuidEntry],
    bits: impl Fn(&CpuidEntry) -> u32,
) -> Option<String> {
    let [there, here] = [template, here].map(|entries| find(entries, 0x8000_0008, 0).map(&bits));
    let (there, here) = (there?, here?);
    let line = format!("the guest's CPU has {what} addresses of {there} bits, this host's of {here}");
    (there > here).then_some(line)
}

fn find(entries: &[CpuidEntry], function: u32, index: u32) -> Option<&CpuidEntry> {
    entries.iter().find(|entry| entry.function == function && entry.index == index)
}

fn vendor(entries: &[CpuidEntry]) -> Option<String> {
    let leaf = find(entries, 0, 0)?;
    let bytes = [leaf.ebx, leaf.edx, leaf.ecx].map(u32::to_le_bytes).concat();
    Some(bytes.escape_ascii().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(function: u32, register: Register, value: u32) -> CpuidEntry {
        let mut entry = CpuidEntry { function, index: 0, flags: 0, eax: 0, ebx: 0, ecx: 0, edx: 0 };
        match register {
            Eax => entry.eax = value,
            Ebx => entry.ebx = value,
            Ecx => entry.ecx = value,
            Edx => entry.edx = value,
        }
        entry
    }

    #[test]
    fn a_lacking_feature_is_named() {
        let there = [leaf(7, Ebx, 1 << 5 | 1 << 16)];
        let here = [leaf(7, Ebx, 1 << 5)];
        assert_eq!(
            missing_features(&there, &here),
            ["this host's CPU lacks avx512f (CPUID 0x7.0 EBX bit 16)"]
        );
        assert!(missing_features(&here, &there).is_empty(), "more features than needed are no reason");
    }

    #[test]
    fn every_name_has_a_bit_of_its_own() {
        for (function, .., names) in FEATURES {
            let bits =
                names.split_whitespace().map(|pair| pair.split_once(':').unwrap().0.parse::<u32>().unwrap());
            let mut seen = std::collections::BTreeSet::new();
            assert!(bits.into_iter().all(|bit| bit < 32 && seen.insert(bit)), "{function:#x}: {names}");
        }
    }

    #[test]
    fn an_unnamed_bit_is_placed_and_osxsave_does_not_count() {
        let there = [leaf(1, Ecx, 1 << 27 | 1 << 14)];
        assert_eq!(missing_features(&there, &[]), ["this host's CPU lacks CPUID 0x1.0 ECX bit 14"]);
    }

    #[test]
    fn another_vendor_and_fewer_address_bits_are_reasons() {
        let mut intel = leaf(0, Ebx, u32::from_le_bytes(*b"Genu"));
        intel.edx = u32::from_le_bytes(*b"ineI");
        intel.ecx = u32::from_le_bytes(*b"ntel");
        let mut amd = leaf(0, Ebx, u32::from_le_bytes(*b"Auth"));
        amd.edx = u32::from_le_bytes(*b"enti");
        amd.ecx = u32::from_le_bytes(*b"cAMD");
        let reasons = missing_features(
            &[intel, leaf(0x8000_0008, Eax, 0x3930)],
            &[amd, leaf(0x8000_0008, Eax, 0x3928)],
        );
        assert_eq!(
            reasons,
            [
                "the guest's CPU is of vendor GenuineIntel, this host's of AuthenticAMD",
                "the guest's CPU has physical addresses of 48 bits, this host's of 40",
            ]
        );
    }
}
