//! The network interface, with a pair of sockets in the place of the tap: its far end is the network.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::RecvFlags;
use virtio_bindings::bindings::virtio_config::*;
use virtio_bindings::bindings::virtio_mmio::*;
use virtio_bindings::virtio_net::*;

use super::super::net::Tap;
use super::*;
use crate::config::Mac;

const RX: u16 = 0;
const TX: u16 = 1;
const CONTROL: u16 = 2;
const HEADER: usize = 12;
const MAC: [u8; 6] = [2, 0, 0, 0, 0, 7];
/// Against hangs only.
const DEADLINE: Duration = Duration::from_secs(20);

/// A guest's driver, its network interface, and the network.
struct Station {
    driver: Driver,
    nic: Nic,
    /// Another handle of the near end.
    tap: UnixDatagram,
    network: UnixDatagram,
}

impl Station {
    fn blank(ram: Arc<GuestRam>, arriving: bool) -> Self {
        let (tap, network) = UnixDatagram::pair().unwrap();
        tap.set_nonblocking(true).unwrap();
        network.set_read_timeout(Some(DEADLINE)).unwrap();
        let near = Arc::new(Tap::from_fd(OwnedFd::from(tap.try_clone().unwrap())));
        let mac: Mac = "02:00:00:00:00:07".parse().unwrap();
        let mut connected = None;
        let driver = Driver::connected(ram, |ram, pulse| {
            let nic = Nic::connect(near, mac, arriving, ram, pulse).unwrap();
            Arc::clone(connected.insert(nic).transport())
        });
        Self { driver, nic: connected.unwrap(), tap, network }
    }

    /// A machine that runs, with a driver that is ready.
    fn ready() -> Self {
        let mut station = Self::blank(GuestRam::new(Layout::for_bytes(RAM_BYTES).unwrap()).unwrap(), false);
        assert!(station.driver.negotiate(u64::MAX));
        for queue in [RX, TX, CONTROL] {
            station.driver.on(queue).set_up_queue();
        }
        station.driver.set(VIRTIO_MMIO_STATUS, VIRTIO_CONFIG_S_DRIVER_OK);
        station.runs();
        station
    }

    /// The machine runs.
    fn runs(&self) {
        self.nic.listen();
        assert!(!self.driver.transport.open());
    }

    /// Room for frames of this many bytes behind their headers.
    fn make_room(&mut self, buffer: u64, bytes: usize) {
        let driver = self.driver.on(RX);
        let head = driver.chain(&[(buffer, (HEADER + bytes) as u32, WRITE)]);
        driver.offer(head);
        driver.notify();
    }

    fn hears(&mut self, frames: u16) {
        let driver = self.driver.on(RX);
        wait_until("frames reach the driver", || driver.finished() == frames);
    }

    fn read(&self, bytes: usize) -> Vec<u8> {
        let mut frame = vec![0; bytes];
        let got = self.network.recv(&mut frame).unwrap();
        frame.truncate(got);
        frame
    }

    fn config(&self, at: u64) -> u16 {
        let mut bytes = [0; 2];
        self.driver.transport.read(0x100 + at, &mut bytes);
        u16::from_le_bytes(bytes)
    }
}

fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + DEADLINE;
    while !done() {
        assert!(Instant::now() < end, "{what}: not in time");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A frame on the wire, to this station.
fn frame(to: [u8; 6], content: &str) -> Vec<u8> {
    [&to[..], &[6; 6], &[8, 0], content.as_bytes()].concat()
}

/// The same as a tap has it.
fn headed(frame: &[u8]) -> Vec<u8> {
    [&[0; HEADER], frame].concat()
}

#[test]
fn it_has_an_address_and_a_link() {
    let station = Station::ready();
    assert_eq!([station.config(0), station.config(2), station.config(4)].map(u16::to_le_bytes).concat(), MAC);
    assert_eq!(station.config(6), VIRTIO_NET_S_LINK_UP as u16);
    assert_eq!(station.driver.get(VIRTIO_MMIO_CONFIG_GENERATION), 0);
}

#[test]
fn frames_go_out_whole_and_in_order() {
    let mut station = Station::ready();
    for number in 0..40_u8 {
        let sent = frame([1; 6], &format!("frame {number}"));
        let driver = station.driver.on(TX);
        driver.put(BUFFERS, &[0xff; HEADER]);
        driver.put(BUFFERS + 0x100, &sent);
        driver.request(&[(BUFFERS, HEADER as u32, 0), (BUFFERS + 0x100, sent.len() as u32, 0)]);
        assert_eq!(station.read(2000), headed(&sent), "nothing that a header asks for was agreed on");
    }
    let driver = station.driver.on(TX);
    driver.request(&[(BUFFERS, 9000, 0)]);
    driver.request(&[(BUFFERS, HEADER as u32 + 14, 0)]);
    assert_eq!(station.read(2000).len(), HEADER + 14, "a frame that is too long was lost, the next one not");
}

#[test]
fn frames_come_in_with_one_header_each_and_wait_for_room() {
    let mut station = Station::ready();
    for number in 0..5 {
        station.network.send(&headed(&frame(MAC, &format!("frame {number}")))).unwrap();
    }
    for number in 0..5_u64 {
        station.make_room(BUFFERS + number * 0x1000, 1514);
        station.hears(number as u16 + 1);
        let wanted = frame(MAC, &format!("frame {number}"));
        let seen = station.driver.look(BUFFERS + number * 0x1000, HEADER + wanted.len());
        assert_eq!(seen[..HEADER], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0], "one buffer");
        assert_eq!(seen[HEADER..], wanted);
        assert_eq!(station.driver.last_used().1 as usize, HEADER + wanted.len());
    }
    assert!(station.driver.pulses() > 0);
}

#[test]
fn a_frame_longer_than_its_buffer_is_lost_alone() {
    let mut station = Station::ready();
    station.make_room(BUFFERS, 30);
    station.make_room(BUFFERS + 0x1000, 30);
    station.network.send(&headed(&frame(MAC, "much too long for this"))).unwrap();
    station.network.send(&headed(&frame(MAC, "short"))).unwrap();
    station.hears(2);
    assert_eq!(station.driver.look(BUFFERS + 0x1000 + HEADER as u64, 19), frame(MAC, "short"));
}

#[test]
fn without_a_driver_frames_are_dropped() {
    let mut station = Station::ready();
    station.driver.set(VIRTIO_MMIO_STATUS, 0);
    station.network.send(&headed(&frame(MAC, "nobody"))).unwrap();
    wait_until("the frame is read", || station.nic_is_idle());
    // The feeder reads on only when it is done with that one.
    station.network.send(&headed(&frame(MAC, "nobody"))).unwrap();
    wait_until("the frame is dropped", || station.nic_is_idle());
    std::thread::sleep(Duration::from_millis(20));
    assert!(station.driver.negotiate(u64::MAX));
    station.driver.on(RX).set_up_queue();
    station.driver.set(VIRTIO_MMIO_STATUS, VIRTIO_CONFIG_S_DRIVER_OK);
    station.make_room(BUFFERS, 1514);
    station.network.send(&headed(&frame(MAC, "somebody"))).unwrap();
    station.hears(1);
    assert_eq!(station.driver.look(BUFFERS + 26, 8), b"somebody");
}

impl Station {
    /// Whether nothing waits in the tap.
    fn nic_is_idle(&self) -> bool {
        let look = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        rustix::net::recv(&self.tap, &mut [0; 1], look).is_err_and(|error| error == Errno::AGAIN)
    }
}

#[test]
fn a_machine_that_stands_still_gets_nothing_and_loses_nothing() {
    let mut station = Station::ready();
    station.make_room(BUFFERS, 1514);
    station.driver.transport.close();
    let before = station.driver.save();
    station.network.send(&headed(&frame(MAC, "while it was paused"))).unwrap();
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!((station.driver.on(RX).finished(), station.driver.save() == before), (0, true));
    station.runs();
    station.hears(1);
    assert_eq!(station.driver.look(BUFFERS + 26, 19), b"while it was paused");
}

#[test]
fn what_comes_for_a_guest_that_has_left_is_sent_after_it() {
    let here = Station::ready();
    here.driver.transport.close();
    let mut there = Station::blank(Arc::clone(&here.driver.ram), true);
    there.network.send(&headed(&frame(MAC, "which the source has, too"))).unwrap();
    there.driver.restore(&here.driver.save()).unwrap();
    here.network.send(&headed(&frame(MAC, "for it"))).unwrap();
    here.network.send(&headed(&frame([0xff; 6], "for all"))).unwrap();
    let mut taken = Vec::new();
    wait_until("both are taken", || {
        here.nic.take_frames(Duration::from_millis(5), &mut taken);
        taken.len() == 2
    });
    here.network.send(&headed(&frame([0xff; 6], "for all there, too"))).unwrap();
    here.network.send(&headed(&frame(MAC, "late"))).unwrap();
    wait_until("the late one is taken", || {
        here.nic.take_frames(Duration::from_millis(5), &mut taken);
        taken.len() == 3
    });
    // The first two may be taken from the feeder's hand and from the tap.
    taken[..2].sort();
    assert_eq!(taken, [frame(MAC, "for it"), frame([0xff; 6], "for all"), frame(MAC, "late")]);
    wait_until("the destination drops what came before it ran", || there.nic_is_idle());
    there.runs();
    for (place, frame) in taken.iter().enumerate() {
        there.make_room(BUFFERS + place as u64 * 0x1000, 1514);
        there.nic.bring(frame);
    }
    there.hears(3);
    for (place, frame) in taken.iter().enumerate() {
        assert_eq!(there.driver.look(BUFFERS + place as u64 * 0x1000 + HEADER as u64, frame.len()), *frame);
    }
}

#[test]
fn a_guest_that_has_come_is_announced_and_announces_itself() {
    let mut station = Station::ready();
    station.nic.announce();
    let announced = station.read(2000);
    assert_eq!(
        (&announced[HEADER + 6..HEADER + 12], &announced[HEADER + 12..HEADER + 14]),
        (&MAC[..], &[0x80, 0x35][..])
    );
    let asked = (VIRTIO_NET_S_LINK_UP | VIRTIO_NET_S_ANNOUNCE) as u16;
    wait_until("the driver is asked", || station.config(6) == asked);
    assert_eq!(station.driver.get(VIRTIO_MMIO_CONFIG_GENERATION), 1);
    assert_eq!(station.driver.get(VIRTIO_MMIO_INTERRUPT_STATUS), VIRTIO_MMIO_INT_CONFIG);
    let driver = station.driver.on(CONTROL);
    driver.put(BUFFERS, &[3, 0, 9]);
    driver.request(&[(BUFFERS, 2, 0), (BUFFERS + 2, 1, WRITE)]);
    assert_eq!(driver.look(BUFFERS + 2, 1), [VIRTIO_NET_OK as u8]);
    assert_eq!(station.config(6), VIRTIO_NET_S_LINK_UP as u16);
    assert_eq!(station.read(2000), announced, "and again, should the first one have been lost");
    let driver = station.driver.on(CONTROL);
    driver.put(BUFFERS, &[0, 0, 1, 9]);
    driver.request(&[(BUFFERS, 3, 0), (BUFFERS + 3, 1, WRITE)]);
    assert_eq!(driver.look(BUFFERS + 3, 1), [VIRTIO_NET_ERR as u8], "a command that was not offered");
}

#[test]
fn a_guest_that_stands_still_or_has_left_is_not_announced_any_more() {
    let station = Station::ready();
    station.nic.announce();
    station.read(2000);
    station.driver.transport.close();
    let before = station.driver.save();
    // The second announcement is due after 50 ms.
    station.network.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    assert!(station.network.recv(&mut [0; 2000]).is_err(), "it was announced");
    assert_eq!(station.driver.save(), before);
}

#[test]
fn a_driver_that_does_not_announce_is_not_asked() {
    let mut station = Station::blank(GuestRam::new(Layout::for_bytes(RAM_BYTES).unwrap()).unwrap(), false);
    assert!(station.driver.negotiate(!(1 << VIRTIO_NET_F_GUEST_ANNOUNCE)));
    station.driver.on(RX).set_up_queue();
    station.driver.set(VIRTIO_MMIO_STATUS, VIRTIO_CONFIG_S_DRIVER_OK);
    station.runs();
    station.nic.announce();
    station.read(2000);
    station.read(2000);
    assert_eq!(station.config(6), VIRTIO_NET_S_LINK_UP as u16);
}

#[test]
fn golden_network_interface() {
    let mut station = Station::ready();
    station.make_room(BUFFERS, 1514);
    station.network.send(&headed(&frame(MAC, "golden"))).unwrap();
    station.hears(1);
    station.driver.transport.close();
    let there = Station::blank(Arc::clone(&station.driver.ram), true);
    golden::holds(&station.driver, &there.driver);
}

#[test]
fn another_interface_s_state_is_refused() {
    let station = Station::ready();
    let mut state = station.driver.save();
    let mac = state.len() - 1;
    state[mac] ^= 1;
    crate::state::restamp(&mut state);
    let error = station.driver.restore(&state).unwrap_err().to_string();
    assert!(error.contains("MAC address: it is another interface's"), "{error}");
}

#[test]
fn hostile_queues_break_the_device_not_the_host() {
    let mut station = Station::ready();
    let driver = station.driver.on(TX);
    let head = driver.chain(&[(BUFFERS, 4, 0)]);
    driver.offer(head);
    driver.notify();
    assert!(driver.needs_reset(), "a frame without a header");
    let mut station = Station::ready();
    let driver = station.driver.on(CONTROL);
    let head = driver.chain(&[(BUFFERS, 2, 0)]);
    driver.offer(head);
    driver.notify();
    assert!(driver.needs_reset(), "a command without room for its outcome");
    let mut station = Station::ready();
    let driver = station.driver.on(RX);
    let head = driver.chain(&[(RAM_BYTES - 4, 64, WRITE)]);
    driver.offer(head);
    driver.notify();
    station.network.send(&headed(&frame(MAC, "into nowhere"))).unwrap();
    wait_until("the device gives up", || station.driver.needs_reset());
}
