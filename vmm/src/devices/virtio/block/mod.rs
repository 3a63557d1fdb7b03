//! The disk (virtio 1.2, section 5.2): what it is to the guest, and what of it is saved.
//!
//! Its content is not saved: a guest that moves finds the same image at the same path. What the driver flushed, or wrote
//! without having taken `FLUSH`, is on stable storage before the request is finished.

mod image;
mod lock;
mod request;
mod under_way;

use std::borrow::Cow;
use std::mem::offset_of;
use std::sync::Arc;

use virtio_bindings::virtio_blk::*;
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;

use super::VirtioDevice;
use super::queue::{Broken, MAX_DESCRIPTORS, Requests};
use super::state::FIRST_OWN_TAG;
use crate::config::{DiskAccess, DiskSerial};
use crate::state::{Kind, Section, SectionWriter, StateError};

use image::SECTOR;
pub use image::{DiskError, DiskImage};

/// A disk's section in the saved state.
pub const KIND: Kind =
    Kind { name: "virtio-blk", version: 1, tags: &[1, 2, 3, 4, 5, 6, SECTORS, ACCESS, SERIAL] };

const SECTORS: u16 = FIRST_OWN_TAG;
const ACCESS: u16 = FIRST_OWN_TAG + 1;
const SERIAL: u16 = FIRST_OWN_TAG + 2;

/// Data descriptors of one request: the others are its head and its status.
const MAX_SEGMENTS: u32 = MAX_DESCRIPTORS as u32 - 2;
/// Bytes of each. With the number of them it bounds a request to 31.5 MiB: while it is served, its vCPU cannot park.
const MAX_SEGMENT_BYTES: u32 = 256 << 10;
/// Sectors that one request can discard or zero: 1 GiB, which file systems do without writing it.
const MAX_CLEARED_SECTORS: u32 = 2 << 20;

/// The device.
#[derive(Debug)]
pub struct Block {
    image: Arc<DiskImage>,
    serial: DiskSerial,
    config: [u8; size_of::<virtio_blk_config>()],
    /// Whether the driver does not flush, so that each write must be stable by itself.
    write_through: bool,
}

impl Block {
    /// A disk of this image.
    #[must_use]
    pub fn new(image: Arc<DiskImage>, serial: DiskSerial) -> Self {
        let config = config_space(&image);
        Self { image, serial, config, write_through: true }
    }

    fn is_read_only(&self) -> bool {
        self.image.access() == DiskAccess::ReadOnly
    }
}

impl VirtioDevice for Block {
    fn id(&self) -> u32 {
        VIRTIO_ID_BLOCK
    }

    fn features(&self) -> u64 {
        let common = [VIRTIO_BLK_F_SIZE_MAX, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_FLUSH];
        let own: &[u32] = match self.image.access() {
            DiskAccess::ReadOnly => &[VIRTIO_BLK_F_RO],
            DiskAccess::ReadWrite => &[VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_WRITE_ZEROES],
        };
        common.iter().chain(own).fold(0, |features, bit| features | 1 << bit)
    }

    fn queue_sizes(&self) -> &'static [u16] {
        &[MAX_DESCRIPTORS as u16]
    }

    fn config(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(&self.config)
    }

    fn activate(&mut self, features: u64) {
        self.write_through = features & 1 << VIRTIO_BLK_F_FLUSH == 0;
    }

    fn kick(&mut self, _: usize, requests: &mut Requests<'_>) -> Result<(), Broken> {
        while let Some(request) = requests.take()? {
            let written = self.serve(requests.ram(), &request)?;
            requests.finish(&request, written)?;
        }
        Ok(())
    }

    fn section(&self) -> &'static Kind {
        &KIND
    }

    fn write_identity(&self, section: &mut SectionWriter<'_>) {
        section.required(SECTORS, &self.image.sectors().to_le_bytes());
        section.required(ACCESS, &[u8::from(self.is_read_only())]);
        section.required(SERIAL, &self.serial.bytes());
    }

    fn check_identity(&self, section: &Section<'_>) -> Result<(), StateError> {
        let same = StateError::unless_same;
        same("a disk's number of sectors", section.number::<8>(SECTORS, "sectors")?, self.image.sectors())?;
        same(
            "whether a disk is read-only",
            section.number::<1>(ACCESS, "read-only")?,
            self.is_read_only().into(),
        )?;
        let serial = section.exactly(SERIAL, "serial", DiskSerial::MAX)?;
        let ours = serial == self.serial.bytes();
        if ours { Ok(()) } else { Err(section.impossible("serial: it is another disk's")) }
    }
}

fn config_space(image: &DiskImage) -> [u8; size_of::<virtio_blk_config>()] {
    let mut space = [0; size_of::<virtio_blk_config>()];
    space[..8].copy_from_slice(&image.sectors().to_le_bytes());
    for (at, value) in [
        (offset_of!(virtio_blk_config, size_max), MAX_SEGMENT_BYTES),
        (offset_of!(virtio_blk_config, seg_max), MAX_SEGMENTS),
        (offset_of!(virtio_blk_config, blk_size), SECTOR as u32),
        (offset_of!(virtio_blk_config, max_discard_sectors), MAX_CLEARED_SECTORS),
        (offset_of!(virtio_blk_config, max_discard_seg), 1),
        (offset_of!(virtio_blk_config, discard_sector_alignment), 1),
        (offset_of!(virtio_blk_config, max_write_zeroes_sectors), MAX_CLEARED_SECTORS),
        (offset_of!(virtio_blk_config, max_write_zeroes_seg), 1),
    ] {
        space[at..at + 4].copy_from_slice(&value.to_le_bytes());
    }
    space[offset_of!(virtio_blk_config, write_zeroes_may_unmap)] = 1;
    space
}
