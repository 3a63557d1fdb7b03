//! Kernels and their loaders: whatever a file has in it, it is loaded or refused by name.
//!
//! An input is the kernel, behind a number that says how long its initramfs is made.

use std::sync::{Arc, LazyLock};

use vmm::boot;
use vmm::config::{BootConfig, Kernel, OnReset};
use vmm::devices::virtio::MmioSlot;
use vmm::memory::ram::GuestRam;

use crate::devices::{self, RAM_BYTES};
use crate::script::Script;

pub(crate) fn run(input: &[u8]) {
    // Loaders only write it, so one will do for all inputs.
    static RAM: LazyLock<Arc<GuestRam>> = LazyLock::new(devices::ram);
    let mut script = Script::new(input);
    // Of 64 KiB: from none to more than there is RAM.
    let initramfs = usize::from(script.u8()) << 16;
    let (_kernel, kernel) = devices::file(script.rest());
    let (modules, path) = devices::file(&[]);
    modules.set_len(initramfs as u64).expect("the host has memory");
    let boot = BootConfig {
        kernel: Kernel::File(kernel),
        initramfs: (initramfs > 0 && initramfs as u64 <= RAM_BYTES / 4).then_some(path),
        cmdline: "quiet".parse().expect("a command line that can be"),
        on_reset: OnReset::End,
    };
    let slot = MmioSlot { address: 0xd000_0000, bytes: 0x1000, gsi: 16 };
    if let Err(error) = boot::load(&RAM, &boot, 2, 2_000_000, &[slot]) {
        assert!(!error.to_string().is_empty());
    }
}

pub(crate) fn seeds() -> Vec<(String, Vec<u8>)> {
    let with = |initramfs: u8, kernel: Vec<u8>| [vec![initramfs], kernel].concat();
    vec![
        ("bzimage".to_owned(), with(0, bzimage())),
        ("bzimage-initramfs".to_owned(), with(2, bzimage())),
        ("elf".to_owned(), with(0, elf(false))),
        ("elf-pvh".to_owned(), with(1, elf(true))),
        ("gzip".to_owned(), with(0, vec![0x1f, 0x8b, 8, 0])),
    ]
}

/// Fields by Documentation/arch/x86/boot.rst: one sector of setup, 64-bit entry, preferring 2 MiB.
fn bzimage() -> Vec<u8> {
    let mut image = vec![0; 2 * 512];
    for (at, value) in [
        (0x1f1, &[1][..]),
        (0x201, &[0x62]),
        (0x202, b"HdrS"),
        (0x206, &[0x0f, 2]),
        (0x211, &[1]),
        (0x236, &[3, 0]),
        (0x258, &(2_u64 << 20).to_le_bytes()),
        (0x260, &(1_u32 << 20).to_le_bytes()),
    ] {
        image[at..at + value.len()].copy_from_slice(value);
    }
    image.extend([0xf4; 64]);
    image
}

/// One segment of code at 1 MiB, and a note with a PVH entry (System V ABI, chapter 5).
fn elf(pvh: bool) -> Vec<u8> {
    const HEADER: u64 = 64;
    const SEGMENT: u64 = 56;
    let (code, note) = (HEADER + 2 * SEGMENT, HEADER + 2 * SEGMENT + 16);
    let mut image = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    image.extend([2, 0, 62, 0, 1, 0, 0, 0]);
    // Entry, program headers, section headers.
    [0x10_0000, HEADER, 0].iter().for_each(|word| image.extend(word.to_le_bytes()));
    image.extend([0; 4]);
    [HEADER as u16, SEGMENT as u16, if pvh { 2 } else { 1 }, 0, 0, 0]
        .iter()
        .for_each(|half| image.extend(half.to_le_bytes()));
    let segment = |kind: u32, at: u64, address: u64, bytes: u64, align: u64| {
        let mut header = kind.to_le_bytes().to_vec();
        header.extend(5_u32.to_le_bytes());
        for word in [at, address, address, bytes, bytes, align] {
            header.extend(word.to_le_bytes());
        }
        header
    };
    image.extend(segment(1, code, 0x10_0000, 16, 4096));
    image.extend(segment(4, note, 0, 20, 4));
    image.extend([0xf4; 16]);
    // XEN_ELFNOTE_PHYS32_ENTRY.
    [4_u32, 4, 18].iter().for_each(|word| image.extend(word.to_le_bytes()));
    image.extend(b"Xen\0");
    image.extend(0x10_0000_u32.to_le_bytes());
    image
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_seeds_are_kernels() {
        let ram = devices::ram();
        for (name, seed) in seeds() {
            let (_open, path) = devices::file(&seed[1..]);
            let boot = BootConfig {
                kernel: Kernel::File(path),
                initramfs: None,
                cmdline: "".parse().unwrap(),
                on_reset: OnReset::End,
            };
            let loaded = boot::load(&ram, &boot, 1, 1, &[]);
            assert_eq!(loaded.is_ok(), name != "gzip", "{name}: {loaded:?}");
        }
    }
}
