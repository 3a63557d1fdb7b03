//! One request to a disk: a head of 16 bytes, data one way, and a byte that says how it went (section 5.2.6).

use std::io;
use std::os::fd::AsFd;

use rustix::fs::{FallocateFlags, fallocate};
use virtio_bindings::virtio_blk::*;

use super::{Block, MAX_CLEARED_SECTORS, MAX_SEGMENT_BYTES, MAX_SEGMENTS, SECTOR};
use crate::devices::virtio::queue::{Broken, Request, copy_from, copy_to, split, total};
use crate::memory::bulk::Piece;
use crate::memory::files;
use crate::memory::ram::GuestRam;

const HEAD_BYTES: u64 = 16;
const MAX_BYTES: u64 = MAX_SEGMENTS as u64 * MAX_SEGMENT_BYTES as u64;

/// Why a request was not done.
enum Failure {
    Host,
    Unsupported,
    /// It says itself what cannot be.
    Broken(Broken),
}

impl From<io::Error> for Failure {
    fn from(_: io::Error) -> Self {
        Self::Host
    }
}

impl From<rustix::io::Errno> for Failure {
    fn from(error: rustix::io::Errno) -> Self {
        // The file system cannot: the driver then writes zeros itself.
        if error == rustix::io::Errno::OPNOTSUPP { Self::Unsupported } else { Self::Host }
    }
}

impl From<Broken> for Failure {
    fn from(broken: Broken) -> Self {
        Self::Broken(broken)
    }
}

impl Block {
    /// Does a request and says in it how it went. How many bytes were written for the driver.
    ///
    /// # Errors
    /// When it has no head, or no place to say so.
    pub(super) fn serve(&self, ram: &GuestRam, request: &Request) -> Result<u32, Broken> {
        let (head, data) =
            split(&request.readable, HEAD_BYTES).ok_or(Broken("a disk's request has no head"))?;
        let room = total(&request.writable).checked_sub(1).ok_or(Broken("a disk's request has no status"))?;
        let (space, status) = split(&request.writable, room).unwrap_or_default();
        let mut bytes = [0; HEAD_BYTES as usize];
        copy_from(ram, &head, &mut bytes)?;
        let [kind, _, low, high] = words(bytes);
        let sector = u64::from(high) << 32 | u64::from(low);
        let (outcome, written) = match self.run(ram, kind, sector, &data, &space) {
            Ok(written) => (VIRTIO_BLK_S_OK, written),
            Err(Failure::Host) => (VIRTIO_BLK_S_IOERR, 0),
            Err(Failure::Unsupported) => (VIRTIO_BLK_S_UNSUPP, 0),
            Err(Failure::Broken(broken)) => return Err(broken),
        };
        copy_to(ram, &status, &[outcome as u8])?;
        Ok(written + 1)
    }

    fn run(
        &self,
        ram: &GuestRam,
        kind: u32,
        sector: u64,
        data: &[Piece],
        space: &[Piece],
    ) -> Result<u32, Failure> {
        let file = self.image.file().as_fd();
        match kind {
            VIRTIO_BLK_T_IN => {
                let bytes = total(space);
                files::read_at(ram, space, file, self.place(sector, bytes)?)?;
                Ok(bytes as u32)
            }
            VIRTIO_BLK_T_OUT => {
                self.check_writable()?;
                let place = self.place(sector, total(data))?;
                self.after_write(files::write_at(ram, data, file, place).map_err(Failure::from))
            }
            VIRTIO_BLK_T_FLUSH => {
                self.image.sync()?;
                Ok(0)
            }
            VIRTIO_BLK_T_GET_ID => Ok(copy_to(ram, space, &self.serial.bytes())?),
            VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES => {
                self.check_writable()?;
                self.after_write(self.clear(ram, kind, data))
            }
            _ => Err(Failure::Unsupported),
        }
    }

    /// Where in the image this is.
    fn place(&self, sector: u64, bytes: u64) -> Result<u64, Failure> {
        let whole = bytes.is_multiple_of(SECTOR) && bytes <= MAX_BYTES;
        self.inside(sector, bytes / SECTOR).filter(|_| whole).ok_or(Failure::Host)
    }

    fn inside(&self, sector: u64, sectors: u64) -> Option<u64> {
        let end = sector.checked_add(sectors)?;
        (end <= self.image.sectors()).then(|| sector * SECTOR)
    }

    fn check_writable(&self) -> Result<(), Failure> {
        if self.is_read_only() { Err(Failure::Host) } else { Ok(()) }
    }

    /// Something was written, whole or in part.
    fn after_write<T>(&self, written: Result<T, Failure>) -> Result<u32, Failure> {
        self.image.wrote();
        written?;
        if self.write_through {
            self.image.sync()?;
        }
        Ok(0)
    }

    /// Discards or zeroes one run of sectors, as the configuration space says: one.
    fn clear(&self, ram: &GuestRam, kind: u32, data: &[Piece]) -> Result<(), Failure> {
        let mut bytes = [0; size_of::<virtio_blk_discard_write_zeroes>()];
        if total(data) != bytes.len() as u64 {
            return Err(Failure::Host);
        }
        copy_from(ram, data, &mut bytes)?;
        let [low, high, sectors, flags] = words(bytes);
        let sector = u64::from(high) << 32 | u64::from(low);
        let how = match (kind, flags) {
            (VIRTIO_BLK_T_DISCARD, 0) | (VIRTIO_BLK_T_WRITE_ZEROES, VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP) => {
                FallocateFlags::PUNCH_HOLE
            }
            (VIRTIO_BLK_T_WRITE_ZEROES, 0) => FallocateFlags::ZERO_RANGE,
            _ => return Err(Failure::Unsupported),
        };
        let place = self.inside(sector, sectors.into()).filter(|_| sectors <= MAX_CLEARED_SECTORS);
        let place = place.ok_or(Failure::Host)?;
        if sectors > 0 {
            let bytes = u64::from(sectors) * SECTOR;
            fallocate(self.image.file(), how | FallocateFlags::KEEP_SIZE, place, bytes)?;
        }
        Ok(())
    }
}

/// Four little-endian words.
fn words(bytes: [u8; 16]) -> [u32; 4] {
    let mut words = [0; 4];
    for (word, bytes) in words.iter_mut().zip(bytes.chunks_exact(4)) {
        *word = bytes.iter().rev().fold(0, |value, byte| value << 8 | u32::from(*byte));
    }
    words
}
