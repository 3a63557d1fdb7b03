//! Virtio devices: what Linux guests know without a chipset around it (virtio 1.2).
//!
//! ```text
//! guest ── registers ──> mmio (transport: negotiation, status, interrupts) ── kick ──> rng, block, net, console
//!   └───── rings in RAM ──────────> queue (chains to requests) <────────────────────────────────┘
//! ```
//!
//! The transport does what all devices have in common, a device only its requests. A request is served inside the exit
//! of the vCPU that called for it; what comes from outside is delivered by a thread of the device, and only while the
//! transport is open, which it is while the machine runs. So once all vCPUs are parked and the transports closed nothing
//! is half-way, and all there is to save are the transport's registers and positions in the rings ([`state`]). Requests
//! that the driver has not called for yet, and buffers that were not filled, are in guest memory and move with it.

mod block;
pub mod console;
pub mod mmio;
pub mod net;
pub mod queue;
mod rng;
pub mod state;
#[cfg(test)]
mod tests;

use std::borrow::Cow;

use virtio_bindings::bindings::{virtio_config, virtio_ring};

use crate::state::{Kind, Section, SectionWriter, StateError};
use queue::{Broken, Requests};

pub use block::{Block, DiskError, DiskImage, KIND as BLOCK_KIND};
pub use console::{KIND as CONSOLE_KIND, VirtioConsole};
pub use mmio::{BYTES as MMIO_BYTES, MmioTransport};
pub use net::{KIND as NET_KIND, Nic, Tap, TapError};
pub use rng::{KIND as RNG_KIND, Rng};

/// What every device offers: to be one of virtio 1, and tables of descriptors outside the ring. Not event indices:
/// requests are served at once, so that there is nothing to hold back.
const COMMON_FEATURES: u64 = VERSION_1 | 1 << virtio_ring::VIRTIO_RING_F_INDIRECT_DESC;
/// Without this bit a driver is of before virtio 1, which nothing here is.
const VERSION_1: u64 = 1 << virtio_config::VIRTIO_F_VERSION_1;

/// Where a virtio device is. The guest's ACPI tables name it: nothing else tells the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MmioSlot {
    /// Guest-physical address of its registers, below 4 GiB.
    pub address: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// Its interrupt line, edge-triggered, active high.
    pub gsi: u32,
}

/// One kind of device: what is its own, behind the transport.
pub trait VirtioDevice: Send {
    /// Its number in the specification (section 5).
    fn id(&self) -> u32;

    /// Its own feature bits.
    fn features(&self) -> u64;

    /// How many descriptors each of its queues can have: powers of two.
    fn queue_sizes(&self) -> &'static [u16];

    /// Its configuration space.
    fn config(&self) -> Cow<'_, [u8]>;

    /// Another number each time the configuration space has changed.
    fn config_generation(&self) -> u32 {
        0
    }

    /// The driver is ready and has taken these features. Comes before any [`kick`](Self::kick), also after a restore.
    fn activate(&mut self, features: u64);

    /// The driver calls for a queue: serves what is in it.
    ///
    /// # Errors
    /// When what is in it are not requests.
    fn kick(&mut self, queue: usize, requests: &mut Requests<'_>) -> Result<(), Broken>;

    /// For devices that are fed from outside as well: the machine runs, or the driver is ready now, so what could not be
    /// delivered before may be tried again. Whoever feeds the device is woken; nothing is done here.
    fn wake(&mut self) {}

    /// The driver is gone, or broken: nothing is served until one is ready again.
    fn deactivate(&mut self) {}

    /// The guest has come to another place, and runs. Whether the configuration has changed by that.
    fn moved(&mut self) -> bool {
        false
    }

    /// Its section in the saved state.
    fn section(&self) -> &'static Kind;

    /// Writes what makes it this device and no other, with tags from [`state::FIRST_OWN_TAG`].
    fn write_identity(&self, section: &mut SectionWriter<'_>);

    /// Refuses the state of another device by name.
    ///
    /// # Errors
    /// What differs.
    fn check_identity(&self, section: &Section<'_>) -> Result<(), StateError>;
}
