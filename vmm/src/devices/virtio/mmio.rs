//! The transport: a page of registers in front of any virtio device (virtio 1.2, section 4.2.2).
//!
//! The driver may write anything at any time: what its status does not allow is ignored, and a queue that cannot be
//! served makes the device ask for a reset. Registers are 32 bits wide; the configuration space is read at any width.

mod registers;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use virtio_bindings::bindings::virtio_config::*;
use virtio_bindings::bindings::virtio_mmio::*;

use super::VirtioDevice;
use super::queue::{Broken, Requests};
use super::state::{self, TransportImage};
use crate::devices::{Device, End};
use crate::memory::ram::GuestRam;
use crate::state::{Kind, Section, SectionWriter, StateError};

pub(super) use registers::{INTERRUPT_BITS, STATUS_BITS};
use registers::{Inner, Reasons, Surroundings, serve};

/// Bytes of its registers and configuration space.
pub const BYTES: u64 = 0x1000;

/// A device at its addresses.
pub struct MmioTransport {
    /// vCPUs come at the same time; held while one's requests are served.
    inner: Mutex<Inner>,
    /// The machine is to stand still: read between two requests, while the lock is held.
    hurry: AtomicBool,
    ram: Arc<GuestRam>,
    interrupt: Arc<dyn Fn() + Send + Sync>,
}

impl MmioTransport {
    /// A device after reset. `interrupt` pulses its line, which is edge-triggered.
    #[must_use]
    pub fn new(
        device: Box<dyn VirtioDevice>,
        ram: Arc<GuestRam>,
        interrupt: Arc<dyn Fn() + Send + Sync>,
    ) -> Arc<Self> {
        Arc::new(Self {
            inner: Mutex::new(Inner::new(device)),
            hurry: AtomicBool::new(false),
            ram,
            interrupt,
        })
    }

    /// The machine runs: what comes from outside may be delivered. Whether requests were left over when it was to stand
    /// still: they must be [served](Self::serve_left_over), as the driver does not call for them again.
    #[must_use]
    pub fn open(&self) -> bool {
        self.hurry.store(false, Ordering::Relaxed);
        let mut inner = self.inner();
        inner.open = true;
        inner.device.wake();
        inner.registers.left_over != 0
    }

    /// The machine is to stand still soon: the request or delivery under way is the last one.
    pub fn hurry(&self) {
        self.hurry.store(true, Ordering::Relaxed);
    }

    /// Serves the requests that were left over.
    pub fn serve_left_over(&self) {
        let mut inner = self.inner();
        let queues = std::mem::take(&mut inner.registers.left_over);
        for queue in (0..u32::BITS).filter(|queue| queues & 1 << queue != 0) {
            let reasons = inner.kick(queue as usize, &self.surroundings());
            self.raise(&mut inner, reasons);
        }
    }

    /// The machine stands still: when this returns, nothing is being delivered, and nothing will be.
    pub fn close(&self) {
        self.inner().open = false;
    }

    /// The guest has come to another place, and runs: its driver is told, where it wants to know. Whether it does run.
    pub fn moved(&self) -> bool {
        let mut inner = self.inner();
        let runs = self.delivers(&inner);
        if runs && inner.device.moved() && inner.has(VIRTIO_CONFIG_S_DRIVER_OK) {
            self.raise(&mut inner, VIRTIO_MMIO_INT_CONFIG);
        }
        runs
    }

    fn delivers(&self, inner: &Inner) -> bool {
        inner.open && !self.hurry.load(Ordering::Relaxed)
    }

    /// For whoever feeds the device from outside: `deliver` fills requests of this queue, if it can be now.
    pub fn feed<T>(
        &self,
        queue: usize,
        deliver: impl FnOnce(&mut Requests<'_>) -> Result<T, Broken>,
    ) -> Fed<T> {
        let mut inner = self.inner();
        if !self.delivers(&inner) {
            return Fed::Closed;
        }
        let serves = inner.serves();
        let Some(queue) = inner.queues.get_mut(queue).filter(|queue| serves && queue.is_ready()) else {
            return Fed::NoDriver;
        };
        // Where that is cut short, what was not delivered is still its owner's.
        let (finished, fed) = serve(queue, &self.surroundings(), deliver);
        let broken = if fed.is_err() { inner.ask_for_reset() } else { 0 };
        self.raise(&mut inner, finished | broken);
        fed.ok().flatten().map_or(Fed::NoDriver, Fed::Done)
    }

    fn surroundings(&self) -> Surroundings<'_> {
        Surroundings { ram: &self.ram, hurry: &self.hurry }
    }

    /// Under the lock: a machine that stands still raises nothing.
    fn raise(&self, inner: &mut Inner, reasons: Reasons) {
        inner.registers.interrupt |= reasons;
        if reasons != 0 {
            (self.interrupt)();
        }
    }

    /// Its section in the saved state.
    #[must_use]
    pub fn kind(&self) -> &'static Kind {
        self.inner().device.section()
    }

    /// Writes its section's fields. No vCPU runs.
    pub fn save(&self, section: &mut SectionWriter<'_>) {
        let inner = self.inner();
        state::write(section, &inner.registers, &inner.queues);
        inner.device.write_identity(section);
    }

    /// Reads its section, and changes nothing.
    ///
    /// # Errors
    /// What is missing, cannot be, or belongs to another device.
    pub fn image(&self, section: &Section<'_>) -> Result<TransportImage, StateError> {
        let inner = self.inner();
        inner.device.check_identity(section)?;
        state::read(section, inner.device.as_ref(), &self.ram)
    }

    /// Puts a state in place, and raises the interrupt again if one is due: at worst the guest looks once in vain.
    pub fn restore(&self, image: TransportImage) {
        let mut inner = self.inner();
        inner.registers = image.registers;
        inner.queues = image.queues;
        if inner.has(VIRTIO_CONFIG_S_DRIVER_OK) {
            inner.activate();
        }
        let due = inner.registers.interrupt != 0;
        drop(inner);
        if due {
            (self.interrupt)();
        }
    }

    /// A device that has panicked may be half-way in a request: its driver waits for ever, the others go on.
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What became of a delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fed<T> {
    /// It was made.
    Done(T),
    /// No driver takes it.
    NoDriver,
    /// The machine stands still.
    Closed,
}

impl Device for MmioTransport {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let inner = self.inner();
        if let Some(at) = offset.checked_sub(VIRTIO_MMIO_CONFIG.into()) {
            let config = inner.device.config();
            let config = config.get(at as usize..).unwrap_or_default();
            data.iter_mut().zip(config).for_each(|(byte, value)| *byte = *value);
        } else if let Ok(data) = <&mut [u8; 4]>::try_from(data) {
            *data = inner.read(offset as u32).to_le_bytes();
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> Option<End> {
        let value = u32::from_le_bytes(data.try_into().ok()?);
        let mut inner = self.inner();
        let reasons = inner.write(offset as u32, value, &self.surroundings());
        self.raise(&mut inner, reasons);
        None
    }
}

impl std::fmt::Debug for MmioTransport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.kind().name)
    }
}
