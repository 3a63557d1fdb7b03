//! The console: output in the order in which it is written, input that no move and no reader's change loses.

use std::time::{Duration, Instant};

use virtio_bindings::bindings::virtio_config::*;
use virtio_bindings::bindings::virtio_mmio::*;

use super::super::console::MAX_OUTPUT;
use super::*;
use crate::devices::{Console, SERIAL_KIND, SERIAL_PORT, SerialPort, SerialState};

const RX: u16 = 0;
const TX: u16 = 1;
/// Against hangs only.
const DEADLINE: Duration = Duration::from_secs(20);

/// A guest's driver, its two consoles, and who types.
struct Desk {
    driver: Driver,
    serial: Arc<SerialPort>,
    hvc: VirtioConsole,
    console: Console,
    /// How far the used ring of the receive queue was read.
    heard: u16,
}

impl Desk {
    fn blank(ram: Arc<GuestRam>) -> Self {
        let console = Console::new();
        let serial = SerialPort::new(console.clone(), Arc::new(|| {}));
        let mut connected = None;
        let driver = Driver::connected(ram, |ram, pulse| {
            let hvc = VirtioConsole::connect(console.clone(), ram, pulse).unwrap();
            Arc::clone(connected.insert(hvc).transport())
        });
        Self { driver, serial, hvc: connected.unwrap(), console, heard: 0 }
    }

    fn new() -> Self {
        Self::blank(GuestRam::new(Layout::for_bytes(RAM_BYTES).unwrap()).unwrap())
    }

    /// As `Machine::resume` does it.
    fn open(&self) {
        self.serial.open();
        assert!(!self.hvc.transport().open());
    }

    fn close(&self) {
        self.serial.close();
        self.hvc.transport().close();
    }

    fn start_driver(&mut self) {
        assert!(self.driver.negotiate(u64::MAX));
        for queue in [RX, TX] {
            self.driver.on(queue).set_up_queue();
        }
        self.driver.set(VIRTIO_MMIO_STATUS, VIRTIO_CONFIG_S_DRIVER_OK);
    }

    /// A machine that runs, with a driver that is ready and has made room for nothing.
    fn ready() -> Self {
        let mut desk = Self::new();
        desk.open();
        desk.start_driver();
        desk
    }

    /// Gives the device a buffer. Where it is.
    fn make_room(&mut self, bytes: u32) -> u64 {
        let driver = self.driver.on(RX);
        let buffer = BUFFERS + u64::from(driver.look_u16(AVAIL + 2)) * 0x1000;
        let head = driver.chain(&[(buffer, bytes, WRITE)]);
        driver.offer(head);
        driver.notify();
        buffer
    }

    /// What the driver got in the next buffer that comes back.
    fn hear(&mut self, buffer: u64) -> Vec<u8> {
        let (driver, wanted) = (self.driver.on(RX), self.heard + 1);
        wait_until("input reaches the driver", || driver.finished() >= wanted);
        let slot = USED + 4 + u64::from(self.heard % QUEUE_SIZE) * 8;
        self.heard = wanted;
        let bytes = u32::from_le_bytes(driver.look(slot + 4, 4).try_into().unwrap());
        driver.look(buffer, bytes as usize)
    }

    /// What the guest reads from the serial port, once there is something.
    fn hear_serial(&self, bytes: usize) -> Vec<u8> {
        let read = |register| {
            let mut byte = [0];
            self.serial.read(register, &mut byte);
            byte[0]
        };
        let byte = |_| {
            wait_until("input reaches the serial port", || read(5) & 1 == 1);
            read(0)
        };
        (0..bytes).map(byte).collect()
    }

    /// Both devices' state, as a machine saves it.
    fn save(&self) -> (Vec<u8>, Vec<u8>) {
        let mut stream = StreamWriter::new(Vec::new());
        stream.section(&SERIAL_KIND, 0, |section| self.serial.state().write(section));
        (stream.finish(), self.driver.save())
    }

    /// The same guest, with its memory, in another machine.
    fn moved(&self) -> Self {
        let there = Self::blank(Arc::clone(&self.driver.ram));
        there.restore(&self.save());
        Self { heard: self.heard, ..there }
    }

    fn restore(&self, (serial, virtio): &(Vec<u8>, Vec<u8>)) {
        let stream = Stream::read(serial, &[SERIAL_KIND]).unwrap();
        let state = SerialState::read(stream.section(&SERIAL_KIND, 0).unwrap()).unwrap();
        self.serial.set_state(state);
        self.driver.restore(virtio).unwrap();
    }
}

fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + DEADLINE;
    while !done() {
        assert!(Instant::now() < end, "{what}: not in time");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_driver_finds_one_port_and_nothing_to_negotiate() {
    let desk = Desk::new();
    assert_eq!(desk.driver.get(VIRTIO_MMIO_DEVICE_ID), 3);
    desk.driver.set(VIRTIO_MMIO_DEVICE_FEATURES_SEL, 0);
    assert_eq!(desk.driver.get(VIRTIO_MMIO_DEVICE_FEATURES) & 0xff_ffff, 0);
    for queue in [RX, TX, 2] {
        desk.driver.set(VIRTIO_MMIO_QUEUE_SEL, queue.into());
        let size = if queue == 2 { 0 } else { 64 };
        assert_eq!(desk.driver.get(VIRTIO_MMIO_QUEUE_NUM_MAX), size);
    }
    let mut config = [0xff; 12];
    desk.driver.transport.read(0x100, &mut config);
    assert_eq!(config, [0; 12]);
}

#[test]
fn output_of_both_consoles_comes_in_the_order_in_which_it_is_written() {
    let mut desk = Desk::ready();
    for number in 0..40_u8 {
        let text = format!("line {number}");
        let driver = desk.driver.on(TX);
        driver.put(BUFFERS, text.as_bytes());
        let (head, rest) = (4, text.len() as u32 - 4);
        assert_eq!(driver.request(&[(BUFFERS, head, 0), (BUFFERS + u64::from(head), rest, 0)]), 0);
        desk.serial.write(0, b";");
    }
    let wanted: String = (0..40).map(|number| format!("line {number};")).collect();
    assert_eq!(String::from_utf8(desk.console.recent()).unwrap(), wanted);
}

#[test]
fn input_waits_for_room_and_comes_in_order() {
    let mut desk = Desk::ready();
    let text: Vec<u8> = (0..100).collect();
    let buffer = desk.make_room(1);
    assert_eq!(desk.console.input(&text), 100);
    let mut heard = desk.hear(buffer);
    for bytes in [10, 60, 16, 16] {
        let buffer = desk.make_room(bytes);
        heard.extend(desk.hear(buffer));
    }
    assert_eq!(heard, text);
    let buffer = desk.make_room(10);
    assert_eq!(desk.console.input(b"now"), 3);
    assert_eq!(desk.hear(buffer), b"now");
    assert!(desk.driver.pulses() > 0);
    assert_eq!(desk.serial.state().fifo, b"", "the serial port has had none of it");
}

#[test]
fn the_serial_port_has_the_input_until_a_driver_listens_and_after_it_has_gone() {
    let mut desk = Desk::new();
    desk.console.input(b"to the firmware;");
    desk.open();
    assert_eq!(desk.hear_serial(16), b"to the firmware;");
    // A driver that only writes: its receive queue is not there.
    assert!(desk.driver.negotiate(u64::MAX));
    desk.driver.on(TX).set_up_queue();
    desk.driver.set(VIRTIO_MMIO_STATUS, VIRTIO_CONFIG_S_DRIVER_OK);
    desk.console.input(b"still;");
    assert_eq!(desk.hear_serial(6), b"still;");

    desk.driver.set(VIRTIO_MMIO_STATUS, 0);
    desk.start_driver();
    let buffer = desk.make_room(4);
    desk.console.input(b"hvc0...and what it did not take");
    assert_eq!(desk.hear(buffer), b"hvc0");
    desk.driver.set(VIRTIO_MMIO_STATUS, 0);
    assert_eq!(desk.hear_serial(27), b"...and what it did not take");
}

#[test]
fn a_machine_that_stands_still_gets_nothing_and_loses_nothing() {
    let mut desk = Desk::ready();
    let buffer = desk.make_room(100);
    desk.close();
    let before = desk.driver.save();
    desk.console.input(b"while it was paused");
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!((desk.driver.on(RX).finished(), desk.driver.save() == before), (0, true));
    desk.open();
    assert_eq!(desk.hear(buffer), b"while it was paused");
}

#[test]
fn input_that_waits_moves_with_the_guest_once_whole_and_first() {
    let mut here = Desk::ready();
    let text: Vec<u8> = (0..200).collect();
    let buffer = here.make_room(50);
    here.console.input(&text);
    let mut heard = here.hear(buffer);
    here.close();
    let mut there = here.moved();
    there.console.input(b", typed there");
    // As a rehearsal does it.
    let again = there.save();
    there.restore(&again);
    there.open();
    let buffer = there.make_room(1000);
    heard.extend(there.hear(buffer));
    assert_eq!(heard, [&text[..], b", typed there"].concat());
    assert_eq!(there.serial.state().fifo, b"", "its driver listens from the first moment on");
}

#[test]
fn hostile_queues_break_the_device_and_the_serial_port_goes_on() {
    for break_it in [
        |driver: &mut Driver| {
            let head = driver.on(TX).chain(&[(BUFFERS, MAX_OUTPUT as u32 + 1, 0)]);
            driver.offer(head);
        },
        |driver: &mut Driver| {
            let head = driver.on(TX).chain(&[(RAM_BYTES - 4, 8, 0)]);
            driver.offer(head);
        },
        |driver: &mut Driver| driver.on(RX).put(AVAIL + 2, &(QUEUE_SIZE + 1).to_le_bytes()),
        |driver: &mut Driver| {
            let head = driver.on(RX).chain(&[(RAM_BYTES - 4, 8, WRITE)]);
            driver.offer(head);
        },
    ] {
        let mut desk = Desk::ready();
        break_it(&mut desk.driver);
        desk.driver.notify();
        desk.console.input(b"typed");
        wait_until("the device is broken", || desk.driver.needs_reset());
        assert_eq!(desk.hear_serial(5), b"typed");
        assert_eq!(desk.console.recent(), b"");
    }
}

#[test]
fn buffers_that_cannot_be_written_come_back_empty() {
    let mut desk = Desk::ready();
    let driver = desk.driver.on(RX);
    let head = driver.chain(&[(BUFFERS, 8, 0)]);
    driver.offer(head);
    driver.notify();
    desk.console.input(b"typed");
    assert_eq!(desk.hear(BUFFERS), b"");
    let buffer = desk.make_room(8);
    assert_eq!(desk.hear(buffer), b"typed");
}

#[test]
fn golden_console() {
    let mut desk = Desk::ready();
    desk.driver.on(TX).request(&[(BUFFERS, 64, 0)]);
    let buffer = desk.make_room(8);
    desk.console.input(b"golden");
    desk.hear(buffer);
    desk.close();
    golden::holds(&desk.driver, &Desk::blank(Arc::clone(&desk.driver.ram)).driver);
}

#[test]
fn it_ends_with_its_machine_and_the_next_one_has_the_input() {
    let desk = Desk::ready();
    let console = desk.console.clone();
    drop(desk);
    let serial = SerialPort::new(console.clone(), Arc::new(|| {}));
    serial.open();
    console.input(b"next");
    assert_eq!(serial.state().fifo, b"next");
    assert_eq!(SERIAL_PORT, 0x3f8);
}
