//! Loading a kernel that is an ELF file.

use std::io::Cursor;

use linux_loader::elf::{EI_CLASS, ELFCLASS64};
use linux_loader::loader::elf::{Elf, PvhBootCapability};
use linux_loader::loader::{KernelLoader, KernelLoaderResult};

use super::{BootError, HIGH};
use crate::memory::ram::Mmap;

/// How a kernel wants to be entered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum WayIn {
    /// At its PVH entry: 32-bit, paging off.
    Pvh(u64),
    /// At Linux's 64-bit entry.
    Linux64 {
        /// Its address.
        entry: u64,
        /// The header that the kernel brought for the zero page; empty when it brought none.
        header: Vec<u8>,
    },
}

/// A kernel in RAM.
#[derive(Debug, Clone)]
pub(super) struct Loaded {
    pub(super) way_in: WayIn,
    /// One past its last byte.
    pub(super) end: u64,
}

/// Loads an ELF image into RAM that ends at `ram_end`.
pub(super) fn load(memory: &Mmap, ram_end: u64, name: &str, image: &[u8]) -> Result<Loaded, BootError> {
    check(name, image)?;
    let segments = segments(name, image)?;
    for (start, end) in &segments {
        let fits = *start >= HIGH && *end <= ram_end;
        if !fits {
            return Err(BootError::TooBig { what: format!("kernel {name}"), end: *end, ram: ram_end });
        }
    }
    let loaded = Elf::load(memory, None, &mut Cursor::new(image), None)
        .map_err(|error| damaged(name, error.to_string()))?;
    let end = segments.iter().map(|(_, end)| *end).max().unwrap_or(0).max(loaded.kernel_end);
    Ok(Loaded { way_in: way_in(&loaded), end })
}

fn way_in(loaded: &KernelLoaderResult) -> WayIn {
    match loaded.pvh_boot_cap {
        PvhBootCapability::PvhEntryPresent(entry) => WayIn::Pvh(entry.0),
        _ => WayIn::Linux64 { entry: loaded.kernel_load.0, header: Vec::new() },
    }
}

/// Says what the file is if it is no kernel for this machine.
fn check(name: &str, image: &[u8]) -> Result<(), BootError> {
    let found = match image {
        [] => "empty",
        [0x7f, b'E', b'L', b'F', ..] if image.get(EI_CLASS) == Some(&ELFCLASS64) => {
            return Ok(());
        }
        [0x7f, b'E', b'L', b'F', ..] => "a 32-bit ELF file",
        [b'M', b'Z', ..] => "an EFI program without Linux's boot header",
        [0x1f, 0x8b, ..] => "compressed with gzip",
        _ => "neither an ELF file nor a bzImage",
    };
    Err(BootError::NotAKernel { kernel: name.into(), found })
}

const HEADER_BYTES: usize = 64;
const SEGMENT_BYTES: usize = 56;
const PT_LOAD: u64 = 1;

/// First and one past the last byte of each segment in memory (System V ABI, chapter 5).
fn segments(name: &str, image: &[u8]) -> Result<Vec<(u64, u64)>, BootError> {
    let cut = || damaged(name, "it ends within its headers".into());
    if image.len() < HEADER_BYTES {
        return Err(cut());
    }
    let (offset, count) = (number(image, 32, 8) as usize, number(image, 56, 2) as usize);
    let table =
        offset.checked_add(count * SEGMENT_BYTES).and_then(|end| image.get(offset..end)).ok_or_else(cut)?;
    let mut segments = Vec::new();
    for header in table.chunks_exact(SEGMENT_BYTES).filter(|header| number(header, 0, 4) == PT_LOAD) {
        let [at, start, in_file, in_memory] = [8, 24, 32, 40].map(|field| number(header, field, 8));
        if at.checked_add(in_file).is_none_or(|end| end > image.len() as u64) || in_file > in_memory {
            return Err(damaged(name, "it ends within a segment".into()));
        }
        let end = start.checked_add(in_memory).ok_or_else(cut)?;
        segments.push((start, end));
    }
    if segments.is_empty() { Err(damaged(name, "it has nothing to load".into())) } else { Ok(segments) }
}

/// A little-endian number.
pub(super) fn number(bytes: &[u8], at: usize, count: usize) -> u64 {
    let mut wide = [0; 8];
    wide[..count].copy_from_slice(&bytes[at..at + count]);
    u64::from_le_bytes(wide)
}

pub(super) fn damaged(name: &str, why: String) -> BootError {
    BootError::Damaged { kernel: name.into(), why }
}
