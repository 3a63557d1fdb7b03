//! What was asked for, parsed once into values that cannot be wrong.

mod boot;
mod disk;
mod nic;

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::vcpu::CpuChoice;
pub use boot::{BootConfig, Kernel, OnReset};
pub use disk::{DiskAccess, DiskConfig, DiskSerial};
pub use nic::{InterfaceName, Mac, NicConfig, TapConfig};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// What a guest can be asked to be, and cannot.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// Not a size.
    #[error("memory size \"{0}\" is not a number with M or G: write for example 256M or 2G")]
    NotASize(String),
    /// A size out of bounds.
    #[error("memory size {0} is not possible: give a multiple of 2M from 64M to 1024G")]
    Memory(String),
    /// Not a number of vCPUs.
    #[error("number of vCPUs \"{0}\" is not possible: give 1 to {max}", max = Vcpus::MAX)]
    Vcpus(String),
    /// A name that cannot be shown or used in a path.
    #[error(
        "name \"{0}\" is not possible: use 1 to 64 letters, digits, '-', '_' or '.', not starting with '.'"
    )]
    Name(String),
    /// A kernel command line that cannot be handed over.
    #[error("kernel command line of {0} bytes is not possible: at most {max}, without NUL", max = Cmdline::MAX)]
    Cmdline(usize),
    /// Not a disk.
    #[error("disk \"{0}\" is not possible: write FILE[,ro][,serial=NAME]")]
    Disk(String),
    /// A serial that a disk cannot have.
    #[error(
        "serial \"{0}\" is not possible: use 1 to {max} letters, digits, '-', '_' or '.'",
        max = DiskSerial::MAX
    )]
    Serial(String),
    /// Not a network interface.
    #[error("network interface \"{0}\" is not possible: write tap=NAME[,create][,bridge=BRIDGE][,mac=MAC]")]
    Nic(String),
    /// Not a place for the network of a guest that arrives.
    #[error(
        "tap \"{0}\" is not possible: write tap=NAME[,create][,bridge=BRIDGE]; the guest brings its MAC address"
    )]
    Tap(String),
    /// A name that no interface can have here.
    #[error(
        "interface name \"{0}\" is not possible: use 1 to {max} letters, digits, '-', '_' or '.'",
        max = InterfaceName::MAX
    )]
    Interface(String),
    /// Not an address of a network interface.
    #[error(
        "MAC address \"{0}\" is not possible: write six bytes like 02:00:00:12:34:56, the first one even"
    )]
    Mac(String),
}

/// All that is said about a guest before it boots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MachineConfig {
    /// For people.
    pub name: GuestName,
    /// Identity: survives every move.
    pub uuid: Uuid,
    /// RAM.
    pub memory: MemorySize,
    /// vCPUs.
    pub cpus: Vcpus,
    /// What they can do.
    pub cpu: CpuChoice,
    /// What the kernel is told.
    pub cmdline: Cmdline,
    /// What boots.
    pub kernel: Kernel,
    /// Its initial file system.
    pub initramfs: Option<PathBuf>,
    /// Its disks, in the order in which it finds them.
    pub disks: Vec<DiskConfig>,
    /// Its network interfaces, in the order in which it finds them.
    pub nics: Vec<NicConfig>,
    /// Whether it has a virtio console besides its serial port.
    pub virtio_console: bool,
    /// What its own reset does.
    pub on_reset: OnReset,
}

impl MachineConfig {
    /// The demo guest without disks, networks and a name that matters: to be measured or tested, in this process.
    pub(crate) fn demo(memory: MemorySize, cpus: Vcpus, cmdline: Cmdline) -> Self {
        Self {
            name: "demo".parse().expect("a name"),
            uuid: Uuid::nil(),
            memory,
            cpus,
            cpu: CpuChoice::default(),
            cmdline,
            kernel: Kernel::Demo,
            initramfs: None,
            disks: Vec::new(),
            nics: Vec::new(),
            virtio_console: false,
            on_reset: OnReset::Reboot,
        }
    }
}

/// What guests that arrive find here.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ArrivalConfig {
    /// Tap interfaces for a guest's first network interfaces, in the place of those that it had elsewhere.
    pub taps: Vec<TapConfig>,
    /// The most that their CPUs may have.
    pub cpu: CpuChoice,
}

impl MachineConfig {
    /// What it boots from.
    #[must_use]
    pub fn boot(&self) -> BootConfig {
        BootConfig {
            kernel: self.kernel.absolute(),
            initramfs: self.initramfs.as_deref().map(boot::absolute),
            cmdline: self.cmdline.clone(),
            on_reset: self.on_reset,
        }
    }
}

/// Bytes of RAM: a multiple of 2 MiB, 64 MiB to 1 TiB. Parses from `256M`, `2G`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemorySize(u64);

impl MemorySize {
    /// Checks a number of bytes.
    ///
    /// # Errors
    /// When it is out of bounds.
    pub fn from_bytes(bytes: u64) -> Result<Self, ConfigError> {
        if bytes.is_multiple_of(2 * MIB) && (64 * MIB..=1024 * GIB).contains(&bytes) {
            Ok(Self(bytes))
        } else {
            Err(ConfigError::Memory(Self(bytes).to_string()))
        }
    }

    /// In bytes.
    #[must_use]
    pub fn bytes(self) -> u64 {
        self.0
    }
}

impl FromStr for MemorySize {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        let not_a_size = || ConfigError::NotASize(text.into());
        let (digits, unit) = match text.trim_end_matches("iB").trim_end_matches('B') {
            t if t.ends_with(['M', 'm']) => (&t[..t.len() - 1], MIB),
            t if t.ends_with(['G', 'g']) => (&t[..t.len() - 1], GIB),
            _ => return Err(not_a_size()),
        };
        let number: u64 = digits.trim().parse().map_err(|_| not_a_size())?;
        let bytes = number.checked_mul(unit).ok_or_else(|| ConfigError::Memory(text.into()))?;
        Self::from_bytes(bytes)
    }
}

impl fmt::Display for MemorySize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            bytes if bytes.is_multiple_of(GIB) && bytes > 0 => write!(f, "{}G", bytes / GIB),
            bytes if bytes.is_multiple_of(MIB) && bytes > 0 => write!(f, "{}M", bytes / MIB),
            bytes => write!(f, "{bytes} bytes"),
        }
    }
}

/// Number of vCPUs, 1 to [`MAX`](Self::MAX).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Vcpus(u32);

impl Vcpus {
    /// Most vCPUs of a guest: with one byte of APIC id to spare, and as many as the demo guest reports on.
    pub const MAX: u32 = 64;

    /// Checks a number.
    ///
    /// # Errors
    /// When it is out of bounds.
    pub fn new(number: u32) -> Result<Self, ConfigError> {
        let possible = (1..=Self::MAX).contains(&number);
        possible.then_some(Self(number)).ok_or_else(|| ConfigError::Vcpus(number.to_string()))
    }

    /// The number.
    #[must_use]
    pub fn get(self) -> u32 {
        self.0
    }
}

impl FromStr for Vcpus {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        let number = text.parse().map_err(|_| ConfigError::Vcpus(text.into()))?;
        Self::new(number)
    }
}

/// A guest's name.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct GuestName(String);

impl GuestName {
    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for GuestName {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        let possible = (1..=64).contains(&text.len()) && !text.starts_with('.') && text.chars().all(plain);
        possible.then(|| Self(text.into())).ok_or_else(|| ConfigError::Name(text.into()))
    }
}

impl fmt::Display for GuestName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A kernel command line.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Cmdline(String);

impl Cmdline {
    /// Most bytes: Linux takes 2048 on x86 (`COMMAND_LINE_SIZE`), one of them for the end; some are kept back for
    /// what the VMM appends.
    pub const MAX: usize = 1984;

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Cmdline {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        let possible = text.len() <= Self::MAX && !text.contains('\0');
        possible.then(|| Self(text.into())).ok_or(ConfigError::Cmdline(text.len()))
    }
}

impl TryFrom<String> for Cmdline {
    type Error = ConfigError;

    fn try_from(text: String) -> Result<Self, ConfigError> {
        text.parse()
    }
}

impl From<Cmdline> for String {
    fn from(cmdline: Cmdline) -> Self {
        cmdline.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_sizes_are_read_and_shown() {
        for (text, bytes) in [("256M", 256 * MIB), ("1G", GIB), ("1GiB", GIB), ("66m", 66 * MIB)] {
            assert_eq!(text.parse::<MemorySize>().map(MemorySize::bytes), Ok(bytes), "{text}");
        }
        assert_eq!("1024M".parse::<MemorySize>().unwrap().to_string(), "1G");
    }

    #[test]
    fn impossible_values_are_named_with_the_way_out() {
        let memory = |text: &str| text.parse::<MemorySize>().unwrap_err().to_string();
        assert!(memory("12").starts_with("memory size \"12\" is not a number with M or G"));
        assert!(memory("63M").starts_with("memory size 63M is not possible: give a multiple of 2M"));
        assert!(memory("99999999999999G").contains("is not possible"));
        assert!(memory("2000G").contains("2000G"));
        let cpus = |text: &str| text.parse::<Vcpus>().unwrap_err().to_string();
        assert_eq!(cpus("0"), "number of vCPUs \"0\" is not possible: give 1 to 64");
        assert_eq!(cpus("x"), "number of vCPUs \"x\" is not possible: give 1 to 64");
        assert!("../x".parse::<GuestName>().is_err());
        assert!("a\0b".parse::<Cmdline>().is_err());
    }
}
