//! A driver as a guest would have it: registers through the bus's door, split rings written by hand, so that it can
//! also write what no driver should.

use std::sync::atomic::{AtomicU32, Ordering};

use virtio_bindings::bindings::virtio_config::*;
use virtio_bindings::bindings::virtio_mmio::*;
use virtio_bindings::bindings::virtio_ring::{VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use vm_memory::{Bytes, GuestAddress};

use super::super::*;
use super::*;

pub(super) const RAM_BYTES: u64 = 16 << 20;
pub(super) const DESCRIPTORS: u64 = 0x1000;
pub(super) const AVAIL: u64 = 0x2000;
pub(super) const USED: u64 = 0x3000;
/// The second queue's rings are so far behind the first one's, and so on.
const NEXT_QUEUE: u64 = 0x1_0000;
/// Where requests' memory may lie.
pub(super) const BUFFERS: u64 = 0x10_0000;
pub(super) const QUEUE_SIZE: u16 = 16;

pub(super) const WRITE: u16 = VRING_DESC_F_WRITE as u16;
pub(super) const NEXT: u16 = VRING_DESC_F_NEXT as u16;

pub(super) struct Driver {
    pub(super) transport: Arc<MmioTransport>,
    pub(super) ram: Arc<GuestRam>,
    pub(super) pulses: Arc<AtomicU32>,
    /// The queue that it works with now.
    queue: u16,
    next_descriptor: [u16; 3],
}

impl Driver {
    /// A device after reset, and its driver.
    pub(super) fn new(device: impl VirtioDevice + 'static) -> Self {
        Self::with_ram(device, GuestRam::new(Layout::for_bytes(RAM_BYTES).unwrap()).unwrap())
    }

    pub(super) fn with_ram(device: impl VirtioDevice + 'static, ram: Arc<GuestRam>) -> Self {
        Self::connected(ram, |ram, pulse| MmioTransport::new(Box::new(device), ram, pulse))
    }

    /// The driver of a device that `connect` makes.
    pub(super) fn connected(
        ram: Arc<GuestRam>,
        connect: impl FnOnce(Arc<GuestRam>, Arc<dyn Fn() + Send + Sync>) -> Arc<MmioTransport>,
    ) -> Self {
        let pulses = Arc::new(AtomicU32::new(0));
        let counter = Arc::clone(&pulses);
        let pulse = Arc::new(move || {
            counter.fetch_add(1, Ordering::SeqCst);
        });
        Self { transport: connect(Arc::clone(&ram), pulse), ram, pulses, queue: 0, next_descriptor: [0; 3] }
    }

    /// The same driver, working with another queue.
    pub(super) fn on(&mut self, queue: u16) -> &mut Self {
        self.queue = queue;
        self
    }

    fn ring(&self, base: u64) -> u64 {
        base + u64::from(self.queue) * NEXT_QUEUE
    }

    /// The same after negotiation, with its first queue ready.
    pub(super) fn ready(device: impl VirtioDevice + 'static) -> Self {
        let driver = Self::new(device);
        driver.negotiate(u64::MAX);
        driver.set_up_queue();
        driver.set(VIRTIO_MMIO_STATUS, VIRTIO_CONFIG_S_DRIVER_OK);
        assert_eq!(driver.get(VIRTIO_MMIO_STATUS), 15);
        driver
    }

    pub(super) fn get(&self, register: u32) -> u32 {
        let mut data = [0; 4];
        self.transport.read(register.into(), &mut data);
        u32::from_le_bytes(data)
    }

    pub(super) fn set(&self, register: u32, value: u32) {
        assert_eq!(self.transport.write(register.into(), &value.to_le_bytes()), None);
    }

    /// Takes the features offered, as far as `wanted`. Whether the device agrees.
    pub(super) fn negotiate(&self, wanted: u64) -> bool {
        self.set(VIRTIO_MMIO_STATUS, VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER);
        for word in 0..2 {
            self.set(VIRTIO_MMIO_DEVICE_FEATURES_SEL, word);
            self.set(VIRTIO_MMIO_DRIVER_FEATURES_SEL, word);
            let wanted = (wanted >> (32 * word)) as u32;
            self.set(VIRTIO_MMIO_DRIVER_FEATURES, self.get(VIRTIO_MMIO_DEVICE_FEATURES) & wanted);
        }
        self.set(VIRTIO_MMIO_STATUS, VIRTIO_CONFIG_S_FEATURES_OK);
        self.get(VIRTIO_MMIO_STATUS) & VIRTIO_CONFIG_S_FEATURES_OK != 0
    }

    pub(super) fn set_up_queue(&self) {
        self.set(VIRTIO_MMIO_QUEUE_SEL, self.queue.into());
        self.set(VIRTIO_MMIO_QUEUE_NUM, QUEUE_SIZE.into());
        self.set(VIRTIO_MMIO_QUEUE_DESC_LOW, self.ring(DESCRIPTORS) as u32);
        self.set(VIRTIO_MMIO_QUEUE_AVAIL_LOW, self.ring(AVAIL) as u32);
        self.set(VIRTIO_MMIO_QUEUE_USED_LOW, self.ring(USED) as u32);
        self.set(VIRTIO_MMIO_QUEUE_READY, 1);
    }

    pub(super) fn put(&self, at: u64, bytes: &[u8]) {
        self.ram.mmap().write_slice(bytes, GuestAddress(at)).unwrap();
    }

    pub(super) fn look(&self, at: u64, bytes: usize) -> Vec<u8> {
        let mut seen = vec![0; bytes];
        self.ram.mmap().read_slice(&mut seen, GuestAddress(at)).unwrap();
        seen
    }

    pub(super) fn look_u16(&self, at: u64) -> u16 {
        self.ram.mmap().read_obj(GuestAddress(at)).unwrap()
    }

    /// One entry of a table of descriptors, as it is.
    pub(super) fn descriptor(
        &self,
        table: u64,
        number: u16,
        address: u64,
        bytes: u32,
        flags: u16,
        next: u16,
    ) {
        let at = table + u64::from(number) * 16;
        self.put(at, &address.to_le_bytes());
        self.put(at + 8, &bytes.to_le_bytes());
        self.put(at + 12, &[flags.to_le_bytes(), next.to_le_bytes()].concat());
    }

    /// A chain of (address, bytes, [`WRITE`] or 0). Its head.
    pub(super) fn chain(&mut self, pieces: &[(u64, u32, u16)]) -> u16 {
        let (table, queue) = (self.ring(DESCRIPTORS), self.queue as usize);
        let head = self.next_descriptor[queue];
        for (number, (address, bytes, flags)) in pieces.iter().enumerate() {
            let at = self.next_descriptor[queue] % QUEUE_SIZE;
            self.next_descriptor[queue] = (at + 1) % QUEUE_SIZE;
            let more = if number + 1 < pieces.len() { NEXT } else { 0 };
            self.descriptor(table, at, *address, *bytes, flags | more, self.next_descriptor[queue]);
        }
        head
    }

    /// Makes a chain available without calling.
    pub(super) fn offer(&self, head: u16) {
        let avail = self.ring(AVAIL);
        let index = self.look_u16(avail + 2);
        self.put(avail + 4 + u64::from(index % QUEUE_SIZE) * 2, &head.to_le_bytes());
        self.put(avail + 2, &index.wrapping_add(1).to_le_bytes());
    }

    pub(super) fn notify(&self) {
        self.set(VIRTIO_MMIO_QUEUE_NOTIFY, self.queue.into());
    }

    /// How many requests were given back.
    pub(super) fn finished(&self) -> u16 {
        self.look_u16(self.ring(USED) + 2)
    }

    /// The newest entry of the used ring: head and bytes written.
    pub(super) fn last_used(&self) -> (u32, u32) {
        let at = self.ring(USED) + 4 + u64::from(self.finished().wrapping_sub(1) % QUEUE_SIZE) * 8;
        (
            self.ram.mmap().read_obj(GuestAddress(at)).unwrap(),
            self.ram.mmap().read_obj(GuestAddress(at + 4)).unwrap(),
        )
    }

    /// Has a chain served. How many bytes were written.
    pub(super) fn request(&mut self, pieces: &[(u64, u32, u16)]) -> u32 {
        let (before, head) = (self.finished(), self.chain(pieces));
        self.offer(head);
        self.notify();
        assert_eq!(self.finished(), before.wrapping_add(1), "the request is served");
        let (finished, written) = self.last_used();
        assert_eq!(finished, u32::from(head));
        written
    }

    pub(super) fn pulses(&self) -> u32 {
        self.pulses.load(Ordering::SeqCst)
    }

    pub(super) fn needs_reset(&self) -> bool {
        self.get(VIRTIO_MMIO_STATUS) & VIRTIO_CONFIG_S_NEEDS_RESET != 0
    }

    /// The device as a stream of saved state.
    pub(super) fn save(&self) -> Vec<u8> {
        let mut stream = StreamWriter::new(Vec::new());
        stream.section(self.transport.kind(), 0, |section| self.transport.save(section));
        stream.finish()
    }

    /// Puts a stream in place.
    pub(super) fn restore(&self, bytes: &[u8]) -> Result<(), StateError> {
        let kind = *self.transport.kind();
        let stream = Stream::read(bytes, &[kind])?;
        let image = self.transport.image(stream.section(&kind, 0)?)?;
        self.transport.restore(image);
        Ok(())
    }
}
