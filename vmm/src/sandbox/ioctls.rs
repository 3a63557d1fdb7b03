//! The ioctls that threads may make, by number: `linux/kvm.h`, `linux/userfaultfd.h`, `linux/fs.h`, `linux/if_tun.h`, `linux/sockios.h`,
//! `asm-generic/ioctls.h`. A number says which of a device's calls it is, and how long its argument.

/// A running vCPU: the hottest first.
pub(super) const VCPU: &[u32] = &[
    0xae80,      // KVM_RUN
    0x4008_ae61, // KVM_IRQ_LINE: a device on the bus raises its interrupt
    0xaead,      // KVM_KVMCLOCK_CTRL
    0x4090_ae82, // KVM_SET_REGS
    0x4138_ae84, // KVM_SET_SREGS
    0x4004_ae99, // KVM_SET_MP_STATE
    0x5000_aea5, // KVM_SET_XSAVE
    0x4188_aea7, // KVM_SET_XCRS
    0x4080_aea2, // KVM_SET_DEBUGREGS
    0x4400_ae8f, // KVM_SET_LAPIC
    0x4040_aea0, // KVM_SET_VCPU_EVENTS
    0x4008_ae89, // KVM_SET_MSRS
    0x4018_aee1, // KVM_SET_DEVICE_ATTR: the TSC's offset
    0x4018_aee3, // KVM_HAS_DEVICE_ATTR
    0xaea2,      // KVM_SET_TSC_KHZ
    0xc040_aed5, // KVM_PRE_FAULT_MEMORY
];

/// A parked vCPU whose state is read.
pub(super) const VCPU_STATE: &[u32] = &[
    0x8090_ae81, // KVM_GET_REGS
    0x8138_ae83, // KVM_GET_SREGS
    0x8004_ae98, // KVM_GET_MP_STATE
    0x9000_aecf, // KVM_GET_XSAVE2
    0x8188_aea6, // KVM_GET_XCRS
    0x8080_aea1, // KVM_GET_DEBUGREGS
    0x8400_ae8e, // KVM_GET_LAPIC
    0x8040_ae9f, // KVM_GET_VCPU_EVENTS
    0xc008_ae88, // KVM_GET_MSRS
    0x4018_aee2, // KVM_GET_DEVICE_ATTR: the TSC's offset
    0xaea3,      // KVM_GET_TSC_KHZ
];

/// A device that raises its interrupt.
pub(super) const DEVICE: &[u32] = &[
    0x4008_ae61, // KVM_IRQ_LINE
];

/// A machine whose guest runs, or is saved.
pub(super) const MACHINE: &[u32] = &[
    0xc018_aec0, // KVM_CLEAR_DIRTY_LOG
    0x4010_ae42, // KVM_GET_DIRTY_LOG
    0x4008_ae61, // KVM_IRQ_LINE
    0x4020_ae46, // KVM_SET_USER_MEMORY_REGION: dirty logging on and off
    0xc208_ae62, // KVM_GET_IRQCHIP
    0x8208_ae63, // KVM_SET_IRQCHIP
    0x8070_ae9f, // KVM_GET_PIT2
    0x4070_aea0, // KVM_SET_PIT2
    0x8030_ae7c, // KVM_GET_CLOCK
    0x4030_ae7b, // KVM_SET_CLOCK
    0xae03,      // KVM_CHECK_EXTENSION
    0xaea3,      // KVM_GET_TSC_KHZ
    0xc060_6610, // PAGEMAP_SCAN: which memory exists
];

/// A machine that is built.
pub(super) const BUILD: &[u32] = &[
    0xae00,      // KVM_GET_API_VERSION
    0xae01,      // KVM_CREATE_VM
    0xae04,      // KVM_GET_VCPU_MMAP_SIZE
    0xc008_ae05, // KVM_GET_SUPPORTED_CPUID
    0xc004_ae02, // KVM_GET_MSR_INDEX_LIST
    0xc004_ae0a, // KVM_GET_MSR_FEATURE_INDEX_LIST
    0x4068_aea3, // KVM_ENABLE_CAP
    0xae41,      // KVM_CREATE_VCPU
    0xae60,      // KVM_CREATE_IRQCHIP
    0x4040_ae77, // KVM_CREATE_PIT2
    0xae47,      // KVM_SET_TSS_ADDR
    0x4008_ae48, // KVM_SET_IDENTITY_MAP_ADDR
    0x4008_ae90, // KVM_SET_CPUID2
    0xc008_ae91, // KVM_GET_CPUID2
    0xaece,      // KVM_GET_STATS_FD
];

/// Faults that are caught, and pages that are placed.
pub(super) const FAULTS: &[u32] = &[
    0xc028_aa03, // UFFDIO_COPY
    0xc028_aa05, // UFFDIO_MOVE
    0xc020_aa04, // UFFDIO_ZEROPAGE
    0x8010_aa02, // UFFDIO_WAKE
    0xaa00,      // USERFAULTFD_IOC_NEW
    0xc018_aa3f, // UFFDIO_API
    0xc020_aa00, // UFFDIO_REGISTER
    0x8010_aa01, // UFFDIO_UNREGISTER
];

/// A tap interface that is opened.
pub(super) const TAP: &[u32] = &[
    0x4004_54ca, // TUNSETIFF
    0x4004_54d8, // TUNSETVNETHDRSZ
    0x4004_54d0, // TUNSETOFFLOAD
    0x4004_54e2, // TUNSETCARRIER
    0x8913,      // SIOCGIFFLAGS
    0x8914,      // SIOCSIFFLAGS
    0x8933,      // SIOCGIFINDEX
    0x89a2,      // SIOCBRADDIF
];

/// A descriptor that does not block; how much there is to be read (glibc asks that of answers to a host's name).
pub(super) const ANY_FILE: &[u32] = &[
    0x5421, // FIONBIO
    0x5451, // FIOCLEX
    0x541b, // FIONREAD
];

/// The terminal. Nothing that puts characters into its input (TIOCSTI, TIOCLINUX) is among it.
pub(super) const TERMINAL: &[u32] = &[
    0x5401,      // TCGETS
    0x5402,      // TCSETS
    0x5403,      // TCSETSW
    0x5404,      // TCSETSF
    0x5413,      // TIOCGWINSZ
    0x802c_542a, // TCGETS2
    0x402c_542b, // TCSETS2
    0x402c_542c, // TCSETSW2
    0x402c_542d, // TCSETSF2
];
