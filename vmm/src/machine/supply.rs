//! What a host gives its machines.

use crate::kvm::{Capabilities, KvmError, KvmHost, ioctl};
use crate::vcpu::{self, Feature, Template};

/// What machines on this host have, or can have. It stays the same as long as KVM is open, so it is asked once, before a guest
/// comes: asking takes a machine that is thrown away, and that milliseconds.
#[derive(Debug)]
pub struct HostSupply {
    kvm: KvmHost,
    /// The largest CPU of a guest with one vCPU.
    cpu: Template,
    /// Features that no guest can be without, those among them that none can be without anywhere.
    pub(super) shown_to_all: Vec<Feature>,
    pub(super) msrs: Vec<u32>,
    pub(super) tsc_khz: u32,
    pub(super) tsc_offset: bool,
}

impl HostSupply {
    /// Asks KVM, and a machine of one vCPU.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn ask(kvm: KvmHost) -> Result<Self, KvmError> {
        let (_vm, vcpu) = vcpu::throwaway(&kvm)?;
        let cpu = vcpu::offer_by(vcpu::listed(&kvm)?, &vcpu, 1)?;
        Ok(Self {
            shown_to_all: vcpu::shown_to_all(&cpu, &vcpu)?,
            cpu,
            msrs: vcpu::supported_msrs(&kvm)?,
            tsc_khz: vcpu.get_tsc_khz().map_err(KvmError::refused("tell the TSC frequency"))?,
            tsc_offset: ioctl::has_tsc_offset(ioctl::borrow(&vcpu)),
            kvm,
        })
    }

    /// What KVM can do.
    pub(super) fn capabilities(&self) -> &Capabilities {
        self.kvm.capabilities()
    }

    /// The largest CPU of a guest with that many vCPUs.
    #[must_use]
    pub fn cpu(&self, vcpus: u32) -> Template {
        let mut cpu = self.cpu.clone();
        cpu.settle(vcpus);
        cpu
    }
}
