//! The host's KVM: opened once, asked once what it can do.
//!
//! Everything that must be there is checked here, so that a host on which no guest can run is told so in one line
//! a lack, each with the way out, before anything is built.

pub mod ioctl;

use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use kvm_bindings::{
    KVM_CAP_ENFORCE_PV_FEATURE_CPUID, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, KVM_DIRTY_LOG_INITIALLY_SET,
    KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE, kvm_enable_cap,
};
use kvm_ioctls::{Cap, Kvm, VcpuFd, VmFd};

/// Where Linux offers KVM.
pub const DEVICE: &str = "/dev/kvm";

/// The only version of KVM's interface there has been since Linux 2.6.22.
const API_VERSION: i32 = 12;

/// Why no guest can run on this host.
#[derive(Debug, thiserror::Error)]
pub enum KvmError {
    /// The device node is not there.
    #[error("{0} does not exist: load kvm_intel or kvm_amd, or use a host with (nested) virtualization")]
    NoDevice(PathBuf),
    /// The device node may not be opened.
    #[error("no permission to open {0} for reading and writing: join the group that owns it (usually kvm)")]
    NoPermission(PathBuf),
    /// Opening failed otherwise.
    #[error("cannot open {path}: {error}")]
    Open {
        /// What was opened.
        path: PathBuf,
        /// How it failed.
        error: io::Error,
    },
    /// It is not KVM, or none of today's.
    #[error("KVM speaks version {0} of its interface, {API_VERSION} is needed: use Linux 5.17 or later")]
    Version(i32),
    /// Abilities without which no guest can be run and moved.
    #[error("KVM on this host lacks {}: use Linux 5.17 or later on x86-64", .0.join(", "))]
    Lacks(Vec<&'static str>),
    /// More than can be saved in one call.
    #[error(
        "KVM has {found} MSRs of a guest with this CPU to save, at most {most} can be: choose a smaller --cpu"
    )]
    TooManyMsrs {
        /// How many there are.
        found: usize,
        /// How many there may be.
        most: usize,
    },
    /// The kernel refused something.
    #[error("KVM cannot {what}: {error}")]
    Refused {
        /// What was asked of it.
        what: &'static str,
        /// How it failed.
        error: io::Error,
    },
}

impl KvmError {
    /// For `map_err`: the kernel refused `what`.
    pub(crate) fn refused<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> Self {
        move |error| Self::Refused { what, error: error.into() }
    }
}

/// What this host's KVM can do, where hosts differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capabilities {
    /// Most vCPUs of one guest.
    pub max_vcpus: usize,
    /// The guest's TSC can be made to count at another frequency than the host's.
    pub tsc_scaling: bool,
    /// The LAPIC timer has TSC-deadline mode.
    pub tsc_deadline: bool,
    /// A guest can be kept from the paravirtual features that its CPUID does not show.
    pub enforce_pv: bool,
}

/// KVM, open and able to run guests that can be moved.
#[derive(Debug)]
pub struct KvmHost {
    kvm: Kvm,
    capabilities: Capabilities,
}

/// What must be there, by the name in `linux/kvm.h` (without `KVM_CAP_`).
const NEEDED: [(u32, &str); 14] = [
    (kvm_bindings::KVM_CAP_IRQCHIP, "IRQCHIP"),
    (kvm_bindings::KVM_CAP_PIT2, "PIT2"),
    (kvm_bindings::KVM_CAP_PIT_STATE2, "PIT_STATE2"),
    (kvm_bindings::KVM_CAP_USER_MEMORY, "USER_MEMORY"),
    (kvm_bindings::KVM_CAP_SET_TSS_ADDR, "SET_TSS_ADDR"),
    (kvm_bindings::KVM_CAP_SET_IDENTITY_MAP_ADDR, "SET_IDENTITY_MAP_ADDR"),
    (kvm_bindings::KVM_CAP_MP_STATE, "MP_STATE"),
    (kvm_bindings::KVM_CAP_VCPU_EVENTS, "VCPU_EVENTS"),
    (kvm_bindings::KVM_CAP_XSAVE, "XSAVE"),
    (kvm_bindings::KVM_CAP_XSAVE2, "XSAVE2"),
    (kvm_bindings::KVM_CAP_XCRS, "XCRS"),
    (kvm_bindings::KVM_CAP_DEBUGREGS, "DEBUGREGS"),
    (kvm_bindings::KVM_CAP_ADJUST_CLOCK, "ADJUST_CLOCK"),
    (kvm_bindings::KVM_CAP_IMMEDIATE_EXIT, "IMMEDIATE_EXIT"),
];

impl KvmHost {
    /// Opens [`DEVICE`].
    ///
    /// # Errors
    /// One line that says what is missing and what to do about it.
    pub fn open() -> Result<Self, KvmError> {
        Self::open_at(Path::new(DEVICE))
    }

    /// Opens a device node of another name.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_at(path: &Path) -> Result<Self, KvmError> {
        let name = CString::new(path.as_os_str().as_bytes()).map_err(|_| KvmError::NoDevice(path.into()))?;
        let kvm = Kvm::new_with_path(name).map_err(|e| cannot_open(path, e.into()))?;
        let version = kvm.get_api_version();
        if version != API_VERSION {
            return Err(KvmError::Version(version));
        }
        let lacks = lacks(&kvm);
        if !lacks.is_empty() {
            return Err(KvmError::Lacks(lacks));
        }
        let capabilities = Capabilities {
            max_vcpus: kvm.get_max_vcpus(),
            tsc_scaling: kvm.check_extension(Cap::TscControl),
            tsc_deadline: kvm.check_extension(Cap::TscDeadlineTimer),
            enforce_pv: kvm.check_extension_raw(u64::from(KVM_CAP_ENFORCE_PV_FEATURE_CPUID)) > 0,
        };
        Ok(Self { kvm, capabilities })
    }

    /// What it can do.
    #[must_use]
    pub fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    /// For what concerns the host as a whole (supported CPUID, MSR list).
    #[must_use]
    pub fn system(&self) -> &Kvm {
        &self.kvm
    }

    /// Makes an empty VM whose dirty log write-protects only on `KVM_CLEAR_DIRTY_LOG`: reading the log costs
    /// microseconds, and starting it does not walk all of memory.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn create_vm(&self) -> Result<VmFd, KvmError> {
        let vm = self.kvm.create_vm().map_err(KvmError::refused("create a VM"))?;
        let flags = KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE | KVM_DIRTY_LOG_INITIALLY_SET;
        let cap = kvm_enable_cap {
            cap: KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2,
            args: [u64::from(flags), 0, 0, 0],
            ..Default::default()
        };
        vm.enable_cap(&cap).map_err(KvmError::refused("protect logged pages on demand"))?;
        Ok(vm)
    }

    /// Makes a vCPU. Of KVM's own features its guest can use those that its CPUID shows, and no others: what it used
    /// otherwise would have state that is not saved. Without the capability that is left to the guest.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn create_vcpu(&self, vm: &VmFd, number: u32) -> Result<VcpuFd, KvmError> {
        let vcpu = vm.create_vcpu(number.into()).map_err(KvmError::refused("make a vCPU"))?;
        if self.capabilities.enforce_pv {
            let cap = kvm_enable_cap {
                cap: KVM_CAP_ENFORCE_PV_FEATURE_CPUID,
                args: [1, 0, 0, 0],
                ..Default::default()
            };
            vcpu.enable_cap(&cap)
                .map_err(KvmError::refused("keep a guest from features it was not given"))?;
        }
        Ok(vcpu)
    }
}

fn cannot_open(path: &Path, error: io::Error) -> KvmError {
    let path = path.to_path_buf();
    match error.kind() {
        io::ErrorKind::NotFound => KvmError::NoDevice(path),
        io::ErrorKind::PermissionDenied => KvmError::NoPermission(path),
        // The node exists but no module serves it.
        _ if error.raw_os_error() == Some(libc::ENXIO) || error.raw_os_error() == Some(libc::ENODEV) => {
            KvmError::NoDevice(path)
        }
        _ => KvmError::Open { path, error },
    }
}

fn lacks(kvm: &Kvm) -> Vec<&'static str> {
    let mut lacks: Vec<&str> = NEEDED
        .iter()
        .filter(|(cap, _)| kvm.check_extension_raw(u64::from(*cap)) <= 0)
        .map(|(_, name)| *name)
        .collect();
    let manual = kvm.check_extension_raw(u64::from(KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2));
    let both = (KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE | KVM_DIRTY_LOG_INITIALLY_SET) as i32;
    if manual & both != both {
        lacks.push("MANUAL_DIRTY_LOG_PROTECT2");
    }
    lacks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_device_is_named_with_the_way_out() {
        let error = KvmHost::open_at(Path::new("/nonexistent/kvm")).unwrap_err().to_string();
        assert_eq!(
            error,
            "/nonexistent/kvm does not exist: load kvm_intel or kvm_amd, or use a host with (nested) virtualization"
        );
    }

    #[test]
    fn something_else_than_kvm_is_refused() {
        let error = KvmHost::open_at(Path::new("/dev/null")).unwrap_err();
        assert!(matches!(error, KvmError::Version(-1)), "{error}");
    }

    #[test]
    fn lacks_are_listed_in_one_line() {
        let error = KvmError::Lacks(vec!["IRQCHIP", "XSAVE2"]).to_string();
        assert_eq!(error, "KVM on this host lacks IRQCHIP, XSAVE2: use Linux 5.17 or later on x86-64");
    }
}
