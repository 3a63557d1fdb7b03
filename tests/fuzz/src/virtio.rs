//! Virtio devices with a driver that does anything: registers, rings, and what comes from outside, in any order.
//!
//! ```text
//! script = device (8 bits), step*      device: 0 rng, 1 disk, 2 disk that is only read, 3 network, 4 console
//! step   = what (8 bits), then
//!   0 writes register with*4 (8 bits) = value (32 bits)        5 lets the machine stand still
//!   1 reads it, as wide as what/16 says                        6 lets it run
//!   2 puts counted bytes at an address (32 bits)               7 hurries it
//!   3 brings counted bytes from outside                        8 saves it and restores what was saved
//!   4 sets up queue (8 bits): its rings where seeds have them
//! ```

use std::os::unix::net::UnixDatagram;
use std::sync::Arc;

use vm_memory::{Bytes, GuestAddress};
use vmm::config::DiskAccess;
use vmm::devices::virtio::{MmioTransport, Nic, VirtioConsole};
use vmm::devices::{Console, Device};
use vmm::memory::ram::GuestRam;
use vmm::state::{Stream, StreamWriter};

use crate::devices;
use crate::script::{Script, counted};

const STEPS: u8 = 9;
/// Steps of one script: more only take time.
const MOST_STEPS: usize = 512;

/// Where [`Driver::set_up`] puts a queue's rings; the next queue's so far behind.
const DESCRIPTORS: u32 = 0x1000;
const AVAIL: u32 = 0x2000;
const USED: u32 = 0x3000;
const NEXT_QUEUE: u32 = 0x1_0000;
const QUEUE_SIZE: u32 = 16;
const BUFFERS: u32 = 0x10_0000;

/// Registers (virtio 1.2, section 4.2.2).
const DRIVER_FEATURES: u32 = 0x20;
const DRIVER_FEATURES_SELECT: u32 = 0x24;
const QUEUE_SELECT: u32 = 0x30;
const QUEUE_SIZE_NOW: u32 = 0x38;
const QUEUE_READY: u32 = 0x44;
const NOTIFY: u32 = 0x50;
const STATUS: u32 = 0x70;
const RINGS: [u32; 3] = [0x80, 0x90, 0xa0];

pub(crate) fn run(input: &[u8]) {
    let mut script = Script::new(input);
    let mut driver = Driver::of(script.u8());
    assert!(!driver.transport.open(), "a device after reset has nothing left over");
    for _ in 0..MOST_STEPS {
        if script.is_over() {
            break;
        }
        driver.step(&mut script);
    }
}

/// A device, the memory of its guest, and what is outside.
struct Driver {
    ram: Arc<GuestRam>,
    transport: Arc<MmioTransport>,
    outside: Outside,
}

enum Outside {
    Nothing,
    Network(Nic, UnixDatagram),
    Keyboard(Console, #[expect(dead_code, reason = "keeps its thread")] VirtioConsole),
}

impl Driver {
    fn of(device: u8) -> Self {
        let ram = devices::ram();
        let (transport, outside) = match device % 5 {
            0 => (devices::rng(&ram), Outside::Nothing),
            1 => (devices::disk(&ram, DiskAccess::ReadWrite), Outside::Nothing),
            2 => (devices::disk(&ram, DiskAccess::ReadOnly), Outside::Nothing),
            3 => {
                let (nic, network) = devices::nic(&ram);
                nic.listen();
                (Arc::clone(nic.transport()), Outside::Network(nic, network))
            }
            _ => {
                let (port, console) = devices::console(&ram);
                (Arc::clone(port.transport()), Outside::Keyboard(console, port))
            }
        };
        Self { ram, transport, outside }
    }

    fn step(&mut self, script: &mut Script<'_>) {
        let what = script.u8();
        match what % STEPS {
            0 => {
                let register = u32::from(script.u8()) * 4;
                self.write(register, script.u32());
            }
            1 => {
                let mut data = [0; 8];
                let width = 1 << (what / 16 % 4);
                self.transport.read(u64::from(script.u8()) * 4, &mut data[..width]);
            }
            2 => {
                let at = GuestAddress(script.u32().into());
                // What is not RAM a guest cannot write either.
                let _ = self.ram.mmap().write(script.counted(), at);
            }
            3 => self.bring(script.counted()),
            4 => self.set_up(script.u8().into()),
            5 => self.transport.close(),
            6 => {
                if self.transport.open() {
                    self.transport.serve_left_over();
                }
                self.transport.moved();
            }
            7 => self.transport.hurry(),
            _ => self.hop(),
        }
    }

    fn write(&self, register: u32, value: u32) {
        assert_eq!(self.transport.write(register.into(), &value.to_le_bytes()), None);
    }

    fn bring(&self, bytes: &[u8]) {
        match &self.outside {
            Outside::Nothing => {}
            Outside::Network(nic, network) => {
                if bytes.len().is_multiple_of(2) {
                    nic.bring(bytes);
                } else {
                    // A network that is full loses packets.
                    let _ = network.send(bytes);
                }
                while network.recv(&mut [0; 2048]).is_ok() {}
            }
            Outside::Keyboard(console, _) => {
                console.input(bytes);
            }
        }
    }

    fn set_up(&self, queue: u32) {
        self.write(QUEUE_SELECT, queue);
        self.write(QUEUE_SIZE_NOW, QUEUE_SIZE);
        for (register, ring) in RINGS.into_iter().zip([DESCRIPTORS, AVAIL, USED]) {
            self.write(register, ring.wrapping_add(queue * NEXT_QUEUE));
        }
        self.write(QUEUE_READY, 1);
    }

    /// What a driver can bring a device to can be saved, and restored, and is the same then.
    fn hop(&self) {
        self.transport.hurry();
        self.transport.close();
        let kind = *self.transport.kind();
        let save = || {
            let mut stream = StreamWriter::new(Vec::new());
            stream.section(&kind, 0, |section| self.transport.save(section));
            stream.finish()
        };
        let saved = save();
        let stream = Stream::read(&saved, std::slice::from_ref(&kind)).expect("what was saved is read");
        let image = self.transport.image(stream.section(&kind, 0).expect("its section"));
        self.transport.restore(image.expect("what was saved is restored"));
        assert!(save() == saved, "what was restored is what was saved");
    }
}

pub(crate) fn seeds() -> Vec<(String, Vec<u8>)> {
    let of = |name: &str, steps: Steps| (name.to_owned(), steps.0);
    let write = Steps::WRITE;
    let head = |kind: u32, sector: u64| [&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat();
    let data = BUFFERS + 0x1000;
    let status = BUFFERS + 0x3000;
    let disk = |device: u8, kind: u32, piece: (u32, u32, u16)| {
        let pieces = [(BUFFERS, 16, 0), piece, (status, 1, write)];
        Steps::ready(device, &[0]).put(BUFFERS, &head(kind, 1)).request(0, &pieces).read_all()
    };
    let range = [&1_u64.to_le_bytes()[..], &2_u32.to_le_bytes(), &[0; 4]].concat();
    vec![
        of("rng", Steps::ready(0, &[0]).request(0, &[(data, 64, write)]).request(0, &[(data, 64, write)])),
        of("disk-in", disk(1, 0, (data, 512, write)).hop()),
        of("disk-out", disk(1, 1, (data, 512, 0))),
        of("disk-id", disk(2, 8, (data, 20, write))),
        of("disk-read-only", disk(2, 1, (data, 512, 0))),
        of("disk-flush", disk(1, 4, (data, 0, 0))),
        of("disk-discard", disk(1, 11, (BUFFERS + 0x10, 16, 0)).put(BUFFERS + 0x10, &range)),
        of(
            "disk-zeroes",
            Steps::ready(1, &[0])
                .put(BUFFERS + 16, &range)
                .put(BUFFERS, &head(13, 0))
                .request(0, &[(BUFFERS, 32, 0), (status, 1, write)]),
        ),
        of("indirect", indirect()),
        of("net", net(data)),
        of(
            "console",
            Steps::ready(4, &[0, 1])
                .put(data, b"said")
                .request(1, &[(data, 4, 0)])
                .request(0, &[(data, 64, write)])
                .bring(b"typed"),
        ),
        of("hurried", Steps::ready(0, &[0]).step(7, &[]).request(0, &[(data, 8, write)]).hop().step(6, &[])),
    ]
}

fn indirect() -> Steps {
    let table = [
        descriptor(BUFFERS + 0x1000, 8, Steps::WRITE | Steps::NEXT, 1),
        descriptor(BUFFERS + 0x2000, 8, Steps::WRITE, 0),
    ];
    Steps::ready(0, &[0]).put(BUFFERS, &table.concat()).request(0, &[(BUFFERS, 32, 4)])
}

fn net(data: u32) -> Steps {
    let frame = [&[0; 12][..], &[2, 0, 0, 0, 0, 7], &[6; 6], &[8, 0], &[1; 47]].concat();
    Steps::ready(3, &[0, 1, 2])
        .request(0, &[(data, 1600, Steps::WRITE)])
        .bring(&frame)
        .put(data + 0x1000, &frame)
        .request(1, &[(data + 0x1000, frame.len() as u32, 0)])
        .put(data + 0x2000, &[3, 0])
        .request(2, &[(data + 0x2000, 2, 0), (data + 0x2002, 1, Steps::WRITE)])
        .step(5, &[])
        .step(6, &[])
        .bring(&frame[1..])
}

fn descriptor(at: u32, bytes: u32, flags: u16, next: u16) -> Vec<u8> {
    let mut descriptor = u64::from(at).to_le_bytes().to_vec();
    descriptor.extend(bytes.to_le_bytes());
    descriptor.extend(flags.to_le_bytes());
    descriptor.extend(next.to_le_bytes());
    descriptor
}

/// Steps of a script, for seeds.
struct Steps(Vec<u8>, [u16; 3]);

impl Steps {
    const NEXT: u16 = 1;
    const WRITE: u16 = 2;

    /// A driver that has taken all features and set up these queues.
    fn ready(device: u8, queues: &[u8]) -> Self {
        let negotiated = Self(vec![device], [0; 3])
            .register(STATUS, 3)
            .register(DRIVER_FEATURES_SELECT, 1)
            .register(DRIVER_FEATURES, 1)
            .register(STATUS, 8);
        let set_up = queues.iter().fold(negotiated, |steps, queue| steps.step(4, &[*queue]));
        set_up.register(STATUS, 4)
    }

    fn register(self, register: u32, value: u32) -> Self {
        self.step(0, &[&[(register / 4) as u8][..], &value.to_le_bytes()].concat())
    }

    fn put(self, at: u32, bytes: &[u8]) -> Self {
        self.step(2, &[&at.to_le_bytes()[..], &counted(bytes)].concat())
    }

    fn bring(self, bytes: &[u8]) -> Self {
        self.step(3, &counted(bytes))
    }

    fn hop(self) -> Self {
        self.step(8, &[])
    }

    /// Registers and configuration space, at all widths.
    fn read_all(self) -> Self {
        let wide = |steps: Self, width: u8| {
            [0, 2, 0x1c, 0x40, 0x41].iter().fold(steps, |steps, at| steps.step(1 | width << 4, &[*at]))
        };
        (0..4).fold(self, |steps, width| wide(steps, width * 9 % 16))
    }

    /// A request of (address, bytes, flags), offered and called for.
    fn request(mut self, queue: u8, pieces: &[(u32, u32, u16)]) -> Self {
        let base = u32::from(queue) * NEXT_QUEUE;
        let number = self.1[usize::from(queue)];
        self.1[usize::from(queue)] += 1;
        let table: Vec<u8> = (0..)
            .zip(pieces)
            .flat_map(|(at, (address, bytes, flags))| {
                let more = if usize::from(at) + 1 < pieces.len() { Self::NEXT } else { 0 };
                descriptor(*address, *bytes, flags | more, at + 1)
            })
            .collect();
        let slot = u32::from(number) % QUEUE_SIZE;
        self.put(base + DESCRIPTORS, &table)
            .put(base + AVAIL + 4 + slot * 2, &[0, 0])
            .put(base + AVAIL + 2, &(number + 1).to_le_bytes())
            .register(NOTIFY, queue.into())
    }

    fn step(mut self, what: u8, with: &[u8]) -> Self {
        self.0.push(what);
        self.0.extend(with);
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_are_served() {
        for (name, seed) in seeds() {
            let mut script = Script::new(&seed);
            let mut driver = Driver::of(script.u8());
            assert!(!driver.transport.open());
            while !script.is_over() {
                driver.step(&mut script);
            }
            let queue = if matches!(name.as_str(), "net" | "console") { NEXT_QUEUE } else { 0 };
            let used: u16 = driver.ram.mmap().read_obj(GuestAddress((USED + queue + 2).into())).unwrap();
            assert!(used > 0, "{name}: a request was given back");
        }
    }
}
