//! What this host's KVM gives a guest: asked of KVM, and of a vCPU that is thrown away.
//!
//! What KVM lists as supported is not always what a guest sees: `kvm_pvm` lets guests see most of the host's CPUID,
//! listed or not, asked for or not. So the answer is what a vCPU shows (`KVM_GET_CPUID2`) once it has been given
//! what is listed; and a guest's CPU is what its vCPU shows, or it is refused.

use kvm_bindings::KVM_MAX_CPUID_ENTRIES;
use kvm_ioctls::{VcpuFd, VmFd};

use super::cpuid::{CpuidEntry, cpuid_for};
use super::features::{Feature, lacking};
use super::level::is_essential;
use super::msrs;
use super::template::{ARCH_CAPABILITIES, FeatureMsr, Template};
use crate::kvm::{KvmError, KvmHost, ioctl};

/// Not offered, nor what needs them: what a guest does with them has state that is not saved, the shadow stack's pointer
/// among it (no MSR has it), or is the host's own (what PDCM stands for: the format of its branch records and of PEBS's,
/// which DS is for).
const NOT_SAVED: [&str; 7] = ["vmx", "svm", "sgx", "sgx-lc", "cet-ss", "pdcm", "ds"];

/// All that a guest with `vcpus` vCPUs can be given here.
///
/// # Errors
/// When the kernel refuses.
pub fn offer(kvm: &KvmHost, vcpus: u32) -> Result<Template, KvmError> {
    offer_by(listed(kvm)?, &throwaway(kvm)?.1, vcpus)
}

/// The same, given what is listed, and asked of a vCPU that is there and has not run. It has that CPU from here on.
///
/// # Errors
/// When the kernel refuses.
pub(crate) fn offer_by(mut listed: Template, vcpu: &VcpuFd, vcpus: u32) -> Result<Template, KvmError> {
    listed.settle(vcpus);
    // `kvm_pvm` on AMD lists feature MSRs that no vCPU of its takes. What else is refused is refused again below.
    if give(vcpu, &listed, 0).is_err() {
        listed.feature_msrs.clear();
        Feature::named("arch-capabilities").into_iter().for_each(|feature| listed.put(feature, false));
        listed.settle(vcpus);
        give(vcpu, &listed, 0)?;
    }
    shown_by(vcpu, &listed, vcpus)
}

/// Of the features that `cpu` does not have, those that a vCPU shows all the same. It has `cpu` from here on.
///
/// # Errors
/// When the kernel refuses.
pub(crate) fn more_than(cpu: &Template, vcpu: &VcpuFd, vcpus: u32) -> Result<Vec<Feature>, KvmError> {
    give(vcpu, cpu, 0)?;
    let shown = shown_by(vcpu, cpu, vcpus)?;
    Ok(lacking(&shown, cpu).into_iter().filter(|feature| !feature.is_flaw()).collect())
}

/// The features of `offer` that no guest can be without here, besides those that none can be without anywhere.
///
/// # Errors
/// When the kernel refuses.
pub fn always_shown(kvm: &KvmHost, offer: &Template) -> Result<Vec<Feature>, KvmError> {
    let shown = shown_to_all(offer, &throwaway(kvm)?.1)?;
    Ok(shown.into_iter().filter(|feature| !is_essential(*feature)).collect())
}

/// The features of `offer` that no guest can be without here: what a vCPU shows that is given none. It has that CPU from here
/// on.
///
/// # Errors
/// When the kernel refuses.
pub(crate) fn shown_to_all(offer: &Template, vcpu: &VcpuFd) -> Result<Vec<Feature>, KvmError> {
    let mut bare = Template { feature_msrs: Vec::new(), ..offer.clone() };
    Feature::all_of(offer).for_each(|feature| bare.put(feature, false));
    more_than(&bare, vcpu, 1)
}

/// What KVM lists, and what it makes without listing it. That is no offer yet.
///
/// # Errors
/// When the kernel refuses.
pub(crate) fn listed(kvm: &KvmHost) -> Result<Template, KvmError> {
    let listed = kvm
        .system()
        .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
        .map_err(KvmError::refused("list its CPUID"))?;
    let entries = listed.as_slice().iter().map(CpuidEntry::from);
    // Leaf 0x1f says the same as 0xb with more levels; a guest that finds none uses 0xb.
    let cpuid = entries.filter(|e| !matches!(e.function, 0xb | 0x1f) || e.index < 2).collect();
    let flaws = msrs::read_one(ioctl::borrow(kvm.system()), ARCH_CAPABILITIES);
    let feature_msrs =
        flaws.into_iter().map(|value| FeatureMsr { index: ARCH_CAPABILITIES, value }).collect();
    let mut cpu = Template { cpuid, feature_msrs };
    let deadline = kvm.capabilities().tsc_deadline.then_some("tsc-deadline");
    let made = ["hypervisor"].into_iter().chain(deadline);
    made.filter_map(Feature::named).for_each(|feature| cpu.put(feature, true));
    let not_saved = NOT_SAVED.into_iter().filter_map(Feature::named).flat_map(Feature::with_dependents);
    not_saved.for_each(|feature| cpu.put(feature, false));
    // AMX is listed also where its registers' state is not: to a process that has not asked for it.
    Feature::useless(&cpu).into_iter().for_each(|feature| cpu.put(feature, false));
    Ok(cpu)
}

/// A vCPU with its VM, which must outlive it.
///
/// # Errors
/// When the kernel refuses.
pub(crate) fn throwaway(kvm: &KvmHost) -> Result<(VmFd, VcpuFd), KvmError> {
    let vm = kvm.create_vm()?;
    vm.create_irq_chip().map_err(KvmError::refused("make interrupt controllers"))?;
    let vcpu = kvm.create_vcpu(&vm, 0)?;
    Ok((vm, vcpu))
}

/// What a vCPU shows that was given `cpu`.
fn shown_by(vcpu: &VcpuFd, cpu: &Template, vcpus: u32) -> Result<Template, KvmError> {
    let shown = vcpu.get_cpuid2(KVM_MAX_CPUID_ENTRIES).map_err(KvmError::refused("tell a vCPU's CPUID"))?;
    let cpuid = shown.as_slice().iter().map(CpuidEntry::from).collect();
    let mut shown = Template { cpuid, feature_msrs: cpu.feature_msrs.clone() };
    shown.settle(vcpus);
    Ok(shown)
}

/// Makes `cpu` the CPU of a vCPU that has not run.
///
/// # Errors
/// When the kernel refuses.
pub(crate) fn give(vcpu: &VcpuFd, cpu: &Template, number: u32) -> Result<(), KvmError> {
    vcpu.set_cpuid2(&cpuid_for(&cpu.cpuid, number)?).map_err(KvmError::refused("give a vCPU this CPUID"))?;
    let told = cpu.feature_msrs.iter().map(|msr| (msr.index, msr.value));
    msrs::write(ioctl::borrow(vcpu), told).map_err(KvmError::refused("give a vCPU these feature MSRs"))
}
