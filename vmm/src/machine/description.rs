//! What another host must know of a machine before it can take its guest, and what it may lack.

use serde::{Deserialize, Serialize};

use super::supply::HostSupply;
use super::virtio::{self, DiskDescription, NicDescription};
use crate::config::{BootConfig, MemorySize, OnReset, Vcpus};
use crate::devices::virtio::{BLOCK_KIND, CONSOLE_KIND, NET_KIND, RNG_KIND};
use crate::devices::{POWER_KIND, SERIAL_KIND};
use crate::kvm::ioctl;
use crate::memory::layout::Layout;
use crate::state::{self, Kind};
use crate::vcpu::{self, CpuChoice, Template, realtime_ns};

/// A machine's shape: all that is fixed when it is built. Serialises to the JSON that `docs/state.md` describes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineDescription {
    /// Version of the saved state's frame.
    pub state_version: u32,
    /// Number of vCPUs.
    pub vcpus: u32,
    /// Bytes of RAM. The address map follows from it.
    pub memory: u64,
    /// The CPU: members `cpuid` and `feature_msrs`.
    #[serde(flatten)]
    pub cpu: Template,
    /// The MSRs saved, in order.
    pub msrs: Vec<u32>,
    /// The guest's TSC frequency.
    pub tsc_khz: u32,
    /// Whether the TSC's offset is saved.
    pub tsc_offset: bool,
    /// The host's TSC at [`host_realtime_ns`](Self::host_realtime_ns).
    pub host_tsc: u64,
    /// `CLOCK_REALTIME` when this description was given out.
    pub host_realtime_ns: u64,
    /// Size of the extended FPU state.
    pub xsave_bytes: u32,
    /// Devices with state.
    pub devices: Vec<DeviceDescription>,
    /// Disks, in the order in which the guest finds them.
    #[serde(default)]
    pub disks: Vec<DiskDescription>,
    /// Network interfaces, in the order in which the guest finds them.
    #[serde(default)]
    pub nics: Vec<NicDescription>,
    /// What the guest boots from when it resets. Without it, it cannot.
    #[serde(default)]
    pub boot: Option<BootConfig>,
}

/// A device with a section in the saved state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceDescription {
    /// The section's name.
    pub name: String,
    /// The section's version.
    pub version: u16,
}

impl DeviceDescription {
    fn of(kind: &Kind) -> Self {
        Self { name: kind.name.into(), version: kind.version }
    }
}

/// The devices there can be.
const DEVICES: [Kind; 6] = [SERIAL_KIND, POWER_KIND, RNG_KIND, BLOCK_KIND, NET_KIND, CONSOLE_KIND];

/// Two TSC frequencies nearer than this are one: measuring them has such an error, and clocks are corrected by more
/// (Linux's own limit for a guest that migrates, as used by other VMMs).
const TSC_TOLERANCE_PPM: u64 = 250;

/// How exactly two hosts' wall clocks are supposed to agree.
const CLOCK_TOLERANCE_MS: u64 = 50;

/// Whether a TSC at `here` kHz passes for one at `wanted`.
pub(super) fn fits(here: u32, wanted: u32) -> bool {
    u64::from(here.abs_diff(wanted)) * 1_000_000 <= u64::from(wanted) * TSC_TOLERANCE_PPM
}

impl MachineDescription {
    pub(super) fn new(
        memory: u64,
        vcpus: u32,
        cpu: Template,
        msrs: Vec<u32>,
        tsc_khz: u32,
        tsc_offset: bool,
        xsave_bytes: u32,
    ) -> Self {
        let devices = [SERIAL_KIND, POWER_KIND].iter().map(DeviceDescription::of).collect();
        let state_version = state::VERSION;
        let (host_tsc, host_realtime_ns) = (0, 0);
        Self {
            state_version,
            vcpus,
            memory,
            cpu,
            msrs,
            tsc_khz,
            tsc_offset,
            host_tsc,
            host_realtime_ns,
            xsave_bytes,
            devices,
            disks: Vec::new(),
            nics: Vec::new(),
            boot: None,
        }
    }

    /// With what it boots from.
    pub(super) fn with_boot(self, boot: Option<BootConfig>) -> Self {
        Self { boot, ..self }
    }

    /// Whether the guest boots again when it resets.
    #[must_use]
    pub fn reboots(&self) -> bool {
        self.boot.as_ref().is_some_and(|boot| boot.on_reset == OnReset::Reboot)
    }

    /// With these devices, too: `alone` are of kinds of which there is one.
    pub(super) fn with_virtio(
        mut self,
        alone: impl Iterator<Item = Kind>,
        disks: Vec<DiskDescription>,
        nics: Vec<NicDescription>,
    ) -> Self {
        self.devices.extend(alone.map(|kind| DeviceDescription::of(&kind)));
        self.devices.extend((!disks.is_empty()).then(|| DeviceDescription::of(&BLOCK_KIND)));
        self.devices.extend((!nics.is_empty()).then(|| DeviceDescription::of(&NET_KIND)));
        Self { disks, nics, ..self }
    }

    /// Whether there is such a device.
    pub(super) fn has(&self, device: &str) -> bool {
        self.devices.iter().any(|known| known.name == device)
    }

    /// With the host's clocks as they are now.
    pub(super) fn at_this_moment(self) -> Self {
        Self { host_tsc: ioctl::host_tsc(), host_realtime_ns: realtime_ns(), ..self }
    }

    /// CRC-32 of the CPUID template.
    #[must_use]
    pub fn cpuid_crc(&self) -> u32 {
        let mut crc = crc32fast::Hasher::new();
        self.cpu.cpuid.iter().for_each(|entry| crc.update(&entry.to_bytes()));
        crc.finalize()
    }

    /// Every reason why a guest of this description cannot run on a host that gives machines this, where guests may have the
    /// CPU `most` at most. None: it can.
    #[must_use]
    pub fn unsupported(&self, here: &HostSupply, most: &CpuChoice) -> Vec<String> {
        let mut reasons = self.impossible_shape(here);
        reasons.extend(self.unknown_state());
        reasons.extend(virtio::lacking(self));
        reasons.extend(self.unfit_cpu(here, most));
        reasons.extend(self.lacking(here));
        reasons
    }

    fn impossible_shape(&self, here: &HostSupply) -> Vec<String> {
        let mut reasons = Vec::new();
        reasons.extend(Vcpus::new(self.vcpus).err().map(|error| error.to_string()));
        reasons.extend(MemorySize::from_bytes(self.memory).err().map(|error| error.to_string()));
        let most = here.capabilities().max_vcpus;
        if self.vcpus as usize > most {
            reasons.push(format!("the guest has {} vCPUs, KVM here runs at most {most}", self.vcpus));
        }
        reasons
    }

    fn unknown_state(&self) -> Vec<String> {
        let mut reasons = Vec::new();
        if self.state_version != state::VERSION {
            let (there, here) = (self.state_version, state::VERSION);
            reasons.push(format!("the guest's state is of version {there}, this program reads {here}"));
        }
        for device in &self.devices {
            let known = DEVICES.iter().any(|kind| device.name == kind.name && device.version <= kind.version);
            if !known {
                let DeviceDescription { name, version } = device;
                reasons.push(format!(
                    "the guest has a device \"{}\" of version {version}, unknown here",
                    name.escape_debug()
                ));
            }
        }
        reasons
    }

    /// What the guest was given and this host does not have, or keeps from guests, or cannot keep from them.
    fn unfit_cpu(&self, here: &HostSupply, most: &CpuChoice) -> Vec<String> {
        let vcpus = self.vcpus.clamp(1, Vcpus::MAX);
        let offer = here.cpu(vcpus);
        let mut reasons = vcpu::missing_features(&self.cpu, &offer);
        match Layout::for_bytes(self.memory).map(|layout| most.cpu(&offer, vcpus, layout.end())) {
            Ok(Ok(allowed)) => reasons.extend(self.not_allowed(&offer, &allowed)),
            Ok(Err(error)) => reasons.push(format!("vmm receive --cpu {most}: {error}")),
            // Said by the shape.
            Err(_) => {}
        }
        let shown = here.shown_to_all.iter().filter(|feature| !self.cpu.has(**feature));
        let shown =
            shown.map(|feature| format!("KVM here shows every guest {feature}, which the guest lacks"));
        reasons.extend(shown);
        reasons
    }

    /// What this host has and guests may not have.
    fn not_allowed(&self, offer: &Template, allowed: &Template) -> Vec<String> {
        let kept = vcpu::lacking(&self.cpu, allowed).into_iter();
        let kept = kept.filter(|feature| self.cpu.has(*feature) && offer.has(*feature));
        let kept = kept.map(|feature| format!("guests here may not have {feature} (vmm receive --cpu)"));
        // What this host does not have either is said already.
        let more = |size: fn(&Template) -> Option<u32>| {
            let [there, here, most] = [&self.cpu, offer, allowed].map(|cpu| size(cpu).unwrap_or(0));
            (there > most && there <= here).then_some((there, most))
        };
        let wide = more(Template::physical_bits).map(|(there, most)| {
            format!("guests here may have physical addresses of {most} bits, not {there} (vmm receive --cpu)")
        });
        let counters = more(Template::performance_counters).map(|(there, most)| {
            format!("guests here may have {most} performance counters, not {there} (vmm receive --cpu)")
        });
        kept.chain(wide).chain(counters).collect()
    }

    fn lacking(&self, here: &HostSupply) -> Vec<String> {
        let mut reasons = Vec::new();
        let absent = self.msrs.iter().filter(|index| !here.msrs.contains(index));
        reasons.extend(absent.map(|index| format!("KVM here cannot restore MSR {index:#x}")));
        if !fits(here.tsc_khz, self.tsc_khz) && !here.capabilities().tsc_scaling {
            let (there, here) = (self.tsc_khz, here.tsc_khz);
            reasons.push(format!(
                "the guest's TSC runs at {there} kHz, this host's at {here} kHz and cannot be scaled"
            ));
        }
        reasons.extend(self.tsc_goes_back(here));
        reasons
    }

    /// Without offsets the guest reads the host's TSC: it must not be behind the one it has read so far.
    fn tsc_goes_back(&self, here: &HostSupply) -> Option<String> {
        if self.tsc_offset && !here.tsc_offset {
            return Some("KVM here cannot set TSC offsets, which the guest's TSC needs to go on".into());
        }
        let (tsc, realtime_ns) = (ioctl::host_tsc(), realtime_ns());
        let passed_ms = realtime_ns.saturating_sub(self.host_realtime_ns) / 1_000_000;
        let khz = u64::from(self.tsc_khz.max(1));
        let reached = self.host_tsc.saturating_add(passed_ms.saturating_mul(khz));
        let behind_ms = reached.saturating_sub(tsc) / khz;
        let back = !self.tsc_offset && !here.tsc_offset && behind_ms > CLOCK_TOLERANCE_MS;
        back.then(|| {
            format!("the guest's TSC would go back by {behind_ms} ms here: KVM cannot set TSC offsets")
        })
    }
}
