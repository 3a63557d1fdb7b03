//! The virtio devices of a machine: which there are, where they are, and their part of the saved state.
//!
//! A guest of its own kernel has a source of randomness and its disks, each in the next slot. The demo guest has none.
//! Where the slots are follows from the list alone, so that a machine built from a description has them at the same
//! places.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::MachineError;
use super::description::MachineDescription;
use crate::config::{DiskAccess, DiskConfig, DiskSerial, Kernel, MachineConfig};
use crate::devices::Bus;
use crate::devices::virtio::state::TransportImage;
use crate::devices::virtio::{
    BLOCK_KIND, Block, DiskError, DiskImage, MMIO_BYTES, MmioSlot, MmioTransport, RNG_KIND, Rng, VirtioDevice,
};
use crate::memory::layout::VIRTIO_START;
use crate::memory::ram::GuestRam;
use crate::state::{StateError, Stream, StreamWriter};

/// The first slot's interrupt line. The IOAPIC's lines from 16 on have no ISA device behind them.
const FIRST_GSI: u32 = 16;
/// As many as the IOAPIC has lines from there: it has 24.
const SLOTS: usize = 8;
/// One slot is the source of randomness.
const MAX_DISKS: usize = SLOTS - 1;

fn slot(number: usize) -> MmioSlot {
    let address = VIRTIO_START + number as u64 * MMIO_BYTES;
    MmioSlot { address, bytes: MMIO_BYTES, gsi: FIRST_GSI + number as u32 }
}

/// A disk, as the other host must have it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskDescription {
    /// Absolute path of its image.
    pub path: String,
    /// Its length.
    pub bytes: u64,
    /// What the guest may do with it.
    pub access: DiskAccess,
    /// What the guest knows it by.
    pub serial: DiskSerial,
}

impl DiskDescription {
    /// Why this host's image cannot be this disk.
    pub(super) fn unsupported(&self) -> Option<String> {
        match DiskImage::open(self.path.as_ref(), self.access) {
            Err(error) => Some(error.to_string()),
            Ok(image) if image.bytes() != self.bytes => {
                let (path, there, here) = (&self.path, self.bytes, image.bytes());
                Some(format!(
                    "disk {} has {here} bytes here, the guest's has {there}: give both hosts the same image",
                    path.escape_debug()
                ))
            }
            Ok(_) => None,
        }
    }
}

/// Why that many disks are too many.
pub(super) fn too_many_disks(disks: usize) -> Option<String> {
    (disks > MAX_DISKS).then(|| format!("{disks} disks are more than a guest can have: at most {MAX_DISKS}"))
}

/// What is to be built. Its images are open.
#[derive(Debug, Default)]
pub(super) struct VirtioPlan {
    rng: bool,
    disks: Vec<(Arc<DiskImage>, DiskSerial)>,
}

impl VirtioPlan {
    /// For a guest that boots here. Takes its disks.
    pub(super) fn for_boot(config: &MachineConfig) -> Result<Self, MachineError> {
        if let Some(why) = too_many_disks(config.disks.len()) {
            return Err(MachineError::Disks(why));
        }
        let open = |(place, disk): (usize, &DiskConfig)| {
            let image = DiskImage::open(&disk.path, disk.access)?;
            image.take()?;
            Ok((Arc::new(image), disk.serial.clone().unwrap_or_else(|| DiskSerial::for_place(place))))
        };
        let disks = config.disks.iter().enumerate().map(open).collect::<Result<_, DiskError>>()?;
        Ok(Self { rng: config.kernel != Kernel::Demo, disks })
    }

    /// For a guest that comes from elsewhere, which still has its disks.
    pub(super) fn for_arrival(shape: &MachineDescription) -> Result<Self, MachineError> {
        let reasons = too_many_disks(shape.disks.len()).into_iter();
        let why = reasons.chain(shape.disks.iter().filter_map(DiskDescription::unsupported)).next();
        if let Some(why) = why {
            return Err(MachineError::Disks(why));
        }
        let open = |disk: &DiskDescription| {
            let image = DiskImage::open(disk.path.as_ref(), disk.access)?;
            Ok((Arc::new(image), disk.serial.clone()))
        };
        let disks = shape.disks.iter().map(open).collect::<Result<_, DiskError>>()?;
        Ok(Self { rng: shape.has(RNG_KIND.name), disks })
    }

    pub(super) fn has_rng(&self) -> bool {
        self.rng
    }

    pub(super) fn describe_disks(&self) -> Vec<DiskDescription> {
        let describe = |(image, serial): &(Arc<DiskImage>, DiskSerial)| DiskDescription {
            path: image.path().display().to_string(),
            bytes: image.bytes(),
            access: image.access(),
            serial: serial.clone(),
        };
        self.disks.iter().map(describe).collect()
    }

    /// Where the devices will be.
    pub(super) fn slots(&self) -> Vec<MmioSlot> {
        (0..usize::from(self.rng) + self.disks.len()).map(slot).collect()
    }

    /// Connects the devices. `pulse` gives the interrupt of a line.
    pub(super) fn build(
        self,
        ram: &Arc<GuestRam>,
        pulse: impl Fn(u32) -> Arc<dyn Fn() + Send + Sync>,
    ) -> VirtioDevices {
        let slots = self.slots();
        let images = self.disks.iter().map(|(image, _)| Arc::clone(image)).collect();
        let disks = self.disks.into_iter().enumerate();
        let disks = disks.map(|(place, (image, serial))| {
            let device: Box<dyn VirtioDevice> = Box::new(Block::new(image, serial));
            (place as u32, device)
        });
        let rng = self.rng.then(|| (0, Box::new(Rng) as Box<dyn VirtioDevice>));
        let connected =
            slots.into_iter().zip(rng.into_iter().chain(disks)).map(|(slot, (instance, device))| {
                let transport = MmioTransport::new(device, Arc::clone(ram), pulse(slot.gsi));
                Connected { slot, instance, transport }
            });
        VirtioDevices { connected: connected.collect(), images }
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
pub(super) struct VirtioDevices {
    connected: Vec<Connected>,
    images: Vec<Arc<DiskImage>>,
}

impl VirtioDevices {
    pub(super) fn slots(&self) -> Vec<MmioSlot> {
        self.connected.iter().map(|device| device.slot).collect()
    }

    pub(super) fn add_to(&self, bus: &mut Bus) {
        for Connected { slot, transport, .. } in &self.connected {
            bus.add_memory(slot.address..slot.address + slot.bytes, Arc::clone(transport) as _);
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

    pub(super) fn release_disks(&self) {
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
        let disks = self.images.len() as u32;
        if stream.section(&BLOCK_KIND, disks).is_ok() {
            let (found, wanted) = (u64::from(disks) + 1, u64::from(disks));
            return Err(StateError::OtherMachine { what: "number of disks", found, wanted });
        }
        let image = |device: &Connected| {
            device.transport.image(stream.section(device.transport.kind(), device.instance)?)
        };
        self.connected.iter().map(image).collect()
    }

    pub(super) fn restore(&self, images: Vec<TransportImage>) {
        self.connected.iter().zip(images).for_each(|(device, image)| device.transport.restore(image));
    }
}
