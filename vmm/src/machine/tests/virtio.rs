//! Virtio devices in a machine: where the guest finds them, and disks that move.

use std::path::Path;

use super::life::{run_kernel, tiny_kernel};
use super::*;
use crate::config::DiskConfig;

fn image() -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(1 << 20).unwrap();
    file
}

fn disk(path: &Path, more: &str) -> DiskConfig {
    format!("{}{more}", path.display()).parse().unwrap()
}

/// A machine with a kernel that halts and these disks.
fn with_disks(disks: Vec<DiskConfig>) -> Result<Machine<Paused>, MachineError> {
    let kernel = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(kernel.path(), tiny_kernel(&[0xf4])).unwrap();
    let config = MachineConfig { kernel: Kernel::File(kernel.path().into()), disks, ..config(1, "") };
    Machine::boot(&config, Console::new())
}

#[test]
#[cfg_attr(no_kvm, ignore = "needs /dev/kvm")]
fn a_kernel_finds_a_device_at_the_first_slot() {
    #[rustfmt::skip]
    let kernel: &[u8] = &[
        0xbb, 0, 0, 0, 0xd0,          // mov ebx, 0xd0000000
        0x8b, 0x03,                   // mov eax, [ebx]: "virt"
        0x66, 0xba, 0xf8, 0x03,       // mov dx, 0x3f8
        0xee,                         // out dx, al
        0x8b, 0x43, 0x08,             // mov eax, [ebx + 8]: the device's kind
        0x04, b'0', 0xee,             // add al, '0'; out dx, al
        0x66, 0xba, 0x05, 0x06, 0xb0, 0x20, 0xee, // mov dx, 0x605; mov al, 0x20; out dx, al
    ];
    let (output, ended) = run_kernel(&tiny_kernel(kernel)).unwrap();
    assert_eq!((output.as_slice(), ended.end), (&b"v4"[..], End::Shutdown));
}

#[test]
#[cfg_attr(no_kvm, ignore = "needs /dev/kvm")]
fn the_demo_guest_has_no_virtio_devices() {
    let machine = Machine::boot(&config(1, ""), Console::new()).unwrap();
    assert_eq!(machine.board().virtio_slots(), []);
    assert_eq!((machine.description().devices.len(), machine.description().disks.len()), (2, 0));
}

#[test]
#[cfg_attr(no_kvm, ignore = "needs /dev/kvm")]
fn disks_move_with_the_guest_and_only_one_machine_has_them() {
    let (one, two) = (image(), image());
    let disks = || vec![disk(one.path(), ",serial=root"), disk(two.path(), ",ro")];
    let from = with_disks(disks()).unwrap();
    let slots = from.board().virtio_slots();
    let places: Vec<_> = slots.iter().map(|slot| (slot.address, slot.gsi)).collect();
    assert_eq!(places, [(0xd000_0000, 16), (0xd000_1000, 17), (0xd000_2000, 18)]);
    let error = with_disks(disks()).unwrap_err().to_string();
    assert!(error.contains("is in use: stop the machine that has it"), "{error}");

    let description = from.description();
    assert_eq!(description.unsupported(&supply(), &CpuChoice::default()), [""; 0]);
    let mut to = Machine::blank(&description, Console::new()).unwrap();
    assert_eq!((to.board().virtio_slots(), &to.description().disks), (slots, &description.disks));
    let state = from.save().unwrap();
    to.restore(&state).unwrap();
    assert!(to.take_disks().is_err());
    from.hand_over_disks().unwrap();
    to.take_disks().unwrap();
    assert!(from.take_disks().is_err());
    drop(to);
    from.take_disks().unwrap();
}

#[test]
#[cfg_attr(no_kvm, ignore = "needs /dev/kvm")]
fn a_host_without_the_guests_disks_says_so_before() {
    let (one, two) = (image(), image());
    let from = with_disks(vec![disk(one.path(), ""), disk(two.path(), ",ro")]).unwrap();
    let description = from.description();
    one.as_file().set_len(2 << 20).unwrap();
    let path = two.path().display().to_string();
    drop(two);
    let reasons = description.unsupported(&supply(), &CpuChoice::default());
    let [size, missing] = reasons.as_slice() else { panic!("{reasons:?}") };
    assert!(size.contains("has 2097152 bytes here, the guest's has 1048576"), "{size}");
    assert!(missing.starts_with(&format!("cannot open disk {path}: ")), "{missing}");
    assert!(Machine::blank(&description, Console::new()).is_err());

    let without = MachineDescription { disks: Vec::new(), ..description };
    let mut other = Machine::blank(&without, Console::new()).unwrap();
    let error = other.restore(&from.save().unwrap()).unwrap_err().to_string();
    assert!(error.contains("number of disks"), "{error}");
    let error = with_disks(vec![disk(one.path(), ",ro"); 8]).unwrap_err().to_string();
    assert!(
        error.contains(
            "8 disks, 0 network interfaces and 0 virtio consoles are more than a guest can have: at most 7 together"
        ),
        "{error}"
    );
}

/// Code for a kernel that starts the driver of the device in the slot after the rng's: its ring of one transmit queue at
/// 0x10000 holds "hvc" as one request.
#[rustfmt::skip]
fn writes_to_a_virtio_console() -> Vec<u8> {
    // mov dword [ebx + register], value
    let set = |register: u32, value: u32| [&[0xc7, 0x83][..], &register.to_le_bytes(), &value.to_le_bytes()].concat();
    // mov dword [address], value
    let put = |address: u32, value: u32| [&[0xc7, 0x05][..], &address.to_le_bytes(), &value.to_le_bytes()].concat();
    [
        vec![0xbb, 0, 0x10, 0, 0xd0],                            // mov ebx, 0xd0001000
        set(0x70, 3), set(0x24, 1), set(0x20, 1), set(0x70, 11), // ACKNOWLEDGE, DRIVER; VERSION_1; FEATURES_OK
        set(0x30, 1), set(0x38, 2),                              // queue 1 has 2 descriptors
        set(0x80, 0x1_0000), set(0x90, 0x1_1000), set(0xa0, 0x1_2000), set(0x44, 1),
        set(0x70, 15),                                           // DRIVER_OK
        put(0x1_3000, u32::from_le_bytes(*b"hvc\0")),
        put(0x1_0000, 0x1_3000), put(0x1_0004, 0), put(0x1_0008, 3), put(0x1_000c, 0),
        put(0x1_1000, 1 << 16), put(0x1_1004, 0),                // one request, descriptor 0
        set(0x50, 1),                                            // queue 1 is called for
        vec![0x66, 0xba, 0xf8, 0x03],                            // mov dx, 0x3f8
        vec![0xa0, 0x02, 0x20, 0x01, 0x00],                      // mov al, [0x12002]: how many were used
        vec![0x04, b'0', 0xee],                                  // add al, '0'; out dx, al
        vec![0xeb, 0xfe],                                        // jmp $
    ].concat()
}

#[test]
#[cfg_attr(no_kvm, ignore = "needs /dev/kvm")]
fn a_virtio_console_is_the_console_and_moves_with_the_guest() {
    let kernel = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(kernel.path(), tiny_kernel(&writes_to_a_virtio_console())).unwrap();
    let kernel = Kernel::File(kernel.path().into());
    let config = MachineConfig { kernel, virtio_console: true, ..config(1, "") };
    let console = Console::new();
    let machine = Machine::boot(&config, console.clone()).unwrap().resume();
    assert!(console.wait_for("hvc1", LONG), "{:?}", console.recent());
    let machine = pause(machine);

    // Its driver has made no room: what is typed while it stands still waits for the serial port.
    console.input(b"typed");
    let description = machine.description();
    assert!(
        description
            .devices
            .iter()
            .any(|device| (device.name.as_str(), device.version) == ("virtio-console", 1))
    );
    assert_eq!(description.unsupported(&supply(), &CpuChoice::default()), [""; 0]);
    let mut there = Machine::blank(&description, Console::new()).unwrap();
    assert_eq!(there.board().virtio_slots(), machine.board().virtio_slots());
    let state = machine.save().unwrap();
    there.restore(&state).unwrap();
    assert_eq!(virtio_and_serial(&there.save().unwrap()), virtio_and_serial(&state));

    let devices =
        description.devices.iter().filter(|device| device.name != "virtio-console").cloned().collect();
    let without = MachineDescription { devices, ..description };
    let error = Machine::blank(&without, Console::new()).unwrap().restore(&state).unwrap_err().to_string();
    assert!(error.contains("number of virtio consoles is 0x1, here 0x0"), "{error}");
}

/// The virtio console's queues, and the input that waits.
fn virtio_and_serial(state: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let stream = crate::state::Stream::read(state, &saved::KINDS).unwrap();
    let console = stream.section(&crate::devices::virtio::CONSOLE_KIND, 0).unwrap();
    let serial = stream.section(&crate::devices::SERIAL_KIND, 0).unwrap();
    assert_eq!(serial.optional(3), Some(&b"typed"[..]));
    (console.optional(5).unwrap().to_vec(), serial.optional(1).unwrap().to_vec())
}
