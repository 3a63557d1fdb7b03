//! The words in which every bit is a feature, and the bits' names.
//!
//! From the SDM (volume 2A, CPUID; volume 4, table 2-2), the APM (volume 3, appendix E) and the kernel's
//! Documentation/virt/kvm/x86/cpuid.rst; the names are those that people know, in Linux's spelling where it has one,
//! with '-' for '_'.

use super::Register::{Eax, Ebx, Ecx, Edx};
use super::Word::{self, Cpuid, Msr};

/// Each word with its bits' names: `bit:name`, separated by spaces.
pub(super) const WORDS: &[(Word, &str)] = &[
    (
        Cpuid(1, 0, Ecx),
        "0:sse3 1:pclmulqdq 2:dtes64 3:monitor 4:ds-cpl 5:vmx 6:smx 7:est 8:tm2 9:ssse3 11:sdbg 12:fma 13:cx16 \
         14:xtpr 15:pdcm 17:pcid 18:dca 19:sse4.1 20:sse4.2 21:x2apic 22:movbe 23:popcnt 24:tsc-deadline 25:aes \
         26:xsave 28:avx 29:f16c 30:rdrand 31:hypervisor",
    ),
    (
        Cpuid(1, 0, Edx),
        "0:fpu 1:vme 2:de 3:pse 4:tsc 5:msr 6:pae 7:mce 8:cx8 9:apic 11:sep 12:mtrr 13:pge 14:mca 15:cmov 16:pat \
         17:pse36 18:pn 19:clflush 21:ds 22:acpi 23:mmx 24:fxsr 25:sse 26:sse2 27:ss 29:tm 31:pbe",
    ),
    (Cpuid(6, 0, Eax), "2:arat"),
    (Cpuid(6, 0, Ecx), "0:aperfmperf 3:epb"),
    (
        Cpuid(7, 0, Ebx),
        "0:fsgsbase 1:tsc-adjust 2:sgx 3:bmi1 4:hle 5:avx2 6:fdp-excptn-only 7:smep 8:bmi2 9:erms 10:invpcid \
         11:rtm 12:cqm 13:zero-fcs-fds 14:mpx 15:rdt-a 16:avx512f 17:avx512dq 18:rdseed 19:adx 20:smap \
         21:avx512ifma 23:clflushopt 24:clwb 25:intel-pt 26:avx512pf 27:avx512er 28:avx512cd 29:sha 30:avx512bw \
         31:avx512vl",
    ),
    (
        Cpuid(7, 0, Ecx),
        "0:prefetchwt1 1:avx512vbmi 2:umip 3:pku 5:waitpkg 6:avx512vbmi2 7:cet-ss 8:gfni 9:vaes 10:vpclmulqdq \
         11:avx512vnni 12:avx512bitalg 13:tme 14:avx512vpopcntdq 16:la57 22:rdpid 23:keylocker \
         24:bus-lock-detect 25:cldemote 27:movdiri 28:movdir64b 29:enqcmd 30:sgx-lc 31:pks",
    ),
    (
        Cpuid(7, 0, Edx),
        "2:avx512-4vnniw 3:avx512-4fmaps 4:fsrm 5:uintr 8:avx512-vp2intersect 9:srbds-ctrl 10:md-clear \
         11:rtm-always-abort 13:tsx-force-abort 14:serialize 15:hybrid 16:tsxldtrk 18:pconfig 19:arch-lbr \
         20:cet-ibt 22:amx-bf16 23:avx512-fp16 24:amx-tile 25:amx-int8 26:spec-ctrl 27:stibp 28:flush-l1d \
         29:arch-capabilities 30:core-capabilities 31:ssbd",
    ),
    (
        Cpuid(7, 1, Eax),
        "0:sha512 1:sm3 2:sm4 3:rao-int 4:avx-vnni 5:avx512-bf16 6:lass 7:cmpccxadd 8:arch-perfmon-ext 10:fzrm \
         11:fsrs 12:fsrc 17:fred 18:lkgs 19:wrmsrns 20:nmi-src 21:amx-fp16 22:hreset 23:avx-ifma 26:lam \
         27:msrlist 31:movrs",
    ),
    (Cpuid(7, 1, Ebx), "0:intel-ppin"),
    (Cpuid(7, 1, Ecx), "5:msr-imm"),
    (
        Cpuid(7, 1, Edx),
        "4:avx-vnni-int8 5:avx-ne-convert 8:amx-complex 10:avx-vnni-int16 13:utmr 14:prefetchi 15:user-msr \
         17:uiret-uif 18:cet-sss 19:avx10 21:apx 23:mwait",
    ),
    (Cpuid(7, 2, Edx), "0:psfd 1:ipred-ctrl 2:rrsba-ctrl 3:ddpd-u 4:bhi-ctrl 5:mcdt-no"),
    (
        Cpuid(0xd, 0, Eax),
        "0:xsave-x87 1:xsave-sse 2:xsave-avx 3:xsave-bndregs 4:xsave-bndcsr 5:xsave-avx512-masks \
         6:xsave-avx512-upper-halves 7:xsave-avx512-upper-registers 9:xsave-pkru 17:xsave-amx-config \
         18:xsave-amx-data 19:xsave-apx",
    ),
    (Cpuid(0xd, 0, Edx), ""),
    (Cpuid(0xd, 1, Eax), "0:xsaveopt 1:xsavec 2:xgetbv1 3:xsaves 4:xfd"),
    (Cpuid(0xd, 1, Edx), ""),
    (Cpuid(0xd, 1, Ecx), "8:xsaves-pt 11:xsaves-cet-user 12:xsaves-cet-supervisor 15:xsaves-arch-lbr"),
    // What PT can do, and how.
    (Cpuid(0x14, 0, Ebx), ""),
    (Cpuid(0x14, 0, Ecx), ""),
    (
        Cpuid(0x1e, 1, Eax),
        "0:amx-int8-alias 1:amx-bf16-alias 2:amx-complex-alias 3:amx-fp16-alias 4:amx-fp8 6:amx-tf32 7:amx-avx512 \
         8:amx-movrs",
    ),
    (
        Cpuid(0x4000_0001, 0, Eax),
        "0:kvmclock 1:kvm-nopiodelay 3:kvmclock2 4:kvm-asyncpf 5:kvm-steal-time 6:kvm-pv-eoi 7:kvm-pv-unhalt \
         9:kvm-pv-tlb-flush 10:kvm-asyncpf-vmexit 11:kvm-pv-ipi 12:kvm-poll-control 13:kvm-pv-sched-yield \
         14:kvm-asyncpf-int 15:kvm-msi-ext-dest-id 16:kvm-hc-map-gpa-range 17:kvm-migration-control \
         24:kvmclock-stable",
    ),
    (
        Cpuid(0x8000_0001, 0, Ecx),
        "0:lahf-lm 1:cmp-legacy 2:svm 3:extapic 4:cr8-legacy 5:abm 6:sse4a 7:misalignsse 8:3dnowprefetch 9:osvw \
         10:ibs 11:xop 12:skinit 13:wdt 15:lwp 16:fma4 17:tce 19:nodeid-msr 21:tbm 22:topoext 23:perfctr-core \
         24:perfctr-nb 26:bpext 27:ptsc 28:perfctr-llc 29:mwaitx",
    ),
    (
        Cpuid(0x8000_0001, 0, Edx),
        "11:syscall 19:mp 20:nx 22:mmxext 25:fxsr-opt 26:pdpe1gb 27:rdtscp 29:lm 30:3dnowext 31:3dnow",
    ),
    (Cpuid(0x8000_0007, 0, Edx), "8:invariant-tsc"),
    (
        Cpuid(0x8000_0008, 0, Ebx),
        "0:clzero 1:irperf 2:xsaveerptr 3:invlpgb 4:rdpru 9:wbnoinvd 12:ibpb 13:int-wbinvd 14:ibrs 15:amd-stibp \
         16:ibrs-always-on 17:stibp-always-on 18:ibrs-preferred 19:ibrs-same-mode 23:amd-ppin 24:amd-ssbd \
         25:virt-ssbd 26:amd-ssb-no 27:cppc 28:amd-psfd 29:btc-no 30:ibpb-ret 31:brs",
    ),
    (
        Cpuid(0x8000_0021, 0, Eax),
        "0:no-nested-data-bp 1:fsgs-non-serializing 2:lfence-always-serializing 5:verw-clear 6:null-sel-clr-base \
         7:upper-address-ignore 8:autoibrs 9:no-smm-ctl-msr 10:amd-fsrs 11:amd-fsrc 13:prefetch-ctl-msr \
         17:cpuid-user-dis 18:epsf 20:amd-prefetchi 24:eraps 27:sbpb 28:ibpb-brtype 29:srso-no \
         30:srso-user-kernel-no 31:srso-bp-spec-reduce",
    ),
    (Cpuid(0x8000_0021, 0, Ecx), "1:tsa-sq-no 2:tsa-l1-no"),
    (Cpuid(0x8000_0022, 0, Eax), "0:perfmon-v2 1:amd-lbr-v2 2:amd-lbr-pmc-freeze"),
    (
        Msr(super::super::template::ARCH_CAPABILITIES, 0),
        "0:rdcl-no 1:ibrs-all 2:rsba 3:skip-l1dfl-vmentry 4:ssb-no 5:mds-no 6:if-pschange-mc-no 7:tsx-ctrl \
         8:taa-no 9:mcu-control 10:misc-package-ctls 11:energy-filtering 12:doitm 13:sbdr-ssdp-no 14:fbsdp-no \
         15:psdp-no 17:fb-clear 18:fb-clear-ctrl 19:rrsba 20:bhi-no 21:xapic-disable-status \
         23:overclocking-status 24:pbrsb-no 25:gds-ctrl 26:gds-no 27:rfds-no 28:rfds-clear",
    ),
    (Msr(super::super::template::ARCH_CAPABILITIES, 32), "30:its-no"),
];
