//! The guest's devices: a bus that finds them by address, and what they are.
//!
//! A device is behaviour over a plain state struct that goes into the saved state. Devices work only inside a vCPU's
//! exit or under [`Bus`]'s owner; once all vCPUs are parked, every request is done, none half-way.

mod console;
mod power;
mod serial;
pub mod virtio;

use std::ops::Range;
use std::sync::Arc;

pub use console::{Console, ConsoleReader, Heard};
pub use power::{
    KEYBOARD_COMMAND, KIND as POWER_KIND, PM1_CONTROL, PM1_END, PM1_EVENTS, PowerManagement, PowerState,
    RESET_CONTROL, RESET_NOW, ResetControl, SCI,
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

/// A device at addresses of its own. vCPUs come at the same time: each device locks its own state.
///
/// It is given whole accesses. At memory addresses that is one access of 1, 2, 4 or 8 bytes. At I/O ports KVM does not
/// tell a wide access from several (`rep outsb`): a device knows how wide its registers are.
pub trait Device: Send + Sync {
    /// The guest reads at `offset` from the device's first address.
    fn read(&self, offset: u64, data: &mut [u8]);

    /// The guest writes there; says so if that ends the guest.
    fn write(&self, offset: u64, data: &[u8]) -> Option<End>;
}

/// The devices by address. Built once, then only read.
#[derive(Default)]
pub struct Bus {
    ports: Map,
    memory: Map,
}

impl Bus {
    /// Puts a device at I/O ports.
    ///
    /// # Panics
    /// When the ports are taken.
    pub fn add_ports(&mut self, ports: Range<u16>, device: Arc<dyn Device>) {
        self.ports.add(u64::from(ports.start)..u64::from(ports.end), device);
    }

    /// Puts a device at memory addresses.
    ///
    /// # Panics
    /// When the addresses are taken.
    pub fn add_memory(&mut self, addresses: Range<u64>, device: Arc<dyn Device>) {
        self.memory.add(addresses, device);
    }

    /// The guest reads a port. Where nothing is, all bits are ones.
    pub fn port_read(&self, port: u16, data: &mut [u8]) {
        // Several accesses to a device's last port are as long as one that goes beyond it: only the port is checked.
        match self.ports.find(port.into(), 1) {
            Some((device, offset)) => device.read(offset, data),
            None => data.fill(0xff),
        }
    }

    /// The guest writes a port.
    pub fn port_write(&self, port: u16, data: &[u8]) -> Option<End> {
        let (device, offset) = self.ports.find(port.into(), 1)?;
        device.write(offset, data)
    }

    /// The guest reads memory that is not RAM. Where nothing is, or not only one device, all bits are ones.
    pub fn memory_read(&self, address: u64, data: &mut [u8]) {
        match self.memory.find(address, data.len()) {
            Some((device, offset)) => device.read(offset, data),
            None => data.fill(0xff),
        }
    }

    /// The guest writes memory that is not RAM.
    pub fn memory_write(&self, address: u64, data: &[u8]) -> Option<End> {
        let (device, offset) = self.memory.find(address, data.len())?;
        device.write(offset, data)
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

    /// The device that has all of these bytes, and where in it they begin.
    fn find(&self, address: u64, bytes: usize) -> Option<(&dyn Device, u64)> {
        let at = self.devices.partition_point(|(known, _)| known.end <= address);
        let (range, device) = self.devices.get(at)?;
        let inside = range.start <= address && bytes as u64 <= range.end - address;
        inside.then(|| (device.as_ref(), address - range.start))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads as where, and how wide.
    struct Echo;

    impl Device for Echo {
        fn read(&self, offset: u64, data: &mut [u8]) {
            data.fill((offset as u8) << 4 | data.len() as u8);
        }

        fn write(&self, _: u64, data: &[u8]) -> Option<End> {
            data.contains(&9).then_some(End::Reset)
        }
    }

    #[test]
    fn accesses_find_their_device_whole_and_nothing_reads_as_ones() {
        let mut bus = Bus::default();
        bus.add_ports(0x60..0x65, Arc::new(Echo));
        bus.add_ports(0x10..0x20, Arc::new(Echo));
        bus.add_memory(0x1000..0x1006, Arc::new(Echo));
        let mut data = [0; 2];
        bus.port_read(0x64, &mut data);
        assert_eq!(data, [0x42; 2], "perhaps two accesses to one port");
        bus.port_read(0x65, &mut data);
        assert_eq!(data, [0xff; 2]);
        let mut data = [0; 4];
        for (address, expected) in
            [(0xfff, 0xff), (0x1000, 0x04), (0x1002, 0x24), (0x1003, 0xff), (0x1006, 0xff)]
        {
            bus.memory_read(address, &mut data);
            assert_eq!(data, [expected; 4], "{address:#x}");
        }
        assert_eq!(bus.port_write(0x10, &[1, 9]), Some(End::Reset));
        assert_eq!(bus.port_write(0x30, &[9]), None);
        assert_eq!(bus.memory_write(0x1004, &[1, 9]), Some(End::Reset));
        assert_eq!(bus.memory_write(0x1005, &[1, 9]), None);
    }

    #[test]
    #[should_panic(expected = "are taken")]
    fn two_devices_cannot_share_an_address() {
        let mut bus = Bus::default();
        bus.add_ports(0x10..0x20, Arc::new(Echo));
        bus.add_ports(0x1f..0x21, Arc::new(Echo));
    }
}
