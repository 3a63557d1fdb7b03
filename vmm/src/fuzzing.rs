//! The door for `tests/fuzz` to what is not public and reads bytes from outside. Nothing else goes through it.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use crate::devices::virtio::{MmioTransport, Tap};
use crate::devices::{Console, PowerManagement, SerialPort};
use crate::machine::{KINDS, MachineDescription, Saved};
use crate::state::{StateError, Stream};

/// Reads a saved state as an arriving machine does, and puts it in place as far as no KVM is needed: in a serial port, power
/// management, and `devices`, each the first of its kind. The pages that its vCPUs touch first, where guest memory reads
/// as `read` says.
///
/// # Errors
/// As for the machine's own.
pub fn restore(
    state: &[u8],
    shape: &MachineDescription,
    devices: &[Arc<MmioTransport>],
    read: impl Fn(u64) -> Option<u64>,
) -> Result<Vec<u64>, StateError> {
    let stream = Stream::read(state, &KINDS)?;
    let saved = Saved::read(&stream, shape)?;
    let images = devices.iter().map(|device| device.image(stream.section(device.kind(), 0)?));
    let images = images.collect::<Result<Vec<_>, StateError>>()?;
    let pages = saved.vcpus.iter().flat_map(|vcpu| vcpu.first_pages(&read)).collect();
    SerialPort::new(Console::new(), Arc::new(|| ())).set_state(saved.serial);
    PowerManagement::new(Arc::new(|_| ())).set_state(saved.power);
    devices.iter().zip(images).for_each(|(device, image)| device.restore(image));
    Ok(pages)
}

/// Anything that keeps frames apart, in a tap's place.
#[must_use]
pub fn tap(fd: OwnedFd) -> Tap {
    Tap::from_fd(fd)
}
