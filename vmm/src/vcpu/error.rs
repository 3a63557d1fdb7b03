//! Why a vCPU did not do what it was to.

use std::io;

/// What can go wrong with a vCPU.
#[derive(Debug, thiserror::Error)]
pub enum VcpuError {
    /// The kernel refused something.
    #[error("vCPU {vcpu}: KVM cannot {what}: {error}")]
    Refused {
        /// Which.
        vcpu: u32,
        /// What was asked.
        what: &'static str,
        /// How it failed.
        error: io::Error,
    },
    /// An MSR cannot be read or set.
    #[error("vCPU {vcpu}: KVM cannot {what} MSR {index:#x}")]
    Msr {
        /// Which vCPU.
        vcpu: u32,
        /// Read or set.
        what: &'static str,
        /// Which MSR.
        index: u32,
    },
    /// It does not leave the guest, or its thread is gone.
    #[error("vCPU {vcpu} does not answer")]
    Silent {
        /// Which.
        vcpu: u32,
    },
}
