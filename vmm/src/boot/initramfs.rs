//! Placing the initial file system: at the end of low RAM, where kernels of all ages accept it.

use std::path::Path;

use super::{BootError, read_file, write};
use crate::memory::ram::Mmap;

/// Where it lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Placed {
    pub(super) start: u64,
    pub(super) bytes: u64,
}

/// Linux frees it by the page.
const PAGE: u64 = 4096;

/// Kernels before 3.13 take it below this only (`initrd_addr_max`), and no newer one minds.
const HIGHEST: u64 = 0x3800_0000;

pub(super) fn place(memory: &Mmap, ram_end: u64, kernel_end: u64, path: &Path) -> Result<Placed, BootError> {
    let image = read_file("initramfs", path)?;
    let bytes = image.len() as u64;
    let room_end = ram_end.min(HIGHEST);
    let start =
        room_end.checked_sub(bytes).map(|start| start / PAGE * PAGE).filter(|start| *start >= kernel_end);
    let Some(start) = start else {
        let what = format!("initramfs {} after the kernel", path.display());
        return Err(BootError::TooBig { what, end: kernel_end + bytes, ram: room_end });
    };
    write(memory, start, &image, "the initramfs")?;
    Ok(Placed { start, bytes })
}
