//! Drivers that break the rules: the device asks for a reset, or does nothing; the VMM goes on.

use proptest::prelude::*;
use virtio_bindings::bindings::virtio_config::*;
use virtio_bindings::bindings::virtio_mmio::*;
use virtio_bindings::bindings::virtio_ring::VRING_DESC_F_INDIRECT;

use super::*;

const INDIRECT: u16 = VRING_DESC_F_INDIRECT as u16;
const OUTSIDE: u64 = RAM_BYTES - 4;

/// Offers chain 0 of what `write` has put there, which must break the queue.
fn breaks(what: &str, write: impl FnOnce(&Driver)) {
    let driver = Driver::ready(Rng);
    write(&driver);
    driver.offer(0);
    driver.notify();
    assert!(driver.needs_reset(), "{what}");
    assert_eq!((driver.finished(), driver.pulses()), (0, 1), "{what}");
    assert_eq!(driver.get(VIRTIO_MMIO_INTERRUPT_STATUS), VIRTIO_MMIO_INT_CONFIG, "{what}");
    driver.notify();
    assert_eq!(driver.pulses(), 1, "{what}: nothing more until a reset");
    driver.set(VIRTIO_MMIO_STATUS, 0);
    assert_eq!(driver.get(VIRTIO_MMIO_STATUS), 0, "{what}");
}

#[test]
fn chains_that_are_no_requests_break_the_queue() {
    let table = BUFFERS + 0x8000;
    let entry = |driver: &Driver, number, address, flags, next| {
        driver.descriptor(DESCRIPTORS, number, address, 16, flags, next);
    };
    breaks("a loop", |d| entry(d, 0, BUFFERS, WRITE | NEXT, 0));
    breaks("outside the table", |d| entry(d, 0, BUFFERS, WRITE | NEXT, QUEUE_SIZE));
    breaks("outside RAM", |d| entry(d, 0, OUTSIDE, WRITE, 0));
    breaks("at the end of all addresses", |d| entry(d, 0, u64::MAX - 3, WRITE, 0));
    breaks("readable after writable", |d| {
        entry(d, 0, BUFFERS, WRITE | NEXT, 1);
        entry(d, 1, BUFFERS, 0, 0);
    });
    breaks("longer than 4 GiB", |d| {
        (0..2).for_each(|n| d.descriptor(DESCRIPTORS, n, BUFFERS, u32::MAX, WRITE | NEXT, n + 1));
    });
    breaks("a table of part of a descriptor", |d| d.descriptor(DESCRIPTORS, 0, table, 24, INDIRECT, 0));
    breaks("a table outside RAM", |d| d.descriptor(DESCRIPTORS, 0, OUTSIDE, 16, INDIRECT, 0));
    breaks("a table in a table", |d| {
        d.descriptor(DESCRIPTORS, 0, table, 16, INDIRECT, 0);
        d.descriptor(table, 0, table, 16, INDIRECT, 0);
    });
    breaks("a table of very many", |d| {
        d.descriptor(DESCRIPTORS, 0, table, 16 * 4096, INDIRECT, 0);
        (0..4096).for_each(|n| d.descriptor(table, n, BUFFERS, 1, WRITE | NEXT, n + 1));
    });
}

#[test]
fn rings_that_cannot_be_break_the_queue() {
    let head_outside = Driver::ready(Rng);
    head_outside.offer(QUEUE_SIZE);
    head_outside.notify();
    assert!(head_outside.needs_reset());

    let too_many = Driver::ready(Rng);
    too_many.put(AVAIL + 2, &(QUEUE_SIZE + 1).to_le_bytes());
    too_many.notify();
    assert!(too_many.needs_reset());

    for (register, value) in [
        (VIRTIO_MMIO_QUEUE_NUM, 0),
        (VIRTIO_MMIO_QUEUE_NUM, 3),
        (VIRTIO_MMIO_QUEUE_NUM, 128),
        (VIRTIO_MMIO_QUEUE_NUM, 0x1_0010),
        (VIRTIO_MMIO_QUEUE_DESC_LOW, 8),
        (VIRTIO_MMIO_QUEUE_AVAIL_LOW, 1),
        (VIRTIO_MMIO_QUEUE_AVAIL_LOW, 0),
        (VIRTIO_MMIO_QUEUE_USED_LOW, OUTSIDE as u32),
        (VIRTIO_MMIO_QUEUE_USED_HIGH, u32::MAX),
    ] {
        let driver = Driver::new(Rng);
        assert!(driver.negotiate(u64::MAX));
        driver.set_up_queue();
        driver.set(VIRTIO_MMIO_QUEUE_READY, 0);
        driver.set(register, value);
        driver.set(VIRTIO_MMIO_QUEUE_READY, 1);
        assert_eq!(driver.get(VIRTIO_MMIO_QUEUE_READY), 0, "{register:#x}");
        assert!(driver.needs_reset(), "{register:#x}");
        assert_eq!(driver.pulses(), 0, "the driver does not listen yet");
    }
}

proptest! {
    #[test]
    fn any_accesses_are_survived(
        accesses in proptest::collection::vec((0_u64..0x200, any::<u32>(), 0_usize..9, any::<bool>()), 0..200),
        ready: bool,
    ) {
        let driver = if ready { Driver::ready(Rng) } else { Driver::new(Rng) };
        for (offset, value, width, write) in accesses {
            let mut data = [value.to_le_bytes(); 2].concat();
            if write {
                driver.transport.write(offset & !3, &data[..width]);
            } else {
                driver.transport.read(offset, &mut data[..width]);
            }
        }
        let state = driver.save();
        Driver::with_ram(Rng, Arc::clone(&driver.ram)).restore(&state).unwrap();
    }

    #[test]
    fn any_rings_are_survived(words in proptest::collection::vec(any::<u16>(), 0..200), available in 0..QUEUE_SIZE) {
        let driver = Driver::ready(Rng);
        let bytes: Vec<u8> = words.iter().flat_map(|word| (word % 24).to_le_bytes()).collect();
        driver.put(DESCRIPTORS, &bytes);
        driver.put(AVAIL + 2, &available.to_le_bytes());
        driver.notify();
        prop_assert!(driver.needs_reset() || driver.finished() == available);
        prop_assert!(driver.get(VIRTIO_MMIO_STATUS) & VIRTIO_CONFIG_S_DRIVER_OK != 0);
    }

    #[test]
    fn any_fields_are_read_without_panic(payload in proptest::collection::vec(any::<u8>(), 24 + 16 + 20 + 40)) {
        let driver = Driver::new(Rng);
        let mut bytes = driver.save();
        let mut at = 48;
        for size in [4, 4, 8, 12, 32] {
            bytes[at + 8..at + 8 + size].copy_from_slice(&payload[at - 48..at - 48 + size]);
            at += 8 + size;
        }
        crate::state::restamp(&mut bytes);
        let _ = driver.restore(&bytes);
    }
}
