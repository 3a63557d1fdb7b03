//! The registers: what the driver may do, and what follows from it. Under the transport's lock.

use std::sync::atomic::AtomicBool;

use virtio_bindings::bindings::virtio_config::*;
use virtio_bindings::bindings::virtio_mmio::*;

use super::super::queue::{Broken, Requests, VirtQueue};
use super::super::state::Registers;
use super::super::{COMMON_FEATURES, VERSION_1, VirtioDevice};
use crate::memory::ram::GuestRam;

const MAGIC: u32 = u32::from_le_bytes(*b"virt");
/// Of the register layout: 1 is the one from before virtio 1.
const VERSION: u32 = 2;
/// "No vendor": drivers do not look at it.
const VENDOR: u32 = 0;

/// What a device's status can have.
pub(in crate::devices::virtio) const STATUS_BITS: u32 = DRIVER_STATUS_BITS | VIRTIO_CONFIG_S_NEEDS_RESET;
const DRIVER_STATUS_BITS: u32 = VIRTIO_CONFIG_S_ACKNOWLEDGE
    | VIRTIO_CONFIG_S_DRIVER
    | VIRTIO_CONFIG_S_FEATURES_OK
    | VIRTIO_CONFIG_S_DRIVER_OK
    | VIRTIO_CONFIG_S_FAILED;
/// Why it can interrupt: a request was finished; its status or configuration has changed.
pub(in crate::devices::virtio) const INTERRUPT_BITS: u32 = VIRTIO_MMIO_INT_VRING | VIRTIO_MMIO_INT_CONFIG;

/// What the lock guards.
pub(super) struct Inner {
    /// What comes from outside is delivered only while the machine runs: what was saved stays what it was.
    pub(super) open: bool,
    pub(super) device: Box<dyn VirtioDevice>,
    pub(super) registers: Registers,
    pub(super) queues: Vec<VirtQueue>,
}

impl Inner {
    /// After reset.
    pub(super) fn new(device: Box<dyn VirtioDevice>) -> Self {
        let queues = new_queues(device.as_ref());
        Self { open: false, device, registers: Registers::default(), queues }
    }

    pub(super) fn read(&self, register: u32) -> u32 {
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
pub(super) type Reasons = u32;

/// What the driver may do, and what follows from it.
impl Inner {
    pub(super) fn write(&mut self, register: u32, value: u32, around: &Surroundings<'_>) -> Reasons {
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

    pub(super) fn has(&self, status: u32) -> bool {
        self.registers.status & status != 0
    }

    fn offered(&self) -> u64 {
        self.device.features() | COMMON_FEATURES
    }

    pub(super) fn serves(&self) -> bool {
        self.has(VIRTIO_CONFIG_S_DRIVER_OK) && !self.has(VIRTIO_CONFIG_S_NEEDS_RESET)
    }

    pub(super) fn activate(&mut self) {
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

    pub(super) fn kick(&mut self, number: usize, around: &Surroundings<'_>) -> Reasons {
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
    pub(super) fn ask_for_reset(&mut self) -> Reasons {
        self.registers.status |= VIRTIO_CONFIG_S_NEEDS_RESET;
        self.device.deactivate();
        if self.has(VIRTIO_CONFIG_S_DRIVER_OK) { VIRTIO_MMIO_INT_CONFIG } else { 0 }
    }
}

/// What a queue is served with.
pub(super) struct Surroundings<'a> {
    pub(super) ram: &'a GuestRam,
    pub(super) hurry: &'a AtomicBool,
}

/// Serves a queue, if it is ready. What was finished is to be told also when it breaks after that.
pub(super) fn serve<T>(
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
