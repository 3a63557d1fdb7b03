//! The source of randomness.

use super::*;

#[test]
fn it_fills_what_it_is_given_and_no_more() {
    let mut driver = Driver::ready(Rng);
    assert_eq!(driver.request(&[(BUFFERS, 64, WRITE)]), 64);
    assert!(driver.look(BUFFERS, 64).iter().any(|byte| *byte != 0));
    assert_eq!(driver.look(BUFFERS + 64, 64), [0; 64]);
    assert_eq!(driver.request(&[(BUFFERS + 0x1000, 8, WRITE), (BUFFERS + 0x2000, 1 << 20, WRITE)]), 4096);
    assert_eq!(driver.look(BUFFERS + 0x2000 + 4088, 64), [0; 64]);
    assert_eq!(driver.request(&[(BUFFERS, 64, 0)]), 0, "nothing to fill");
    assert_eq!(driver.pulses(), 3);
}

#[test]
fn what_devices_write_reaches_the_dirty_log() {
    let mut driver = Driver::ready(Rng);
    let head = driver.chain(&[(BUFFERS + 0xff0, 0x20, WRITE)]);
    driver.offer(head);
    driver.ram.own_writes();
    driver.notify();
    assert_eq!(driver.ram.own_writes(), [USED / PAGE, BUFFERS / PAGE, BUFFERS / PAGE + 1]);
}
