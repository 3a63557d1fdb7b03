//! The transport: a page of registers in front of any virtio device (virtio 1.2, section 4.2.2).
//!
//! The driver may write anything at any time: what its status does not allow is ignored, and a queue that cannot be
//! served makes the device ask for a reset. Registers are 32 bits wide; the configuration space is read at any width.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use virtio_bindings::bindings::virtio_config::*;
use virtio_bindings::bindings::virtio_mmio::*;

use super::queue::{Broken, Requests, VirtQueue};
use super::state::{self, Registers, TransportImage};
use super::{COMMON_FEATURES, VERSION_1, VirtioDevice};
use crate::devices::{Device, End};
use crate::memory::ram::GuestRam;
use crate::state::{Kind, Section, SectionWriter, StateError};

/// Bytes of its registers and configuration space.
pub const BYTES: u64 = 0x1000;

const MAGIC: u32 = u32::from_le_bytes(*b"virt");
/// Of the register layout: 1 is the one from before virtio 1.
const VERSION: u32 = 2;
/// "No vendor": drivers do not look at it.
const VENDOR: u32 = 0;

/// What a device's status can have.
pub(super) const STATUS_BITS: u32 = DRIVER_STATUS_BITS | VIRTIO_CONFIG_S_NEEDS_RESET;
const DRIVER_STATUS_BITS: u32 = VIRTIO_CONFIG_S_ACKNOWLEDGE
    | VIRTIO_CONFIG_S_DRIVER
    | VIRTIO_CONFIG_S_FEATURES_OK
    | VIRTIO_CONFIG_S_DRIVER_OK
    | VIRTIO_CONFIG_S_FAILED;
/// Why it can interrupt: a request was finished; its status or configuration has changed.
pub(super) const INTERRUPT_BITS: u32 = VIRTIO_MMIO_INT_VRING | VIRTIO_MMIO_INT_CONFIG;

/// A device at its addresses.
pub struct MmioTransport {
    /// vCPUs come at the same time; held while one's requests are served.
    inner: Mutex<Inner>,
    /// The machine is to stand still: read between two requests, while the lock is held.
    hurry: AtomicBool,
    ram: Arc<GuestRam>,
    interrupt: Arc<dyn Fn() + Send + Sync>,
}

struct Inner {
    /// What comes from outside is delivered only while the machine runs: what was saved stays what it was.
    open: bool,
    device: Box<dyn VirtioDevice>,
    registers: Registers,
    queues: Vec<VirtQueue>,
}

impl MmioTransport {
    /// A device after reset. `interrupt` pulses its line, which is edge-triggered.
    #[must_use]
    pub fn new(
        device: Box<dyn VirtioDevice>,
        ram: Arc<GuestRam>,
        interrupt: Arc<dyn Fn() + Send + Sync>,
    ) -> Arc<Self> {
        let queues = new_queues(device.as_ref());
        let inner = Inner { open: false, device, registers: Registers::default(), queues };
        Arc::new(Self { inner: Mutex::new(inner), hurry: AtomicBool::new(false), ram, interrupt })
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

    /// The machine is to stand still soon: the request under way is the last one.
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

    /// The guest has come to another place, and runs.
    pub fn moved(&self) {
        let mut inner = self.inner();
        if inner.device.moved() && inner.has(VIRTIO_CONFIG_S_DRIVER_OK) {
            self.raise(&mut inner, VIRTIO_MMIO_INT_CONFIG);
        }
    }

    /// For whoever feeds the device from outside: `deliver` fills requests of this queue, if it can be now.
    pub fn feed<T>(
        &self,
        queue: usize,
        deliver: impl FnOnce(&mut Requests<'_>) -> Result<T, Broken>,
    ) -> Fed<T> {
        let mut inner = self.inner();
        if !inner.open {
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

impl Inner {
    fn read(&self, register: u32) -> u32 {
        let registers = &self.registers;
        let queue = self.queues.get(registers.queue_select as usize);
        match register {
            VIRTIO_MMIO_MAGIC_VALUE => MAGIC,
            VIRTIO_MMIO_VERSION => VERSION,
            VIRTIO_MMIO_DEVICE_ID => self.device.id(),
            VIRTIO_MMIO_VENDOR_ID => VENDOR,
            VIRTIO_MMIO_DEVICE_FEATURES => match registers.device_features_select {
                0 => self.offered() as u32,
                1 => (self.offered() >> 32) as u32,
                _ => 0,
            },
            VIRTIO_MMIO_QUEUE_NUM_MAX => queue.map_or(0, |queue| queue.max_size().into()),
            VIRTIO_MMIO_QUEUE_READY => queue.is_some_and(VirtQueue::is_ready).into(),
            VIRTIO_MMIO_INTERRUPT_STATUS => registers.interrupt,
            VIRTIO_MMIO_STATUS => registers.status,
            VIRTIO_MMIO_CONFIG_GENERATION => self.device.config_generation(),
            // There is no shared memory: a length of ones says so (section 4.2.2).
            VIRTIO_MMIO_SHM_LEN_LOW
            | VIRTIO_MMIO_SHM_LEN_HIGH
            | VIRTIO_MMIO_SHM_BASE_LOW
            | VIRTIO_MMIO_SHM_BASE_HIGH => u32::MAX,
            _ => 0,
        }
    }
}

/// Reasons for an interrupt: of [`INTERRUPT_BITS`], or none.
type Reasons = u32;

/// What the driver may do, and what follows from it.
impl Inner {
    fn write(&mut self, register: u32, value: u32, around: &Surroundings<'_>) -> Reasons {
        match register {
            VIRTIO_MMIO_DEVICE_FEATURES_SEL => self.registers.device_features_select = value,
            VIRTIO_MMIO_DRIVER_FEATURES_SEL => self.registers.driver_features_select = value,
            VIRTIO_MMIO_DRIVER_FEATURES => self.take_features(value),
            VIRTIO_MMIO_QUEUE_SEL => self.registers.queue_select = value,
            VIRTIO_MMIO_QUEUE_READY => return self.enable_queue(value, around.ram),
            VIRTIO_MMIO_QUEUE_NOTIFY => return self.kick(value as usize, around),
            VIRTIO_MMIO_INTERRUPT_ACK => self.registers.interrupt &= !value,
            VIRTIO_MMIO_STATUS => self.set_status(value),
            _ => self.set_up_queue(register, value),
        }
        0
    }

    fn has(&self, status: u32) -> bool {
        self.registers.status & status != 0
    }

    fn offered(&self) -> u64 {
        self.device.features() | COMMON_FEATURES
    }

    fn serves(&self) -> bool {
        self.has(VIRTIO_CONFIG_S_DRIVER_OK) && !self.has(VIRTIO_CONFIG_S_NEEDS_RESET)
    }

    fn activate(&mut self) {
        self.device.activate(self.registers.features);
        self.device.wake();
    }

    fn take_features(&mut self, word: u32) {
        let shift = match self.registers.driver_features_select {
            0 => 0,
            1 => 32,
            _ => return,
        };
        if !self.has(VIRTIO_CONFIG_S_FEATURES_OK) {
            let others = self.registers.features & !(u64::from(u32::MAX) << shift);
            self.registers.features = others | u64::from(word) << shift;
        }
    }

    /// Bits are only ever added; 0 resets. A step that comes before its time is not taken: the driver reads so.
    fn set_status(&mut self, value: u32) {
        if value == 0 {
            self.registers = Registers::default();
            self.queues = new_queues(self.device.as_ref());
            self.device.deactivate();
            return;
        }
        let mut status = self.registers.status | value & DRIVER_STATUS_BITS;
        let features = self.registers.features;
        let acceptable = features & VERSION_1 != 0 && features & !self.offered() == 0;
        if status & VIRTIO_CONFIG_S_DRIVER == 0 || !acceptable {
            status &= !VIRTIO_CONFIG_S_FEATURES_OK;
        }
        if status & VIRTIO_CONFIG_S_FEATURES_OK == 0 {
            status &= !VIRTIO_CONFIG_S_DRIVER_OK;
        }
        let starts = status & !self.registers.status & VIRTIO_CONFIG_S_DRIVER_OK != 0;
        self.registers.status = status;
        if starts {
            self.activate();
        }
    }

    /// The queue that is selected, where the driver has come as far as that.
    fn selected_queue(&mut self) -> Option<&mut VirtQueue> {
        let in_time = self.has(VIRTIO_CONFIG_S_FEATURES_OK) && !self.has(VIRTIO_CONFIG_S_NEEDS_RESET);
        self.queues.get_mut(self.registers.queue_select as usize).filter(|_| in_time)
    }

    fn set_up_queue(&mut self, register: u32, value: u32) {
        let Some(queue) = self.selected_queue().and_then(VirtQueue::setup) else { return };
        match register {
            // A size that no queue has is refused when the queue is to be ready.
            VIRTIO_MMIO_QUEUE_NUM => queue.size = u16::try_from(value).unwrap_or(0),
            VIRTIO_MMIO_QUEUE_DESC_LOW => set_low(&mut queue.descriptors, value),
            VIRTIO_MMIO_QUEUE_DESC_HIGH => set_high(&mut queue.descriptors, value),
            VIRTIO_MMIO_QUEUE_AVAIL_LOW => set_low(&mut queue.avail, value),
            VIRTIO_MMIO_QUEUE_AVAIL_HIGH => set_high(&mut queue.avail, value),
            VIRTIO_MMIO_QUEUE_USED_LOW => set_low(&mut queue.used, value),
            VIRTIO_MMIO_QUEUE_USED_HIGH => set_high(&mut queue.used, value),
            _ => {}
        }
    }

    fn enable_queue(&mut self, value: u32, ram: &GuestRam) -> Reasons {
        let Some(queue) = self.selected_queue() else { return 0 };
        if value & 1 == 0 {
            queue.disable();
            return 0;
        }
        match queue.enable(ram) {
            Ok(()) => 0,
            Err(Broken(_)) => self.ask_for_reset(),
        }
    }

    fn kick(&mut self, number: usize, around: &Surroundings<'_>) -> Reasons {
        let serves = self.serves();
        let Some(queue) = self.queues.get_mut(number).filter(|_| serves) else { return 0 };
        let mut cut_short = false;
        let served = serve(queue, around, |requests| {
            let outcome = self.device.kick(number, requests);
            cut_short = requests.is_cut_short();
            outcome
        });
        self.registers.left_over |= u32::from(cut_short) << number;
        match served {
            (finished, Ok(_)) => finished,
            (finished, Err(Broken(_))) => finished | self.ask_for_reset(),
        }
    }

    /// The device cannot go on (section 2.1.2). The driver is told if it is there to be told.
    fn ask_for_reset(&mut self) -> Reasons {
        self.registers.status |= VIRTIO_CONFIG_S_NEEDS_RESET;
        self.device.deactivate();
        if self.has(VIRTIO_CONFIG_S_DRIVER_OK) { VIRTIO_MMIO_INT_CONFIG } else { 0 }
    }
}

/// What a queue is served with.
struct Surroundings<'a> {
    ram: &'a GuestRam,
    hurry: &'a AtomicBool,
}

/// Serves a queue, if it is ready. What was finished is to be told also when it breaks after that.
fn serve<T>(
    queue: &mut VirtQueue,
    around: &Surroundings<'_>,
    work: impl FnOnce(&mut Requests<'_>) -> Result<T, Broken>,
) -> (Reasons, Result<Option<T>, Broken>) {
    match queue.requests(around.ram, around.hurry) {
        Ok(None) => (0, Ok(None)),
        Ok(Some(mut requests)) => {
            let outcome = work(&mut requests).map(Some);
            (if requests.any_finished() { VIRTIO_MMIO_INT_VRING } else { 0 }, outcome)
        }
        Err(broken) => (0, Err(broken)),
    }
}

fn new_queues(device: &dyn VirtioDevice) -> Vec<VirtQueue> {
    device.queue_sizes().iter().map(|size| VirtQueue::new(*size)).collect()
}

fn set_low(address: &mut u64, word: u32) {
    *address = *address >> 32 << 32 | u64::from(word);
}

fn set_high(address: &mut u64, word: u32) {
    *address = u64::from(word) << 32 | u64::from(*address as u32);
}

impl std::fmt::Debug for MmioTransport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.kind().name)
    }
}
