//! Putting a kernel into an empty machine's RAM, and the first vCPU's registers where it begins.
//!
//! Two ways in: the PVH entry (32-bit, paging off; the demo guest, and Linux with CONFIG_PVH), and Linux's 64-bit
//! entry. Either way the kernel finds a memory map, its command line, its initramfs and the ACPI tables through one
//! structure.
//!
//! ```text
//! 0x0500 GDT   0x6000 hvm_start_info   0x7000 PVH memory map, or zero page   0x9000 page tables   0x20000 command line
//! 0xe0000 ACPI tables      0x100000 kernel …                               … initramfs, at the end of low RAM
//! ```

mod acpi;
mod bzimage;
mod elf;
mod entry;
mod initramfs;
mod map;
mod params;

use std::io;
use std::path::{Path, PathBuf};

use vm_memory::{Bytes, GuestAddress};

use crate::config::{BootConfig, Kernel};
use crate::devices::virtio::MmioSlot;
use crate::memory::ram::{GuestRam, Mmap};

pub use entry::Entry;

/// Where the command line lies.
const CMDLINE: u64 = 0x2_0000;
/// Kernels begin here or above.
const HIGH: u64 = 0x10_0000;

/// Why nothing can boot.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// A file cannot be read.
    #[error("cannot read {what} {path}: {error}")]
    Unreadable {
        /// Kernel or initramfs.
        what: &'static str,
        /// Which.
        path: PathBuf,
        /// How it failed.
        error: io::Error,
    },
    /// A kernel of another kind.
    #[error(
        "kernel {kernel} is {found}: give a bzImage, or a 64-bit ELF file (vmlinux, or one with a PVH note)"
    )]
    NotAKernel {
        /// Which.
        kernel: String,
        /// What it is instead.
        found: &'static str,
    },
    /// A kernel that ends before its own contents.
    #[error("kernel {kernel} is truncated or damaged: {why}")]
    Damaged {
        /// Which.
        kernel: String,
        /// What is wrong.
        why: String,
    },
    /// Something that does not fit into RAM.
    #[error(
        "{what} needs guest memory up to {end:#x}, RAM ends at {ram:#x} there: give the guest more memory"
    )]
    TooBig {
        /// Kernel or initramfs.
        what: String,
        /// Where it would end.
        end: u64,
        /// Where RAM ends.
        ram: u64,
    },
    /// RAM could not be written.
    #[error("cannot write {0} into guest memory")]
    Memory(&'static str),
}

/// Loads what `boot` names. The demo guest is also told how many vCPUs to wait for and its TSC's frequency, which
/// it has no other clock to measure with; what the user wrote comes last and counts.
///
/// # Errors
/// One line that names the file and what is wrong with it.
pub fn load(
    ram: &GuestRam,
    boot: &BootConfig,
    cpus: u32,
    tsc_khz: u32,
    virtio: &[MmioSlot],
) -> Result<Entry, BootError> {
    let memory = ram.mmap();
    let low_end = map::low_end(ram.layout());
    let (kernel, cmdline) = match &boot.kernel {
        Kernel::Demo => {
            let cmdline = format!("cpus={cpus} tsc_khz={tsc_khz} {}", boot.cmdline.as_str());
            (elf::load(memory, low_end, "demo guest", guest::IMAGE)?, cmdline)
        }
        Kernel::File(path) => {
            let image = read_file("kernel", path)?;
            let name = path.display().to_string();
            let load = if bzimage::is_one(&image) { bzimage::load } else { elf::load };
            (load(memory, low_end, &name, &image)?, boot.cmdline.as_str().to_string())
        }
    };
    let initramfs = match &boot.initramfs {
        Some(path) => Some(initramfs::place(memory, low_end, kernel.end, path)?),
        None => None,
    };
    write(memory, CMDLINE, &[cmdline.trim().as_bytes(), b"\0"].concat(), "the command line")?;
    write(memory, acpi::AT, &acpi::tables(cpus, virtio), "the ACPI tables")?;
    let told = params::Told { map: map::of(ram.layout()), cmdline_bytes: cmdline.trim().len(), initramfs };
    match kernel.way_in {
        elf::WayIn::Pvh(address) => {
            params::write_pvh(memory, &told)?;
            entry::write_pvh(memory, address)
        }
        elf::WayIn::Linux64 { entry, header } => {
            params::write_linux(memory, &told, &header)?;
            entry::write_linux64(memory, entry)
        }
    }
}

fn read_file(what: &'static str, path: &Path) -> Result<Vec<u8>, BootError> {
    std::fs::read(path).map_err(|error| BootError::Unreadable { what, path: path.into(), error })
}

fn write(memory: &Mmap, at: u64, bytes: &[u8], what: &'static str) -> Result<(), BootError> {
    memory.write_slice(bytes, GuestAddress(at)).map_err(|_| BootError::Memory(what))
}
