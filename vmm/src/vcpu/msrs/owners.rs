//! The MSR mask: which MSRs are there only with a feature of the guest's CPU.
//!
//! KVM lists every MSR that it can save on this host. A guest without the feature cannot reach those that come with it
//! (#GP), so they hold nothing of its, and a host that lacks them can take it (SDM volume 4, chapter 2; APM volume 2,
//! appendix A; Documentation/virt/kvm/x86/msr.rst).

use super::super::template::Template;

/// First and last index, and the features of which one must be there.
const OWNERS: &[(u32, u32, &str)] = &[
    (0x11, 0x12, "kvmclock"),   // MSR_KVM_WALL_CLOCK, SYSTEM_TIME
    (0x3b, 0x3b, "tsc-adjust"), // IA32_TSC_ADJUST
    (0x48, 0x48, "spec-ctrl stibp ssbd ibrs amd-stibp amd-ssbd"), // IA32_SPEC_CTRL
    (0x8c, 0x8f, "sgx-lc"),     // IA32_SGXLEPUBKEYHASHn
    (0xcf, 0xcf, "core-capabilities"), // IA32_CORE_CAPABILITIES
    (0xe1, 0xe1, "waitpkg"),    // IA32_UMWAIT_CONTROL
    (0x10a, 0x10a, "arch-capabilities"), // IA32_ARCH_CAPABILITIES
    (0x122, 0x122, "tsx-ctrl"), // IA32_TSX_CTRL
    (0x1c4, 0x1c5, "xfd"),      // IA32_XFD, IA32_XFD_ERR
    (0x1cc, 0x1d4, "fred"),     // IA32_FRED_*
    (0x345, 0x345, "pdcm"),     // IA32_PERF_CAPABILITIES
    (0x480, 0x493, "vmx"),      // IA32_VMX_*
    (0x560, 0x561, "intel-pt"), // IA32_RTIT_OUTPUT_*
    (0x570, 0x587, "intel-pt"), // IA32_RTIT_*
    (0x6a0, 0x6a2, "cet-ss cet-ibt"), // IA32_U_CET, IA32_S_CET
    (0x6a4, 0x6a8, "cet-ss"),   // IA32_PLn_SSP, IA32_INTERRUPT_SSP_TABLE_ADDR
    (0x6e0, 0x6e0, "tsc-deadline"), // IA32_TSC_DEADLINE
    (0x6e1, 0x6e1, "pks"),      // IA32_PKRS
    (0xd90, 0xd90, "mpx"),      // IA32_BNDCFGS
    (0xda0, 0xda0, "xsaves"),   // IA32_XSS
    (0x4b56_4d00, 0x4b56_4d01, "kvmclock2"), // MSR_KVM_WALL_CLOCK_NEW, SYSTEM_TIME_NEW
    (0x4b56_4d02, 0x4b56_4d02, "kvm-asyncpf"), // MSR_KVM_ASYNC_PF_EN
    (0x4b56_4d03, 0x4b56_4d03, "kvm-steal-time"), // MSR_KVM_STEAL_TIME
    (0x4b56_4d04, 0x4b56_4d04, "kvm-pv-eoi"), // MSR_KVM_PV_EOI_EN
    (0x4b56_4d05, 0x4b56_4d05, "kvm-poll-control"), // MSR_KVM_POLL_CONTROL
    (0x4b56_4d06, 0x4b56_4d07, "kvm-asyncpf-int"), // MSR_KVM_ASYNC_PF_INT, ACK
    (0x4b56_4d08, 0x4b56_4d08, "kvm-migration-control"), // MSR_KVM_MIGRATION_CONTROL
    (0xc000_0103, 0xc000_0103, "rdtscp rdpid"), // IA32_TSC_AUX
    (0xc000_0104, 0xc000_0104, "svm"), // MSR_AMD64_TSC_RATIO
    (0xc000_0300, 0xc000_0303, "perfmon-v2"), // PerfCntrGlobal*
    (0xc001_0114, 0xc001_0117, "svm"), // VM_CR, IGNNE, SMM_CTL, VM_HSAVE_PA
    (0xc001_011f, 0xc001_011f, "virt-ssbd"), // MSR_AMD64_VIRT_SPEC_CTRL
    (0xc001_0200, 0xc001_020b, "perfctr-core"), // PERF_CTLn, PERF_CTRn
];

/// Intel's architectural performance monitoring, and what is sampled by it: counters, their selection and control, fixed
/// counters, PEBS and the DS area (SDM volume 4, table 2-2).
const COUNTERS: [(u32, u32); 9] = [
    (0xc1, 0xc8),
    (0x186, 0x18d),
    (0x309, 0x30c),
    (0x38d, 0x390),
    (0x3f1, 0x3f2),
    (0x4c1, 0x4c8),
    (0x600, 0x600),
    (0x1900, 0x193f),
    (0x1980, 0x19bf),
];

/// Hyper-V's synthetic MSRs. No guest is offered Hyper-V's interface.
const HYPER_V: (u32, u32) = (0x4000_0000, 0x4000_01ff);

/// Whether a guest with this CPU can have something in the MSR.
pub(super) fn is_there(index: u32, cpu: &Template) -> bool {
    let within = |(first, last): (u32, u32)| (first..=last).contains(&index);
    let owners = OWNERS.iter().find(|(first, last, _)| within((*first, *last)));
    let owned = owners.is_none_or(|(.., names)| names.split_whitespace().any(|name| cpu.has_named(name)));
    let counted = cpu.performance_counters().unwrap_or(0) > 0 || !COUNTERS.into_iter().any(within);
    owned && counted && !within(HYPER_V)
}

#[cfg(test)]
mod tests {
    use super::super::super::cpuid::CpuidEntry;
    use super::super::super::features::Feature;
    use super::*;

    #[test]
    fn an_msr_is_there_with_one_of_its_owners() {
        let mut cpu = Template::default();
        assert!(is_there(0x277, &cpu), "IA32_PAT belongs to none");
        for (index, owner) in [(0x48, "ibrs"), (0xda0, "xsaves"), (0x6a2, "cet-ibt"), (0xc000_0103, "rdpid")]
        {
            assert!(!is_there(index, &cpu), "{index:#x}");
            cpu.put(Feature::named(owner).unwrap(), true);
            assert!(is_there(index, &cpu), "{index:#x}");
        }
        assert!(!is_there(0x6a4, &cpu) && !is_there(0xc1, &cpu) && !is_there(0x4000_0000, &cpu));
        cpu.cpuid.push(CpuidEntry { function: 0xa, index: 0, flags: 0, eax: 0x0802, ebx: 0, ecx: 0, edx: 0 });
        assert!(is_there(0xc1, &cpu));
    }

    #[test]
    fn owners_are_features_and_ranges_are_in_order() {
        for (first, last, names) in OWNERS {
            assert!(
                first <= last && names.split_whitespace().all(|name| Feature::named(name).is_some()),
                "{names}"
            );
        }
        assert!(OWNERS.windows(2).all(|pair| pair[0].1 < pair[1].0));
    }
}
