//! Which feature is of no use without which other.
//!
//! For the instruction sets: what software must have found before it may use them (SDM volume 1, chapters 11 to 15, the
//! sections named "detection" or "checking for support"; APM volume 3, appendix D; Linux's own table,
//! arch/x86/kernel/cpu/cpuid-deps.c), and what compilers take for granted beside it (avx: sse4.2; avx512f: fma, f16c).
//! For register state: the XSAVE components that hold it, and back (SDM volume 1, section 13.1). For MSRs: the bit that
//! says that the MSR with the feature's bits is there.

use std::sync::LazyLock;

use super::super::template::ARCH_CAPABILITIES;
use super::{Feature, Word};

/// `features: what each of them needs`.
const NEEDS: &[(&str, &str)] = &[
    ("pae pse pse36 msr tsc apic sep mtrr pge mca pat vme de mce cx8 cmov clflush fxsr mmx", "fpu"),
    ("lm nx", "pae"),
    ("syscall lahf-lm pdpe1gb pcid la57 fsgsbase lam lkgs fred", "lm"),
    ("cx16", "cx8"),
    ("x2apic tsc-deadline arat extapic", "apic"),
    ("tsc-adjust invariant-tsc rdtscp tsc-deadline", "tsc"),
    ("invpcid", "pcid"),
    ("sse fxsr-opt", "fxsr"),
    ("sse2 misalignsse mmxext", "sse"),
    ("mmxext 3dnow", "mmx"),
    ("3dnowext", "3dnow"),
    ("sse3 aes pclmulqdq sha gfni", "sse2"),
    ("ssse3 sse4a", "sse3"),
    ("sse4.1", "ssse3"),
    ("sse4.2", "sse4.1"),
    ("avx xsaveopt xsavec xgetbv1 xsaves pku xsave-x87 xsave-sse", "xsave"),
    ("xsave", "xsave-x87 xsave-sse fxsr"),
    ("avx", "xsave-avx sse4.2"),
    ("xsave-avx", "avx"),
    ("avx2 fma f16c xop fma4 vaes vpclmulqdq", "avx"),
    ("vaes keylocker", "aes"),
    ("vpclmulqdq", "pclmulqdq"),
    ("avx-vnni avx-ifma avx-vnni-int8 avx-vnni-int16 avx-ne-convert avx512f sha512 sm3 sm4", "avx2"),
    ("avx512f", "xsave-avx512-masks xsave-avx512-upper-halves xsave-avx512-upper-registers fma f16c"),
    ("xsave-avx512-masks xsave-avx512-upper-halves xsave-avx512-upper-registers", "avx512f"),
    (
        "avx512dq avx512ifma avx512pf avx512er avx512cd avx512bw avx512vl avx512vnni avx512vpopcntdq \
         avx512-4vnniw avx512-4fmaps avx512-vp2intersect avx10",
        "avx512f",
    ),
    ("avx512vbmi avx512vbmi2 avx512bitalg avx512-bf16 avx512-fp16", "avx512bw"),
    ("avx512-fp16", "avx512dq avx512vl"),
    ("pku", "xsave-pkru"),
    ("xsave-pkru", "pku"),
    ("mpx", "xsave xsave-bndregs xsave-bndcsr"),
    ("xsave-bndregs xsave-bndcsr", "mpx"),
    ("amx-tile", "xsave xsave-amx-config xsave-amx-data xfd"),
    ("xsave-amx-config xsave-amx-data xfd", "amx-tile"),
    ("amx-bf16 amx-int8 amx-fp16 amx-complex amx-fp8 amx-tf32 amx-avx512 amx-movrs", "amx-tile"),
    ("amx-int8-alias", "amx-int8"),
    ("amx-bf16-alias", "amx-bf16"),
    ("amx-complex-alias", "amx-complex"),
    ("amx-fp16-alias", "amx-fp16"),
    ("apx", "xsave xsave-apx"),
    ("xsave-apx", "apx"),
    ("cet-ss", "xsaves xsaves-cet-user xsaves-cet-supervisor"),
    ("cet-ibt", "xsaves xsaves-cet-user"),
    ("cet-sss xsaves-cet-supervisor", "cet-ss"),
    ("xsaves-cet-user xsaves-cet-supervisor xsaves-pt xsaves-arch-lbr", "xsaves"),
    ("xsaves-pt", "intel-pt"),
    ("xsaves-arch-lbr", "arch-lbr"),
    ("hle rtm-always-abort tsx-force-abort tsxldtrk", "rtm"),
    ("stibp ssbd psfd ipred-ctrl rrsba-ctrl bhi-ctrl ddpd-u", "spec-ctrl"),
    // AMD's STIBP and SSBD are there without IBRS, too: each of them brings the MSR.
    ("amd-psfd", "amd-ssbd"),
    ("ibrs-always-on ibrs-preferred ibrs-same-mode autoibrs", "ibrs"),
    ("stibp-always-on", "amd-stibp"),
    ("sgx-lc", "sgx"),
    ("dtes64 ds-cpl", "ds"),
    ("perfmon-v2", "perfctr-core"),
    ("amd-lbr-v2 amd-lbr-pmc-freeze", "perfmon-v2"),
    ("uiret-uif", "uintr"),
    ("kvmclock-stable", "kvmclock2"),
    ("kvm-pv-tlb-flush kvm-pv-sched-yield", "kvm-steal-time"),
    ("kvm-asyncpf-vmexit kvm-asyncpf-int", "kvm-asyncpf"),
];

/// Each feature with each that it needs directly.
pub(super) fn all() -> &'static [(Feature, Feature)] {
    static ALL: LazyLock<Vec<(Feature, Feature)>> = LazyLock::new(|| {
        let named = |names: &'static str| names.split_whitespace().filter_map(Feature::named);
        let pairs =
            |(those, needs)| named(those).flat_map(move |one| named(needs).map(move |need| (one, need)));
        let telling = Feature::all_named().map(|(_, feature)| feature);
        let telling = telling.filter(|feature| matches!(feature.word, Word::Msr(ARCH_CAPABILITIES, _)));
        let told = telling.filter_map(|one| Some((one, Feature::named("arch-capabilities")?)));
        NEEDS.iter().copied().flat_map(pairs).chain(told).collect()
    });
    &ALL
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_of_the_table_is_a_feature() {
        let words =
            NEEDS.iter().flat_map(|(those, needs)| those.split_whitespace().chain(needs.split_whitespace()));
        let unknown: Vec<_> = words.filter(|word| Feature::named(word).is_none()).collect();
        assert!(unknown.is_empty(), "{unknown:?}");
    }
}
