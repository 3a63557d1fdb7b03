//! Virtio devices without a machine: memory in the place of disks, a pair of sockets in the place of a tap.

use std::io::Write;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::sync::Arc;

use rustix::fs::{MemfdFlags, memfd_create};
use vmm::config::{DiskAccess, DiskSerial};
use vmm::devices::Console;
use vmm::devices::virtio::{Block, DiskImage, MmioTransport, Nic, Rng, VirtioConsole};
use vmm::fuzzing;
use vmm::memory::layout::Layout;
use vmm::memory::ram::GuestRam;

/// As little RAM as there can be.
pub(crate) const RAM_BYTES: u64 = 16 << 20;
const DISK_BYTES: usize = 96 * 512;

/// Blank RAM.
pub(crate) fn ram() -> Arc<GuestRam> {
    let layout = Layout::for_bytes(RAM_BYTES).expect("a layout that can be");
    GuestRam::new(layout).expect("the host has memory")
}

/// A file without a folder, and a path to it for as long as it is open.
pub(crate) fn file(content: &[u8]) -> (std::fs::File, PathBuf) {
    let fd = memfd_create("fuzz", MemfdFlags::CLOEXEC).expect("the host has memory");
    let mut file = std::fs::File::from(fd);
    file.write_all(content).expect("the host has memory");
    let path = format!("/proc/self/fd/{}", file.as_raw_fd()).into();
    (file, path)
}

fn silent() -> Arc<dyn Fn() + Send + Sync> {
    Arc::new(|| ())
}

pub(crate) fn rng(ram: &Arc<GuestRam>) -> Arc<MmioTransport> {
    MmioTransport::new(Box::new(Rng), Arc::clone(ram), silent())
}

pub(crate) fn disk(ram: &Arc<GuestRam>, access: DiskAccess) -> Arc<MmioTransport> {
    let (_open, path) = file(&[0x55; DISK_BYTES]);
    let image = Arc::new(DiskImage::open(&path, access).expect("a disk that can be"));
    let serial: DiskSerial = "golden".parse().expect("a serial that can be");
    MmioTransport::new(Box::new(Block::new(image, serial)), Arc::clone(ram), silent())
}

/// A network interface, and the network.
pub(crate) fn nic(ram: &Arc<GuestRam>) -> (Nic, UnixDatagram) {
    let (near, network) = UnixDatagram::pair().expect("the host has sockets");
    for end in [&near, &network] {
        end.set_nonblocking(true).expect("a socket");
    }
    let tap = Arc::new(fuzzing::tap(OwnedFd::from(near)));
    let mac = "02:00:00:00:00:07".parse().expect("an address that can be");
    let nic = Nic::connect(tap, mac, false, Arc::clone(ram), silent()).expect("the host has threads");
    (nic, network)
}

pub(crate) fn console(ram: &Arc<GuestRam>) -> (VirtioConsole, Console) {
    let console = Console::new();
    let port = VirtioConsole::connect(console.clone(), Arc::clone(ram), silent());
    (port.expect("the host has threads"), console)
}
