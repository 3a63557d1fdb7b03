//! The virtio devices of a machine: which there are, where they are, and their part of the saved state.
//!
//! A guest of its own kernel has a source of randomness, its disks, its network interfaces and perhaps a console, each in
//! the next slot. The demo guest has none. Where the slots are follows from the list alone, so that a machine built from a description has
//! them at the same places.

mod disks;
mod nics;

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use super::MachineError;
use super::description::MachineDescription;
use crate::config::{Kernel, MachineConfig, NicConfig};
use crate::devices::virtio::state::TransportImage;
use crate::devices::virtio::{
    BLOCK_KIND, CONSOLE_KIND, DiskError, DiskImage, MMIO_BYTES, MmioSlot, MmioTransport, NET_KIND, Nic,
    RNG_KIND, Rng, VirtioConsole,
};
use crate::devices::{Bus, Console};
use crate::memory::layout::VIRTIO_START;
use crate::memory::ram::GuestRam;
use crate::sandbox::{self, ThreadKind};
use crate::state::{Kind, StateError, Stream, StreamWriter};

pub use disks::DiskDescription;
use disks::DiskPlan;
pub use nics::NicDescription;
use nics::NicPlan;

/// The first slot's interrupt line. The IOAPIC's lines from 16 on have no ISA device behind them.
const FIRST_GSI: u32 = 16;
/// As many as the IOAPIC has lines from there: it has 24.
const SLOTS: usize = 8;
/// One slot is the source of randomness.
const MAX_DEVICES: usize = SLOTS - 1;

fn slot(number: usize) -> MmioSlot {
    let address = VIRTIO_START + number as u64 * MMIO_BYTES;
    MmioSlot { address, bytes: MMIO_BYTES, gsi: FIRST_GSI + number as u32 }
}

/// Why that many devices are too many.
fn too_many(disks: usize, nics: usize, consoles: usize) -> Option<String> {
    let together = disks.saturating_add(nics).saturating_add(consoles);
    (together > MAX_DEVICES).then(|| {
        format!(
            "{disks} disks, {nics} network interfaces and {consoles} virtio consoles are more than a guest can have: \
             at most {MAX_DEVICES} together"
        )
    })
}

/// What two network interfaces cannot share.
fn twice(nics: &[NicConfig]) -> Option<String> {
    let pair = |(at, nic): (usize, &NicConfig)| {
        let before = &nics[..at];
        if before.iter().any(|other| other.tap.name == nic.tap.name) {
            return Some(format!("tap {} is given twice: give each network interface its own", nic.tap.name));
        }
        let mac = nic.mac.filter(|mac| before.iter().any(|other| other.mac == Some(*mac)))?;
        Some(format!("MAC address {mac} is given twice: give each network interface its own"))
    };
    nics.iter().enumerate().find_map(pair)
}

/// Everything that this host lacks of what these devices need.
pub(super) fn lacking(shape: &MachineDescription) -> Vec<String> {
    let consoles = usize::from(shape.has(CONSOLE_KIND.name));
    match too_many(shape.disks.len(), shape.nics.len(), consoles) {
        Some(why) => vec![why],
        None => {
            let disks = shape.disks.iter().filter_map(DiskDescription::unsupported);
            disks.chain(shape.nics.iter().filter_map(NicDescription::unsupported)).collect()
        }
    }
}

/// What is to be built. Images are open, taps connected.
#[derive(Debug, Default)]
pub(super) struct VirtioPlan {
    rng: bool,
    disks: Vec<DiskPlan>,
    nics: Vec<NicPlan>,
    console: bool,
}

impl VirtioPlan {
    /// For a guest that boots here. Takes its disks.
    pub(super) fn for_boot(config: &MachineConfig) -> Result<Self, MachineError> {
        let consoles = usize::from(config.virtio_console);
        if let Some(why) = twice(&config.nics) {
            return Err(MachineError::Devices(why));
        }
        if let Some(why) = too_many(config.disks.len(), config.nics.len(), consoles) {
            return Err(MachineError::Devices(why));
        }
        let disks = config.disks.iter().enumerate().map(|(place, disk)| DiskPlan::for_boot(place, disk));
        let nics = config.nics.iter().enumerate();
        let nics = nics.map(|(place, nic)| NicPlan::for_boot(config.uuid, place, nic));
        Ok(Self {
            rng: config.kernel != Kernel::Demo,
            disks: disks.collect::<Result<_, _>>()?,
            nics: nics.collect::<Result<_, _>>()?,
            console: config.virtio_console,
        })
    }

    /// For a guest that comes from elsewhere, which still has its disks.
    pub(super) fn for_arrival(shape: &MachineDescription) -> Result<Self, MachineError> {
        let wrong_disk = || shape.disks.iter().find_map(DiskDescription::unsupported);
        let consoles = usize::from(shape.has(CONSOLE_KIND.name));
        if let Some(why) = too_many(shape.disks.len(), shape.nics.len(), consoles).or_else(wrong_disk) {
            return Err(MachineError::Devices(why));
        }
        let disks = shape.disks.iter().map(DiskPlan::for_arrival);
        let nics = shape.nics.iter().map(NicPlan::for_arrival);
        Ok(Self {
            rng: shape.has(RNG_KIND.name),
            disks: disks.collect::<Result<_, _>>()?,
            nics: nics.collect::<Result<_, _>>()?,
            console: shape.has(CONSOLE_KIND.name),
        })
    }

    /// For a guest that boots again, with the images and taps that it has.
    pub(super) fn for_reboot(shape: &MachineDescription, devices: &VirtioDevices) -> Self {
        let disks = shape.disks.iter().zip(&devices.images);
        let nics = shape.nics.iter().zip(&devices.nics);
        Self {
            rng: shape.has(RNG_KIND.name),
            disks: disks.map(|(disk, image)| DiskPlan::for_reboot(disk, image)).collect(),
            nics: nics.map(|(shape, nic)| NicPlan::for_reboot(shape, nic.tap())).collect(),
            console: shape.has(CONSOLE_KIND.name),
        }
    }

    /// What the other host must know of them.
    pub(super) fn describe(&self, shape: MachineDescription) -> MachineDescription {
        let disks = self.disks.iter().map(DiskPlan::describe).collect();
        let nics = self.nics.iter().map(|nic| nic.description.clone()).collect();
        let alone = [(self.rng, RNG_KIND), (self.console, CONSOLE_KIND)];
        shape.with_virtio(alone.into_iter().filter_map(|(there, kind)| there.then_some(kind)), disks, nics)
    }

    /// Where the devices will be.
    pub(super) fn slots(&self) -> Vec<MmioSlot> {
        let alone = usize::from(self.rng) + usize::from(self.console);
        (0..alone + self.disks.len() + self.nics.len()).map(slot).collect()
    }

    /// Connects the devices. `pulse` gives the interrupt of a line.
    pub(super) fn build(
        self,
        ram: &Arc<GuestRam>,
        console: &Console,
        pulse: impl Fn(u32) -> Arc<dyn Fn() + Send + Sync>,
    ) -> io::Result<VirtioDevices> {
        let mut devices = VirtioDevices::default();
        devices.images = self.disks.iter().map(|disk| Arc::clone(disk.image())).collect();
        if self.rng {
            let interrupt = pulse(devices.next_slot().gsi);
            devices.connect(0, MmioTransport::new(Box::new(Rng), Arc::clone(ram), interrupt));
        }
        for (place, disk) in (0..).zip(self.disks) {
            let interrupt = pulse(devices.next_slot().gsi);
            devices.connect(place, MmioTransport::new(Box::new(disk.device()), Arc::clone(ram), interrupt));
        }
        for (place, NicPlan { tap, description, arriving }) in (0..).zip(self.nics) {
            let interrupt = pulse(devices.next_slot().gsi);
            let nic = Nic::connect(tap, description.mac, arriving, Arc::clone(ram), interrupt)?;
            devices.connect(place, Arc::clone(nic.transport()));
            devices.nics.push(nic);
        }
        if self.console {
            let interrupt = pulse(devices.next_slot().gsi);
            let console = VirtioConsole::connect(console.clone(), Arc::clone(ram), interrupt)?;
            devices.connect(0, Arc::clone(console.transport()));
            devices.console = Some(console);
        }
        Ok(devices)
    }
}

/// A device in its slot.
struct Connected {
    slot: MmioSlot,
    /// Of its section in the saved state.
    instance: u32,
    transport: Arc<MmioTransport>,
}

/// The devices of a machine.
#[derive(Default)]
pub(super) struct VirtioDevices {
    connected: Vec<Connected>,
    images: Vec<Arc<DiskImage>>,
    nics: Vec<Nic>,
    console: Option<VirtioConsole>,
    /// Threads that serve what a pause has left over. Started where the guest runs on, joined at its end.
    serving: Mutex<Vec<JoinHandle<()>>>,
}

impl VirtioDevices {
    fn next_slot(&self) -> MmioSlot {
        slot(self.connected.len())
    }

    fn connect(&mut self, instance: u32, transport: Arc<MmioTransport>) {
        self.connected.push(Connected { slot: self.next_slot(), instance, transport });
    }

    pub(super) fn slots(&self) -> Vec<MmioSlot> {
        self.connected.iter().map(|device| device.slot).collect()
    }

    pub(super) fn add_to(&self, bus: &mut Bus) {
        for Connected { slot, transport, .. } in &self.connected {
            bus.add_memory(slot.address..slot.address + slot.bytes, Arc::clone(transport) as _);
        }
    }

    /// The machine runs: what comes from outside may be delivered.
    pub(super) fn open(&self) {
        self.nics.iter().for_each(Nic::listen);
        for device in &self.connected {
            if device.transport.open() {
                self.serve_left_over(&device.transport);
            }
        }
    }

    /// No device begins another request, or delivers anything. Waits for nothing.
    pub(super) fn hurry(&self) {
        self.connected.iter().for_each(|device| device.transport.hurry());
    }

    /// The same, and waits for the request and the delivery that are under way.
    pub(super) fn close(&self) {
        self.hurry();
        self.connected.iter().for_each(|device| device.transport.close());
    }

    /// On a thread of its own: a disk may take its time, and the guest is to run meanwhile.
    fn serve_left_over(&self, transport: &Arc<MmioTransport>) {
        let serving = Arc::clone(transport);
        let thread = std::thread::Builder::new().name("left-over".into());
        let mut threads = self.serving.lock().unwrap_or_else(PoisonError::into_inner);
        threads.retain(|thread| !thread.is_finished());
        let body = move || {
            sandbox::confine(ThreadKind::Device);
            serving.serve_left_over();
        };
        match thread.spawn(body) {
            Ok(thread) => threads.push(thread),
            Err(_) => transport.serve_left_over(),
        }
    }

    /// The guest has come here, and runs: its network is told.
    pub(super) fn announce(&self) {
        self.nics.iter().for_each(Nic::announce);
    }

    /// What comes on the network for a guest that runs elsewhere now, by interface. Waits for it, a part of `wait` each.
    pub(super) fn take_frames(&self, wait: Duration, into: &mut Vec<(u32, Vec<u8>)>) {
        let share = wait / self.nics.len().max(1) as u32;
        for (number, nic) in (0..).zip(&self.nics) {
            let mut frames = Vec::new();
            nic.take_frames(share, &mut frames);
            into.extend(frames.into_iter().map(|frame| (number, frame)));
        }
    }

    /// Another host sends a frame after the guest. For an interface that there is not, it is lost.
    pub(super) fn bring_frame(&self, nic: u32, frame: &[u8]) {
        if let Some(nic) = self.nics.get(nic as usize) {
            nic.bring(frame);
        }
    }

    /// All disks or none.
    pub(super) fn take_disks(&self) -> Result<(), DiskError> {
        let taken = self.images.iter().try_for_each(|image| image.take());
        if taken.is_err() {
            self.release_disks();
        }
        taken
    }

    /// Puts on stable storage what was written by now, as long as `go_on` says so.
    pub(super) fn sync_disks(&self, go_on: &dyn Fn() -> bool) -> Result<(), DiskError> {
        self.images.iter().try_for_each(|image| image.sync_while(go_on))
    }

    /// All disks, as far as what was written can be made to last.
    pub(super) fn hand_over_disks(&self) -> Result<(), DiskError> {
        self.images.iter().try_for_each(|image| image.hand_over())
    }

    fn release_disks(&self) {
        for image in &self.images {
            // A lock that the host does not let go of ends with the open image: another machine waits that long.
            let _ = image.release();
        }
    }

    pub(super) fn save(&self, stream: &mut StreamWriter) {
        for Connected { instance, transport, .. } in &self.connected {
            stream.section(transport.kind(), *instance, |section| transport.save(section));
        }
    }

    /// Reads all devices' sections, and changes nothing.
    pub(super) fn images(&self, stream: &Stream<'_>) -> Result<Vec<TransportImage>, StateError> {
        no_more_than(stream, &BLOCK_KIND, "number of disks", self.images.len())?;
        no_more_than(stream, &NET_KIND, "number of network interfaces", self.nics.len())?;
        let consoles = usize::from(self.console.is_some());
        no_more_than(stream, &CONSOLE_KIND, "number of virtio consoles", consoles)?;
        let image = |device: &Connected| {
            device.transport.image(stream.section(device.transport.kind(), device.instance)?)
        };
        self.connected.iter().map(image).collect()
    }

    pub(super) fn restore(&self, images: Vec<TransportImage>) {
        self.connected.iter().zip(images).for_each(|(device, image)| device.transport.restore(image));
    }
}

impl Drop for VirtioDevices {
    fn drop(&mut self) {
        self.hurry();
        let threads = std::mem::take(&mut *self.serving.lock().unwrap_or_else(PoisonError::into_inner));
        for thread in threads {
            let _ = thread.join();
        }
    }
}

/// Refuses the state of a machine with more devices of a kind.
fn no_more_than(
    stream: &Stream<'_>,
    kind: &Kind,
    what: &'static str,
    wanted: usize,
) -> Result<(), StateError> {
    let wanted = wanted as u32;
    match stream.section(kind, wanted) {
        Ok(_) => Err(StateError::OtherMachine { what, found: u64::from(wanted) + 1, wanted: wanted.into() }),
        Err(_) => Ok(()),
    }
}
