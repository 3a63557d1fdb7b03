//! A virtio device in the saved state: the transport's registers and the queues' positions, `docs/state.md`.
//!
//! Reading checks everything, and builds the queues, before any of it is put in place.

use virtio_bindings::bindings::virtio_config::{VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FEATURES_OK};

use super::queue::{QueueState, VirtQueue};
use super::{COMMON_FEATURES, VERSION_1, VirtioDevice, mmio};
use crate::memory::ram::GuestRam;
use crate::state::{Section, SectionWriter, StateError};

/// The transport's fields in a device's section.
pub const TRANSPORT_TAGS: [u16; 6] = [1, 2, 3, 4, 5, 6];
/// Where a device's own fields begin.
pub const FIRST_OWN_TAG: u16 = 16;

const QUEUE_BYTES: usize = 32;

/// What the driver has told the transport, and what that has told the driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Registers {
    /// Device status.
    pub status: u32,
    /// Reasons for an interrupt that the driver has not acknowledged.
    pub interrupt: u32,
    /// The features that the driver takes.
    pub features: u64,
    /// Which word of the device's features is shown.
    pub device_features_select: u32,
    /// Which word of the driver's features is written.
    pub driver_features_select: u32,
    /// Which queue is set up.
    pub queue_select: u32,
    /// Queues, a bit each, with requests that the driver has called for and that were not served before the pause.
    pub left_over: u32,
}

/// A device's state, checked, ready to be put in place.
#[derive(Debug)]
pub struct TransportImage {
    pub(super) registers: Registers,
    pub(super) queues: Vec<VirtQueue>,
}

/// Writes the transport's fields.
pub(super) fn write(section: &mut SectionWriter<'_>, registers: &Registers, queues: &[VirtQueue]) {
    section.required(1, &registers.status.to_le_bytes());
    section.required(2, &registers.interrupt.to_le_bytes());
    section.required(3, &registers.features.to_le_bytes());
    let selected =
        [registers.device_features_select, registers.driver_features_select, registers.queue_select];
    section.required(4, &selected.map(u32::to_le_bytes).concat());
    let queues: Vec<[u8; QUEUE_BYTES]> = queues.iter().map(|queue| queue_bytes(&queue.state())).collect();
    section.required(5, &queues.concat());
    if registers.left_over != 0 {
        section.required(6, &registers.left_over.to_le_bytes());
    }
}

fn queue_bytes(queue: &QueueState) -> [u8; QUEUE_BYTES] {
    let mut bytes = [0; QUEUE_BYTES];
    let small = [u16::from(queue.ready), queue.size, queue.next_avail, queue.next_used];
    bytes[..8].copy_from_slice(&small.map(u16::to_le_bytes).concat());
    let addresses = [queue.descriptors, queue.avail, queue.used];
    bytes[8..].copy_from_slice(&addresses.map(u64::to_le_bytes).concat());
    bytes
}

/// Reads them for this device.
///
/// # Errors
/// What is missing or cannot be.
pub(super) fn read(
    section: &Section<'_>,
    device: &dyn VirtioDevice,
    ram: &GuestRam,
) -> Result<TransportImage, StateError> {
    let selected = section.exactly(4, "selectors", 12)?;
    let registers = Registers {
        status: section.number::<4>(1, "status")? as u32,
        interrupt: section.number::<4>(2, "interrupt status")? as u32,
        features: section.number::<8>(3, "features")?,
        device_features_select: word(selected, 0),
        driver_features_select: word(selected, 4),
        queue_select: word(selected, 8),
        left_over: left_over(section, device.queue_sizes().len())?,
    };
    check_registers(&registers, device.features() | COMMON_FEATURES)
        .map_err(|what| section.impossible(what))?;
    let sizes = device.queue_sizes();
    let bytes = section.exactly(5, "queues", sizes.len() * QUEUE_BYTES)?;
    let negotiated = registers.status & VIRTIO_CONFIG_S_FEATURES_OK != 0;
    let queues = sizes.iter().zip(bytes.chunks_exact(QUEUE_BYTES)).map(|(max_size, bytes)| {
        let state = queue_of(bytes).filter(|state| negotiated || !state.ready);
        let state = state.ok_or_else(|| section.impossible("queue"))?;
        VirtQueue::from_state(*max_size, &state, ram).map_err(|_| section.impossible("queue"))
    });
    Ok(TransportImage { registers, queues: queues.collect::<Result<_, _>>()? })
}

/// Which queues have requests left over; none where nothing says so.
fn left_over(section: &Section<'_>, queues: usize) -> Result<u32, StateError> {
    if section.optional(6).is_none() {
        return Ok(0);
    }
    let bits = section.number::<4>(6, "left-over requests")?;
    if bits >> queues == 0 {
        Ok(bits as u32)
    } else {
        Err(section.impossible("queue with left-over requests"))
    }
}

/// What the status machine cannot have led to.
fn check_registers(registers: &Registers, offered: u64) -> Result<(), &'static str> {
    let has = |bit: u32| registers.status & bit != 0;
    let features = registers.features;
    let taken_wrongly = features & !offered != 0 || features & VERSION_1 == 0;
    if registers.status & !mmio::STATUS_BITS != 0
        || has(VIRTIO_CONFIG_S_DRIVER_OK) && !has(VIRTIO_CONFIG_S_FEATURES_OK)
    {
        return Err("device status");
    }
    if has(VIRTIO_CONFIG_S_FEATURES_OK) && taken_wrongly {
        return Err("set of features: this host's device does not offer it");
    }
    if registers.interrupt & !mmio::INTERRUPT_BITS != 0 {
        return Err("interrupt status");
    }
    Ok(())
}

fn queue_of(bytes: &[u8]) -> Option<QueueState> {
    let small = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
    let address = |at: usize| u64::from(word(bytes, at)) | u64::from(word(bytes, at + 4)) << 32;
    let ready = match small(0) {
        0 => false,
        1 => true,
        _ => return None,
    };
    Some(QueueState {
        ready,
        size: small(2),
        next_avail: small(4),
        next_used: small(6),
        descriptors: address(8),
        avail: address(16),
        used: address(24),
    })
}

/// The little-endian word at `at`, which the caller knows to be inside.
fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}
