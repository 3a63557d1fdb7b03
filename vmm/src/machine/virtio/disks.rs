//! The disks of a machine: as they are described to another host, and their images, open.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::config::{DiskAccess, DiskConfig, DiskSerial};
use crate::devices::virtio::{Block, DiskError, DiskImage};

/// A disk, as the other host must have it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskDescription {
    /// Absolute path of its image.
    pub path: String,
    /// Its length.
    pub bytes: u64,
    /// What the guest may do with it.
    pub access: DiskAccess,
    /// What the guest knows it by.
    pub serial: DiskSerial,
}

impl DiskDescription {
    /// Why this host's image cannot be this disk.
    pub(in crate::machine) fn unsupported(&self) -> Option<String> {
        match DiskImage::open(self.path.as_ref(), self.access) {
            Err(error) => Some(error.to_string()),
            Ok(image) if image.bytes() != self.bytes => {
                let (path, there, here) = (&self.path, self.bytes, image.bytes());
                Some(format!(
                    "disk {} has {here} bytes here, the guest's has {there}: give both hosts the same image",
                    path.escape_debug()
                ))
            }
            Ok(_) => None,
        }
    }
}

/// A disk that is to be built.
#[derive(Debug)]
pub(super) struct DiskPlan {
    image: Arc<DiskImage>,
    serial: DiskSerial,
}

impl DiskPlan {
    /// For a guest that boots here. Takes the image.
    pub(super) fn for_boot(place: usize, disk: &DiskConfig) -> Result<Self, DiskError> {
        let image = DiskImage::open(&disk.path, disk.access)?;
        image.take()?;
        let serial = disk.serial.clone().unwrap_or_else(|| DiskSerial::for_place(place));
        Ok(Self { image: Arc::new(image), serial })
    }

    /// For a guest that comes from elsewhere, which still has it.
    pub(super) fn for_arrival(disk: &DiskDescription) -> Result<Self, DiskError> {
        let image = DiskImage::open(disk.path.as_ref(), disk.access)?;
        image.expect();
        Ok(Self { image: Arc::new(image), serial: disk.serial.clone() })
    }

    /// For a guest that boots again with the image that it has, so that no other machine gets it meanwhile.
    pub(super) fn for_reboot(disk: &DiskDescription, image: &Arc<DiskImage>) -> Self {
        Self { image: Arc::clone(image), serial: disk.serial.clone() }
    }

    pub(super) fn describe(&self) -> DiskDescription {
        DiskDescription {
            path: self.image.path().display().to_string(),
            bytes: self.image.bytes(),
            access: self.image.access(),
            serial: self.serial.clone(),
        }
    }

    pub(super) fn image(&self) -> &Arc<DiskImage> {
        &self.image
    }

    pub(super) fn device(self) -> Block {
        Block::new(self.image, self.serial)
    }
}
