//! Building a machine: KVM's parts in the order it wants them, then devices, then threads.

use std::os::fd::BorrowedFd;
use std::panic;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use kvm_bindings::{KVM_PIT_SPEAKER_DUMMY, kvm_pit_config};
use kvm_ioctls::{Cap, VcpuFd, VmFd};

use super::description::{MachineDescription, fits};
use super::virtio::{VirtioDevices, VirtioPlan};
use super::{Hooks, MachineError};
use crate::boot;
use crate::config::{BootConfig, MachineConfig, Vcpus as VcpuCount};
use crate::devices::virtio::{DiskError, MmioSlot};
use crate::devices::{
    Bus, Console, KEYBOARD_COMMAND, PM1_END, PM1_EVENTS, PowerManagement, RESET_CONTROL, ResetControl, SCI,
    SERIAL_GSI, SERIAL_PORT, SerialPort,
};
use crate::kvm::{KvmError, KvmHost, ioctl};
use crate::memory::layout::{KVM_IDENTITY_ADDRESS, KVM_TSS_ADDRESS, Layout};
use crate::memory::ram::GuestRam;
use crate::vcpu::{self, CpuError, Surroundings, Template, Vcpus};

/// What a machine's parts share. It outlives the threads.
pub struct Board {
    vm: Arc<VmFd>,
    ram: Arc<GuestRam>,
    hooks: Hooks,
    serial: Arc<SerialPort>,
    power: Arc<PowerManagement>,
    virtio: VirtioDevices,
    shape: MachineDescription,
}

impl Board {
    /// The VM, for its dirty log.
    #[must_use]
    pub fn vm(&self) -> &Arc<VmFd> {
        &self.vm
    }

    /// The guest's memory.
    #[must_use]
    pub fn ram(&self) -> &Arc<GuestRam> {
        &self.ram
    }

    /// The guest's console.
    #[must_use]
    pub fn console(&self) -> &Console {
        &self.hooks.console
    }

    /// Where its virtio devices are.
    #[must_use]
    pub fn virtio_slots(&self) -> Vec<MmioSlot> {
        self.virtio.slots()
    }

    /// Puts on stable storage what the guest has written to its disks by now, so that less is left for when they are
    /// handed over. Waits for it as long as `go_on` says so.
    ///
    /// # Errors
    /// The disk that hangs, or cannot be made to last.
    pub fn sync_disks(&self, go_on: &dyn Fn() -> bool) -> Result<(), DiskError> {
        self.virtio.sync_disks(go_on)
    }

    /// What comes from the network for a guest that runs elsewhere now, by interface: Ethernet frames. Waits for the first,
    /// not much longer than `wait`.
    pub fn take_frames(&self, wait: Duration, into: &mut Vec<(u32, Vec<u8>)>) {
        self.virtio.take_frames(wait, into);
    }

    /// Another host sends a frame after the guest, for its interface of this number.
    pub fn bring_frame(&self, nic: u32, frame: &[u8]) {
        self.virtio.bring_frame(nic, frame);
    }

    /// What another host must know before it can take the guest.
    #[must_use]
    pub fn description(&self) -> MachineDescription {
        self.shape.clone().at_this_moment()
    }

    pub(super) fn shape(&self) -> &MachineDescription {
        &self.shape
    }

    pub(super) fn serial(&self) -> &SerialPort {
        &self.serial
    }

    pub(super) fn power(&self) -> &PowerManagement {
        &self.power
    }

    pub(super) fn virtio(&self) -> &VirtioDevices {
        &self.virtio
    }

    pub(super) fn vm_fd(&self) -> BorrowedFd<'_> {
        ioctl::borrow(self.vm.as_ref())
    }
}

impl std::fmt::Debug for Board {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "machine of {} vCPUs, {} MiB", self.shape.vcpus, self.shape.memory >> 20)
    }
}

/// A machine whose vCPUs have no threads yet.
pub(super) struct Parts {
    vm: VmFd,
    ram: Arc<GuestRam>,
    vcpus: Vec<VcpuFd>,
    virtio: VirtioPlan,
    shape: MachineDescription,
}

impl Parts {
    /// For a guest that boots here, without its devices and what it boots: its CPU is what was chosen out of what this host
    /// offers.
    pub(super) fn empty(kvm: &KvmHost, config: &MachineConfig) -> Result<Self, MachineError> {
        let (count, memory) = (config.cpus.get(), config.memory.bytes());
        let end = Layout::for_bytes(memory)?.end();
        // Where the host is a virtual machine itself, to list CPUID takes KVM as long as to make a VM, and neither needs the other.
        thread::scope(|scope| {
            let listing = thread::Builder::new().name("cpuid".into());
            let listing = listing.spawn_scoped(scope, || vcpu::listed(kvm));
            let listing = listing.map_err(KvmError::refused("start a thread to list its CPUID"))?;
            let choose = |first: &VcpuFd| {
                let listed = listing.join().unwrap_or_else(|panic| panic::resume_unwind(panic))?;
                Ok(config.cpu.cpu(&vcpu::offer_by(listed, first, count)?, count, end)?)
            };
            Self::build(kvm, count, memory, choose, None)
        })
    }

    /// The same, with the devices and with what it boots.
    pub(super) fn for_boot(self, config: &MachineConfig) -> Result<Self, MachineError> {
        Ok(self.with_virtio(VirtioPlan::for_boot(config)?).with_boot(Some(config.boot())))
    }

    /// For a guest that comes from elsewhere: its CPU stays what it was.
    pub(super) fn for_arrival(kvm: &KvmHost, shape: &MachineDescription) -> Result<Self, MachineError> {
        Self::of_shape(kvm, shape, VirtioPlan::for_arrival(shape)?)
    }

    /// For a guest that boots again: all of its machine stays what it was.
    pub(super) fn of_shape(
        kvm: &KvmHost,
        shape: &MachineDescription,
        virtio: VirtioPlan,
    ) -> Result<Self, MachineError> {
        let cpu = |_: &VcpuFd| Ok(shape.cpu.clone());
        let parts = Self::build(kvm, shape.vcpus, shape.memory, cpu, Some(shape.tsc_khz))?;
        Ok(parts.with_virtio(virtio).with_boot(shape.boot.clone()))
    }

    fn build(
        kvm: &KvmHost,
        count: u32,
        memory: u64,
        cpu: impl FnOnce(&VcpuFd) -> Result<Template, MachineError>,
        tsc_khz: Option<u32>,
    ) -> Result<Self, MachineError> {
        VcpuCount::new(count)?;
        let most = kvm.capabilities().max_vcpus;
        if count as usize > most {
            return Err(MachineError::TooManyVcpus { wanted: count, most });
        }
        let ram = GuestRam::new(Layout::for_bytes(memory)?)?;
        let vm = create_vm(kvm, &ram)?;
        let first = kvm.create_vcpu(&vm, 0)?;
        let cpu = cpu(&first)?;
        let vcpus = create_vcpus(kvm, &vm, first, count, &cpu)?;
        if let Some(khz) = tsc_khz {
            vcpus.iter().try_for_each(|vcpu| set_tsc_khz(vcpu, khz))?;
        }
        let first = &vcpus[0];
        let msrs = vcpu::probe_msrs(kvm, ioctl::borrow(first), &cpu)?;
        let shape = MachineDescription::new(
            memory,
            count,
            cpu,
            msrs,
            first.get_tsc_khz().map_err(KvmError::refused("tell the TSC frequency"))?,
            ioctl::has_tsc_offset(ioctl::borrow(first)),
            xsave_bytes(&vm),
        );
        Ok(Self { vm, ram, vcpus, virtio: VirtioPlan::default(), shape })
    }

    fn with_virtio(self, virtio: VirtioPlan) -> Self {
        Self { shape: virtio.describe(self.shape), virtio, ..self }
    }

    fn with_boot(self, boot: Option<BootConfig>) -> Self {
        Self { shape: self.shape.with_boot(boot), ..self }
    }

    /// Puts the kernel in place, at the vCPU at which it begins. The others wait for it to start them (INIT, SIPI).
    pub(super) fn load(&self) -> Result<(), MachineError> {
        let boot = self.shape.boot.as_ref().ok_or(MachineError::NothingToBoot)?;
        let (cpus, tsc_khz) = (self.shape.vcpus, self.shape.tsc_khz);
        let entry = boot::load(&self.ram, boot, cpus, tsc_khz, &self.virtio.slots())?;
        Ok(entry.apply(&self.vcpus[0]).map_err(KvmError::refused("set the entry registers"))?)
    }

    pub(super) fn assemble(self, hooks: Hooks) -> Result<(Board, Vcpus), MachineError> {
        let Self { vm, ram, vcpus, virtio, shape } = self;
        let vm = Arc::new(vm);
        let serial = SerialPort::new(hooks.console.clone(), pulse(&vm, SERIAL_GSI));
        let power = Arc::new(PowerManagement::new(level(&vm, SCI.into())));
        let virtio = virtio
            .build(&ram, &hooks.console, |gsi| pulse(&vm, gsi))
            .map_err(KvmError::refused("start a device's thread"))?;
        let mut bus = bus(&serial, &power);
        virtio.add_to(&mut bus);
        let surroundings = Surroundings {
            bus: Arc::new(bus),
            on_end: Arc::clone(&hooks.on_end),
            xsave_bytes: shape.xsave_bytes as usize,
            components: vcpu::user_components(&shape.cpu),
            msrs: shape.msrs.as_slice().into(),
            tsc_khz: shape.tsc_khz,
            tsc_offset: shape.tsc_offset,
            ram: Arc::clone(&ram),
        };
        let vcpus = Vcpus::start(vcpus, &surroundings).map_err(KvmError::refused("start a vCPU's thread"))?;
        Ok((Board { vm, ram, hooks, serial, power, virtio, shape }, vcpus))
    }
}

/// A VM with memory, interrupt controllers and a timer. Memory comes first: to give it to a VM that has had chips added, KVM
/// waits until it has put their former list away, which takes milliseconds (`kvm_io_bus_register_dev`, Linux 6.18).
fn create_vm(kvm: &KvmHost, ram: &GuestRam) -> Result<VmFd, MachineError> {
    let vm = kvm.create_vm()?;
    ram.register(&vm)?;
    vm.set_identity_map_address(KVM_IDENTITY_ADDRESS).map_err(KvmError::refused("place the identity map"))?;
    vm.set_tss_address(KVM_TSS_ADDRESS as usize).map_err(KvmError::refused("place the task state"))?;
    vm.create_irq_chip().map_err(KvmError::refused("make interrupt controllers"))?;
    // The speaker's port belongs to the timer: with it, kernels that calibrate clocks by it find it.
    let pit = kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..Default::default() };
    vm.create_pit2(pit).map_err(KvmError::refused("make a timer"))?;
    Ok(vm)
}

/// All vCPUs with this CPU: the first, which is there, and the others.
fn create_vcpus(
    kvm: &KvmHost,
    vm: &VmFd,
    first: VcpuFd,
    count: u32,
    cpu: &Template,
) -> Result<Vec<VcpuFd>, MachineError> {
    let shown = vcpu::more_than(cpu, &first, count)?;
    shown.is_empty().then_some(()).ok_or(CpuError::Shows(shown))?;
    let mut vcpus = vec![first];
    for number in 1..count {
        let vcpu = kvm.create_vcpu(vm, number)?;
        vcpu::give(&vcpu, cpu, number)?;
        vcpus.push(vcpu);
    }
    Ok(vcpus)
}

/// Lets the TSC run as fast as the guest knows it, if it does not.
fn set_tsc_khz(vcpu: &VcpuFd, khz: u32) -> Result<(), KvmError> {
    if vcpu.get_tsc_khz().is_ok_and(|here| fits(here, khz)) {
        return Ok(());
    }
    ioctl::set_tsc_khz(ioctl::borrow(vcpu), khz)
        .map_err(KvmError::refused("run the TSC at the guest's frequency"))
}

/// The size of the extended FPU state of this VM's vCPUs.
fn xsave_bytes(vm: &VmFd) -> u32 {
    // At least the 4096 bytes of the original struct, which KVM always copies.
    vm.check_extension_int(Cap::Xsave2).max(4096) as u32
}

fn pulse(vm: &Arc<VmFd>, line: u32) -> Arc<dyn Fn() + Send + Sync> {
    let vm = Arc::clone(vm);
    Arc::new(move || {
        // With an interrupt controller in the kernel and a line it has, this cannot fail.
        let _ = vm.set_irq_line(line, true);
        let _ = vm.set_irq_line(line, false);
    })
}

fn level(vm: &Arc<VmFd>, line: u32) -> Arc<dyn Fn(bool) + Send + Sync> {
    let vm = Arc::clone(vm);
    Arc::new(move |high| {
        // As above.
        let _ = vm.set_irq_line(line, high);
    })
}

fn bus(serial: &Arc<SerialPort>, power: &Arc<PowerManagement>) -> Bus {
    let mut bus = Bus::default();
    bus.add_ports(SERIAL_PORT..SERIAL_PORT + 8, Arc::clone(serial) as _);
    bus.add_ports(KEYBOARD_COMMAND..KEYBOARD_COMMAND + 1, Arc::new(ResetControl::Keyboard));
    bus.add_ports(RESET_CONTROL..RESET_CONTROL + 1, Arc::new(ResetControl::Chipset));
    bus.add_ports(PM1_EVENTS..PM1_END, Arc::clone(power) as _);
    bus
}
