//! Why a guest cannot come: everything at once.

use super::*;

#[test]
fn another_vendor_and_less_of_something_are_reasons() {
    let intel = host(Level::V2, &["la57"]);
    let mut amd = host(Level::V2, &["la57"]);
    let first = amd.leaf_mut(0, 0).unwrap();
    (first.ebx, first.edx, first.ecx) = (0x6874_7541, 0x6974_6e65, 0x444d_4163);
    amd.leaf_mut(0x8000_0008, 0).unwrap().eax = 0x3028;
    amd.take_performance_counters();
    assert_eq!(
        missing_features(&intel, &amd),
        [
            "the guest's CPU is of vendor GenuineIntel, this host's of AuthenticAMD",
            "the guest's CPU has physical addresses of 48 bits, this host's of 40",
            "the guest's CPU has linear addresses of 57 bits, this host's of 48",
            "the guest's CPU has 8 performance counters, this host's has 0",
        ]
    );
}

/// Of every kind one or more, and all are said.
#[test]
fn one_refusal_lists_reasons_of_all_kinds() {
    let needed = ["aes", "pku", "spec-ctrl", "arch-capabilities", "rdcl-no", "its-no", "avx10", "la57"];
    let mut guest = host(Level::V4, &needed);
    guest.put(Feature { word: Word::Cpuid(0x8000_0021, 0, Register::Ecx), bit: 9 }, true);
    guest.cpuid.push(entry(0x24, 0, [0, 2, 0, 0]));
    let mut here = host(Level::V4, &["pku", "arch-capabilities", "rdcl-no", "rsba", "avx10", "la57"]);
    here.cpuid.push(entry(0x24, 0, [0, 1, 0, 0]));
    here.put(feature("movbe"), false);
    here.put(feature("nx"), false);
    let first = here.leaf_mut(0, 0).unwrap();
    (first.ebx, first.edx, first.ecx) = (0x6874_7541, 0x6974_6e65, 0x444d_4163);
    here.leaf_mut(0xd, 9).unwrap().ebx = 2432;
    here.leaf_mut(0xd, 5).unwrap().eax = 128;
    here.leaf_mut(0x8000_0008, 0).unwrap().eax = 0x3028;
    here.take_performance_counters();
    assert_eq!(
        missing_features(&guest, &here),
        [
            "the guest's CPU is of vendor GenuineIntel, this host's of AuthenticAMD",
            "this host's CPU lacks movbe (CPUID 0x1.0 ECX bit 22)",
            "this host's CPU lacks aes (CPUID 0x1.0 ECX bit 25)",
            "this host's CPU lacks spec-ctrl (CPUID 0x7.0 EDX bit 26)",
            "this host's CPU lacks nx (CPUID 0x80000001.0 EDX bit 20)",
            "this host's CPU lacks CPUID 0x80000021.0 ECX bit 9",
            "this host's CPU lacks its-no (MSR 0x10a bit 62)",
            "this host's CPU has rsba (MSR 0x10a bit 2), of which the guest was not told",
            "XSAVE component 5 (avx512-masks) has 64 bytes, here 128",
            "XSAVE component 9 (pkru) lies at 2688 bytes, here at 2432",
            "the guest's CPU has physical addresses of 48 bits, this host's of 40",
            "the guest's CPU has linear addresses of 57 bits, this host's of 48",
            "the guest's CPU has version 2 of AVX10, this host's 1",
            "the guest's CPU has 8 performance counters, this host's has 0",
        ]
    );
}
