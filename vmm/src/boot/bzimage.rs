//! Loading Linux as distributions ship it: a bzImage, whose decompressor the guest runs itself.
//!
//! Fields by the offsets of the kernel's Documentation/arch/x86/boot.rst. Entered in 64-bit mode, as its section
//! "64-bit Boot Protocol" has it.

use super::elf::{Loaded, WayIn, damaged, number};
use super::{BootError, HIGH, write};
use crate::memory::ram::Mmap;

/// First byte of the header, which goes into the zero page at the same place.
pub(super) const HEADER: usize = 0x1f1;
/// How long the header is from `JUMPED_FROM` on: the jump over it says so (section "Details of Header Fields").
const JUMP_OFFSET: usize = 0x201;
const JUMPED_FROM: usize = 0x202;

const SETUP_SECTORS: usize = 0x1f1;
const MAGIC: usize = 0x202;
const VERSION: usize = 0x206;
const LOADFLAGS: usize = 0x211;
const XLOADFLAGS: usize = 0x236;
const PREFERRED_ADDRESS: usize = 0x258;
const INIT_BYTES: usize = 0x260;
/// All fields used here are below.
const LEAST_BYTES: usize = 0x264;

/// Protocol 2.12: the first with `xloadflags`.
const LEAST_VERSION: u64 = 0x20c;
const LOADED_HIGH: u64 = 1;
const HAS_64_BIT_ENTRY: u64 = 1;
const SECTOR: usize = 512;
/// Where the 64-bit entry lies in the part that runs in protected mode.
const ENTRY_64: u64 = 0x200;

/// Whether this is a bzImage.
pub(super) fn is_one(image: &[u8]) -> bool {
    image.len() >= LEAST_BYTES && image[MAGIC..MAGIC + 4] == *b"HdrS"
}

/// Loads one into RAM that ends at `ram_end`.
pub(super) fn load(memory: &Mmap, ram_end: u64, name: &str, image: &[u8]) -> Result<Loaded, BootError> {
    let field = |at, bytes| number(image, at, bytes);
    let unfit = |found| BootError::NotAKernel { kernel: name.into(), found };
    if field(VERSION, 2) < LEAST_VERSION {
        return Err(unfit("a bzImage older than Linux 3.8"));
    }
    if field(LOADFLAGS, 1) & LOADED_HIGH == 0 || field(XLOADFLAGS, 2) & HAS_64_BIT_ENTRY == 0 {
        return Err(unfit("a 32-bit bzImage"));
    }
    // Zero means four: section "Details of Header Fields".
    let sectors = match field(SETUP_SECTORS, 1) {
        0 => 4,
        sectors => sectors as usize,
    };
    let kernel = image.get((sectors + 1) * SECTOR..).filter(|kernel| !kernel.is_empty());
    let kernel = kernel.ok_or_else(|| damaged(name, "it ends within its setup".into()))?;
    let start = field(PREFERRED_ADDRESS, 8);
    let end = start.checked_add(field(INIT_BYTES, 4).max(kernel.len() as u64));
    let fits = start >= HIGH && end.is_some_and(|end| end <= ram_end);
    let end = end.unwrap_or(u64::MAX);
    if !fits {
        return Err(BootError::TooBig { what: format!("kernel {name}"), end, ram: ram_end });
    }
    write(memory, start, kernel, "the kernel")?;
    let header_end = (JUMPED_FROM + field(JUMP_OFFSET, 1) as usize).min(image.len());
    let header = image[HEADER..header_end].to_vec();
    Ok(Loaded { way_in: WayIn::Linux64 { entry: start + ENTRY_64, header }, end })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::layout::Layout;
    use crate::memory::ram::GuestRam;
    use vm_memory::{Bytes, GuestAddress};

    /// A bzImage of two setup sectors and `kernel`, preferring 16 MiB.
    fn image(kernel: &[u8]) -> Vec<u8> {
        let mut image = vec![0; 3 * SECTOR];
        image[SETUP_SECTORS] = 2;
        image[JUMP_OFFSET] = 0x62;
        image[MAGIC..MAGIC + 4].copy_from_slice(b"HdrS");
        image[VERSION..VERSION + 2].copy_from_slice(&0x20f_u16.to_le_bytes());
        image[LOADFLAGS] = 1;
        image[XLOADFLAGS] = 3;
        image[PREFERRED_ADDRESS..PREFERRED_ADDRESS + 8].copy_from_slice(&(16_u64 << 20).to_le_bytes());
        image[INIT_BYTES..INIT_BYTES + 4].copy_from_slice(&(8_u32 << 20).to_le_bytes());
        image.extend(kernel);
        image
    }

    fn try_load(image: &[u8], mib: u64) -> Result<Loaded, BootError> {
        let ram = GuestRam::new(Layout::for_bytes(mib << 20).unwrap()).unwrap();
        let loaded = load(ram.mmap(), mib << 20, "k", image)?;
        assert_eq!(ram.mmap().read_obj::<u32>(GuestAddress(16 << 20)).unwrap(), 0x0403_0201);
        Ok(loaded)
    }

    #[test]
    fn the_protected_mode_part_goes_where_it_prefers_to_be() {
        let loaded = try_load(&image(&[1, 2, 3, 4]), 32).unwrap();
        assert_eq!(loaded.end, 24 << 20, "what it needs to unpack itself is kept free");
        let WayIn::Linux64 { entry, header } = loaded.way_in else { panic!("64-bit entry") };
        assert_eq!((entry, header.len(), header[0]), (0x100_0200, 0x264 - HEADER, 2));
    }

    #[test]
    fn what_cannot_run_is_named() {
        let mut old = image(&[1]);
        old[VERSION] = 4;
        let mut narrow = image(&[1]);
        narrow[XLOADFLAGS] = 2;
        for (image, mib, said) in [
            (old, 32, "older than Linux 3.8"),
            (narrow, 32, "32-bit bzImage"),
            (image(&[]), 32, "ends within its setup"),
            (image(&[1]), 16, "RAM ends at 0x1000000"),
        ] {
            let error = try_load(&image, mib).unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
        }
    }
}
