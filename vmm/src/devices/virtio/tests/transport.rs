//! The transport: negotiation, set-up, interrupts, reset, and its saved state.

use virtio_bindings::bindings::virtio_config::*;
use virtio_bindings::bindings::virtio_mmio::*;

use super::*;

#[test]
fn a_driver_finds_the_device() {
    let driver = Driver::new(Rng);
    assert_eq!(driver.get(VIRTIO_MMIO_MAGIC_VALUE), 0x7472_6976);
    assert_eq!((driver.get(VIRTIO_MMIO_VERSION), driver.get(VIRTIO_MMIO_DEVICE_ID)), (2, 4));
    assert_eq!(driver.get(VIRTIO_MMIO_QUEUE_NUM_MAX), 64);
    driver.set(VIRTIO_MMIO_QUEUE_SEL, 1);
    assert_eq!(driver.get(VIRTIO_MMIO_QUEUE_NUM_MAX), 0, "there is no second queue");
    assert_eq!(driver.get(VIRTIO_MMIO_SHM_LEN_LOW), u32::MAX, "nor shared memory");
    let mut narrow = [0xff; 2];
    driver.transport.read(0, &mut narrow);
    assert_eq!(narrow, [0; 2], "registers are 32 bits wide");
}

#[test]
fn features_are_agreed_on_or_not() {
    assert!(Driver::new(Rng).negotiate(u64::MAX));
    assert!(!Driver::new(Rng).negotiate(u64::from(u32::MAX)), "a driver of before virtio 1");
    let driver = Driver::new(Rng);
    driver.set(VIRTIO_MMIO_DRIVER_FEATURES_SEL, 1);
    driver.set(VIRTIO_MMIO_DRIVER_FEATURES, 1 | 1 << 2);
    driver.set(VIRTIO_MMIO_STATUS, 11);
    assert_eq!(driver.get(VIRTIO_MMIO_STATUS), 3, "a feature that is not offered");
    driver.set(VIRTIO_MMIO_DRIVER_FEATURES, 1);
    driver.set(VIRTIO_MMIO_STATUS, 15);
    assert_eq!(driver.get(VIRTIO_MMIO_STATUS), 15);
    driver.set(VIRTIO_MMIO_DRIVER_FEATURES, 7);
    assert_eq!(driver.get(VIRTIO_MMIO_STATUS), 15, "too late to change them");
}

#[test]
fn steps_before_their_time_are_not_taken() {
    let mut driver = Driver::new(Rng);
    driver.set(VIRTIO_MMIO_STATUS, VIRTIO_CONFIG_S_DRIVER_OK);
    assert_eq!(driver.get(VIRTIO_MMIO_STATUS), 0);
    driver.set_up_queue();
    assert_eq!(driver.get(VIRTIO_MMIO_QUEUE_READY), 0, "before negotiation");
    assert!(driver.negotiate(u64::MAX));
    driver.set_up_queue();
    assert_eq!(driver.get(VIRTIO_MMIO_QUEUE_READY), 1);
    let head = driver.chain(&[(BUFFERS, 8, WRITE)]);
    driver.offer(head);
    driver.notify();
    assert_eq!((driver.finished(), driver.pulses()), (0, 0), "the driver is not ready yet");
    driver.set(VIRTIO_MMIO_STATUS, VIRTIO_CONFIG_S_DRIVER_OK);
    driver.set(VIRTIO_MMIO_QUEUE_AVAIL_LOW, 0);
    driver.notify();
    assert_eq!((driver.finished(), driver.pulses()), (1, 1), "a ready queue stays as it is");
}

#[test]
fn interrupts_are_acknowledged() {
    let mut driver = Driver::ready(Rng);
    driver.request(&[(BUFFERS, 8, WRITE)]);
    assert_eq!(driver.get(VIRTIO_MMIO_INTERRUPT_STATUS), VIRTIO_MMIO_INT_VRING);
    driver.set(VIRTIO_MMIO_INTERRUPT_ACK, VIRTIO_MMIO_INT_VRING);
    assert_eq!(driver.get(VIRTIO_MMIO_INTERRUPT_STATUS), 0);
    driver.notify();
    assert_eq!((driver.get(VIRTIO_MMIO_INTERRUPT_STATUS), driver.pulses()), (0, 1), "nothing was done");
}

#[test]
fn a_reset_forgets_everything_and_the_device_can_be_used_again() {
    let mut driver = Driver::ready(Rng);
    let head = driver.chain(&[(BUFFERS, 8, WRITE)]);
    driver.offer(head);
    driver.set(VIRTIO_MMIO_STATUS, 0);
    driver.notify();
    assert_eq!((driver.finished(), driver.get(VIRTIO_MMIO_STATUS)), (0, 0));
    assert_eq!(driver.get(VIRTIO_MMIO_QUEUE_READY), 0);
    assert!(driver.negotiate(u64::MAX));
    driver.set_up_queue();
    driver.set(VIRTIO_MMIO_STATUS, VIRTIO_CONFIG_S_DRIVER_OK);
    driver.notify();
    assert_eq!(driver.finished(), 1);
}

#[test]
fn a_request_that_waits_while_the_guest_moves_is_served_once() {
    let mut here = Driver::ready(Rng);
    here.request(&[(BUFFERS, 8, WRITE)]);
    let head = here.chain(&[(BUFFERS + 0x1000, 8, WRITE)]);
    here.offer(head);

    let there = Driver::with_ram(Rng, Arc::clone(&here.ram));
    there.restore(&here.save()).unwrap();
    assert_eq!(there.save(), here.save());
    assert_eq!(there.pulses(), 1, "an interrupt that was not acknowledged is raised again");
    there.notify();
    assert_eq!((there.finished(), there.last_used()), (2, (head.into(), 8)));
    there.notify();
    assert_eq!(there.finished(), 2);
}

#[test]
fn a_machine_that_is_to_stand_still_begins_no_request_and_each_is_served_once_where_it_goes_on() {
    for elsewhere in [false, true] {
        let mut here = Driver::ready(Rng);
        here.transport.hurry();
        let heads = [0, 1].map(|place| here.chain(&[(BUFFERS + place * 0x1000, 8, WRITE)]));
        heads.iter().for_each(|head| here.offer(*head));
        here.notify();
        assert_eq!((here.finished(), here.pulses()), (0, 0));
        here.transport.close();
        let there = if elsewhere {
            let there = Driver::with_ram(Rng, Arc::clone(&here.ram));
            there.restore(&here.save()).unwrap();
            assert_eq!(there.save(), here.save());
            there
        } else {
            here
        };
        assert!(there.transport.open(), "requests are left over");
        there.transport.serve_left_over();
        assert_eq!((there.finished(), there.last_used()), (2, (heads[1].into(), 8)));
        assert_eq!(there.pulses(), 1);
        there.transport.serve_left_over();
        there.notify();
        assert_eq!((there.finished(), there.transport.open()), (2, false));
    }
}

#[test]
fn requests_left_over_in_a_queue_that_is_not_there_are_refused() {
    let mut driver = Driver::ready(Rng);
    driver.transport.hurry();
    let head = driver.chain(&[(BUFFERS, 8, WRITE)]);
    driver.offer(head);
    driver.notify();
    let mut state = driver.save();
    let bits = state.len() - 4;
    assert_eq!(state[bits..], [1, 0, 0, 0]);
    state[bits] = 2;
    crate::state::restamp(&mut state);
    let error = driver.restore(&state).unwrap_err().to_string();
    assert!(error.contains("queue with left-over requests"), "{error}");
}

#[test]
fn a_state_in_the_middle_of_negotiation_goes_on_there() {
    let here = Driver::new(Rng);
    assert!(here.negotiate(u64::MAX));
    here.set(VIRTIO_MMIO_QUEUE_DESC_LOW, DESCRIPTORS as u32);
    here.set(VIRTIO_MMIO_QUEUE_AVAIL_LOW, AVAIL as u32);
    let there = Driver::with_ram(Rng, Arc::clone(&here.ram));
    there.restore(&here.save()).unwrap();
    there.set(VIRTIO_MMIO_QUEUE_USED_LOW, USED as u32);
    there.set(VIRTIO_MMIO_QUEUE_NUM, QUEUE_SIZE.into());
    there.set(VIRTIO_MMIO_QUEUE_READY, 1);
    assert_eq!(there.get(VIRTIO_MMIO_QUEUE_READY), 1);
}

#[test]
fn states_that_cannot_be_are_refused_by_name_and_change_nothing() {
    let driver = Driver::ready(Rng);
    let good = driver.save();
    let restored = Driver::with_ram(Rng, Arc::clone(&driver.ram));
    // Offsets: 16 of the stream's header, 32 of the section's, then each field behind 8 of its own.
    let (status, interrupt, features) = (56, 68, 80);
    let queue = 16 + 32 + (8 + 4) * 2 + (8 + 8) + (8 + 12) + 8;
    for (at, value, what) in [
        (status, 0x10, "device status"),
        (status, 4, "device status"),
        (interrupt, 4, "interrupt status"),
        (features, 1, "features"),
        (features + 4, 0, "features"),
        (queue, 2, "queue"),
        (queue + 2, 3, "queue"),
        (queue + 8, 1, "queue"),
        (queue + 15, 1, "queue"),
    ] {
        let mut bad = good.clone();
        bad[at] = value;
        crate::state::restamp(&mut bad);
        let error = restored.restore(&bad).unwrap_err().to_string();
        assert!(error.contains("impossible") && error.contains(what), "{at}: {error}");
        assert_eq!(restored.get(VIRTIO_MMIO_STATUS), 0);
    }
    restored.restore(&good).unwrap();
}
