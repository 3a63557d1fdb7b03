//! The guest's devices: a bus that finds them by address, and what they are.
//!
//! A device is behaviour over a plain state struct that goes into the saved state. Devices work only inside a vCPU's
//! exit or under [`Bus`]'s owner; once all vCPUs are parked, every request is done, none half-way.

mod console;
mod power;
mod serial;

use std::ops::Range;
use std::sync::Arc;

pub use console::{Console, ConsoleReader, Heard};
pub use power::{
    KEYBOARD_COMMAND, PM1_CONTROL, PM1_END, PM1_EVENTS, PowerManagement, RESET_CONTROL, RESET_NOW,
    ResetControl,
};
pub use serial::{GSI as SERIAL_GSI, KIND as SERIAL_KIND, PORT as SERIAL_PORT, SerialPort, SerialState};

/// How a guest ends by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// It powered off.
    Shutdown,
    /// It asked for a reset.
    Reset,
    /// A fault while handling a fault while handling a fault.
    TripleFault,
    /// It cannot go on, for a reason that is not its own.
    Failed(String),
}

/// That a guest has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestEnd {
    /// The vCPU on which it happened.
    pub vcpu: u32,
    /// What happened.
    pub end: End,
}

impl std::fmt::Display for GuestEnd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.end {
            End::Shutdown => write!(f, "the guest powered off"),
            End::Reset => write!(f, "the guest asked for a reset"),
            End::TripleFault => write!(f, "the guest met a triple fault on vCPU {}", self.vcpu),
            End::Failed(why) => write!(f, "vCPU {} failed: {why}", self.vcpu),
        }
    }
}

/// A device whose registers are bytes. vCPUs come at the same time: each device locks its own state.
pub trait Device: Send + Sync {
    /// The guest reads the register at `offset` from the device's first address.
    fn read(&self, offset: u64) -> u8;

    /// The guest writes it; says so if that ends the guest.
    fn write(&self, offset: u64, value: u8) -> Option<End>;
}

/// The devices by address. Built once, then only read.
#[derive(Default)]
pub struct Bus {
    ports: Map,
    memory: Map,
}

impl Bus {
    /// Puts a device at I/O ports. Several bytes at one port are several accesses to it (`rep outsb`).
    ///
    /// # Panics
    /// When the ports are taken.
    pub fn add_ports(&mut self, ports: Range<u16>, device: Arc<dyn Device>) {
        self.ports.add(u64::from(ports.start)..u64::from(ports.end), device);
    }

    /// Puts a device at memory addresses. Several bytes are several neighbouring registers.
    ///
    /// # Panics
    /// When the addresses are taken.
    pub fn add_memory(&mut self, addresses: Range<u64>, device: Arc<dyn Device>) {
        self.memory.add(addresses, device);
    }

    /// The guest reads a port. Where nothing is, all bits are ones.
    pub fn port_read(&self, port: u16, data: &mut [u8]) {
        match self.ports.find(port.into()) {
            Some((device, offset)) => data.iter_mut().for_each(|byte| *byte = device.read(offset)),
            None => data.fill(0xff),
        }
    }

    /// The guest writes a port.
    pub fn port_write(&self, port: u16, data: &[u8]) -> Option<End> {
        let (device, offset) = self.ports.find(port.into())?;
        data.iter().find_map(|byte| device.write(offset, *byte))
    }

    /// The guest reads memory that is not RAM. Where nothing is, all bits are ones.
    pub fn memory_read(&self, address: u64, data: &mut [u8]) {
        for (byte, at) in data.iter_mut().zip(address..) {
            *byte = self.memory.find(at).map_or(0xff, |(device, offset)| device.read(offset));
        }
    }

    /// The guest writes memory that is not RAM.
    pub fn memory_write(&self, address: u64, data: &[u8]) -> Option<End> {
        data.iter().zip(address..).find_map(|(byte, at)| {
            let (device, offset) = self.memory.find(at)?;
            device.write(offset, *byte)
        })
    }
}

/// Devices by address, ascending.
#[derive(Default)]
struct Map {
    devices: Vec<(Range<u64>, Arc<dyn Device>)>,
}

impl Map {
    fn add(&mut self, range: Range<u64>, device: Arc<dyn Device>) {
        let at = self.devices.partition_point(|(known, _)| known.end <= range.start);
        let free = self.devices.get(at).is_none_or(|(next, _)| range.end <= next.start);
        assert!(free, "addresses {range:x?} are taken");
        self.devices.insert(at, (range, device));
    }

    fn find(&self, address: u64) -> Option<(&dyn Device, u64)> {
        let at = self.devices.partition_point(|(known, _)| known.end <= address);
        let (range, device) = self.devices.get(at)?;
        range.contains(&address).then(|| (device.as_ref(), address - range.start))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Echo;

    impl Device for Echo {
        fn read(&self, offset: u64) -> u8 {
            offset as u8
        }

        fn write(&self, _: u64, value: u8) -> Option<End> {
            (value == 9).then_some(End::Reset)
        }
    }

    #[test]
    fn accesses_find_their_device_and_nothing_reads_as_ones() {
        let mut bus = Bus::default();
        bus.add_ports(0x60..0x65, Arc::new(Echo));
        bus.add_ports(0x10..0x20, Arc::new(Echo));
        bus.add_memory(0x1000..0x1002, Arc::new(Echo));
        let mut data = [0; 2];
        bus.port_read(0x64, &mut data);
        assert_eq!(data, [4, 4], "two accesses to one port");
        bus.port_read(0x65, &mut data);
        assert_eq!(data, [0xff; 2]);
        let mut data = [0; 4];
        bus.memory_read(0xfff, &mut data);
        assert_eq!(data, [0xff, 0, 1, 0xff]);
        assert_eq!(bus.port_write(0x10, &[1, 9]), Some(End::Reset));
        assert_eq!(bus.port_write(0x30, &[9]), None);
    }

    #[test]
    #[should_panic(expected = "are taken")]
    fn two_devices_cannot_share_an_address() {
        let mut bus = Bus::default();
        bus.add_ports(0x10..0x20, Arc::new(Echo));
        bus.add_ports(0x1f..0x21, Arc::new(Echo));
    }
}
