//! A disk as it is asked for: `FILE[,ro][,serial=NAME]`.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::ConfigError;

/// A disk of a guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskConfig {
    /// The raw image.
    pub path: PathBuf,
    /// What the guest may do with it.
    pub access: DiskAccess,
    /// What the guest knows it by. Without one its place in the list is used.
    pub serial: Option<DiskSerial>,
}

/// What a guest may do with a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DiskAccess {
    /// Only read it.
    ReadOnly,
    /// Read and write it.
    ReadWrite,
}

/// What a guest knows a disk by: 1 to 20 (`VIRTIO_BLK_ID_BYTES`) letters, digits, '-', '_' or '.'.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DiskSerial(String);

impl DiskSerial {
    /// Most bytes.
    pub const MAX: usize = virtio_bindings::virtio_blk::VIRTIO_BLK_ID_BYTES as usize;

    /// For the disk at this place in the list.
    #[must_use]
    pub fn for_place(place: usize) -> Self {
        Self(format!("disk{place}"))
    }

    /// Padded with zeros.
    #[must_use]
    pub fn bytes(&self) -> [u8; Self::MAX] {
        let mut bytes = [0; Self::MAX];
        bytes[..self.0.len()].copy_from_slice(self.0.as_bytes());
        bytes
    }
}

impl FromStr for DiskSerial {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        let possible = (1..=Self::MAX).contains(&text.len()) && text.chars().all(plain);
        possible.then(|| Self(text.into())).ok_or_else(|| ConfigError::Serial(text.into()))
    }
}

impl TryFrom<String> for DiskSerial {
    type Error = ConfigError;

    fn try_from(text: String) -> Result<Self, ConfigError> {
        text.parse()
    }
}

impl From<DiskSerial> for String {
    fn from(serial: DiskSerial) -> Self {
        serial.0
    }
}

impl fmt::Display for DiskSerial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for DiskConfig {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        let mut words = text.split(',');
        let path = words.next().filter(|path| !path.is_empty());
        let path = path.ok_or_else(|| ConfigError::Disk(text.into()))?;
        let mut disk = Self { path: path.into(), access: DiskAccess::ReadWrite, serial: None };
        for word in words {
            match word.split_once('=') {
                None if word == "ro" => disk.access = DiskAccess::ReadOnly,
                Some(("serial", serial)) => disk.serial = Some(serial.parse()?),
                _ => return Err(ConfigError::Disk(text.into())),
            }
        }
        Ok(disk)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks_are_read() {
        let disk: DiskConfig = "/a b/c.img,ro,serial=root-1".parse().unwrap();
        assert_eq!((disk.path.to_str(), disk.access), (Some("/a b/c.img"), DiskAccess::ReadOnly));
        assert_eq!(disk.serial.unwrap().bytes(), *b"root-1\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
        let disk: DiskConfig = "c.img".parse().unwrap();
        assert_eq!((disk.access, disk.serial), (DiskAccess::ReadWrite, None));
    }

    #[test]
    fn impossible_disks_are_named_with_the_way_out() {
        let message = |text: &str| text.parse::<DiskConfig>().unwrap_err().to_string();
        assert_eq!(message("a,rw"), "disk \"a,rw\" is not possible: write FILE[,ro][,serial=NAME]");
        assert!(message("").starts_with("disk \"\" is not possible"));
        assert!(message("a,serial=").starts_with("serial \"\" is not possible: use 1 to 20 letters"));
        assert!(message("a,serial=123456789012345678901").contains("1 to 20"));
        assert!(serde_json::from_str::<DiskSerial>("\"a b\"").is_err());
    }
}
