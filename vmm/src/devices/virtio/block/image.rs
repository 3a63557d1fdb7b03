//! The raw image behind a disk: its file, how long it is, and who may use it.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::fs::{Advice, SeekFrom};

use super::lock::DiskLock;
use super::under_way::{Hangs, UnderWay};
use crate::config::DiskAccess;

/// Bytes of a sector: virtio counts in these, whatever the block size.
pub(super) const SECTOR: u64 = 512;

/// Why an image cannot be a disk.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// It cannot be opened.
    #[error("cannot open disk {}: {error}", path.display())]
    Open {
        /// The image.
        path: PathBuf,
        /// How it failed.
        error: io::Error,
    },
    /// Something else than a file.
    #[error("disk {} is neither a file nor a block device: give a raw image", .0.display())]
    Kind(PathBuf),
    /// Its length is not one that a disk can have.
    #[error(
        "disk {} has {bytes} bytes, not a multiple of {SECTOR}: give a raw image, or enlarge it with \
         \"truncate -s %{SECTOR} {}\"", path.display(), path.display()
    )]
    Size {
        /// The image.
        path: PathBuf,
        /// Its length.
        bytes: u64,
    },
    /// It has no sector.
    #[error("disk {} is empty: give a raw image", .0.display())]
    Empty(PathBuf),
    /// Another machine has it.
    #[error(
        "disk {} is in use: stop the machine that has it, or give it to each of them with \"ro\"",
        .0.display()
    )]
    InUse(PathBuf),
    /// What was written to it cannot be made to last.
    #[error("cannot put what was written to disk {} on stable storage: {error}", path.display())]
    Sync {
        /// The image.
        path: PathBuf,
        /// How it failed.
        error: io::Error,
    },
    /// It does not answer.
    #[error(
        "disk {} hangs: its fdatasync has not ended for {:.1} s; see what has become of its storage",
        path.display(), after.as_secs_f64()
    )]
    Hangs {
        /// The image.
        path: PathBuf,
        /// How long ago that was begun.
        after: Duration,
    },
    /// It cannot be locked.
    #[error("cannot lock disk {}: {error}: put it on a file system with locks", path.display())]
    Lock {
        /// The image.
        path: PathBuf,
        /// How it failed.
        error: io::Error,
    },
}

/// An open image. Whether it is locked is its owner's affair: a guest that arrives may not have it before it has left
/// where it was.
#[derive(Debug)]
pub struct DiskImage {
    path: PathBuf,
    file: File,
    access: DiskAccess,
    sectors: u64,
    lock: DiskLock,
    /// Something was written since it was synchronised last.
    written: AtomicBool,
    /// Held while it is synchronised: who finds nothing left to synchronise must not be earlier than what is under way.
    /// Whether that has failed: the kernel says so only once (fsync(2)), and what was written then may be lost.
    sync_failed: Mutex<bool>,
    /// Synchronising that nobody may wait for without end.
    under_way: UnderWay,
    /// Another host may have written it, and this one's kernel remembers what was there before.
    stale: AtomicBool,
}

impl DiskImage {
    /// Opens an image, and does not lock it.
    ///
    /// # Errors
    /// One line: what is wrong with it, and the way out.
    pub fn open(path: &Path, access: DiskAccess) -> Result<Self, DiskError> {
        let failed = |error: io::Error| DiskError::Open { path: path.into(), error };
        // Before it is opened: opening a pipe would wait for its other end.
        let kind = std::fs::metadata(path).map_err(failed)?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return Err(DiskError::Kind(path.into()));
        }
        let writable = access == DiskAccess::ReadWrite;
        let file = OpenOptions::new().read(true).write(writable).open(path).map_err(failed)?;
        // Of a block device, too, which has no length to look up.
        let bytes = rustix::fs::seek(&file, SeekFrom::End(0)).map_err(|error| failed(error.into()))?;
        if bytes == 0 {
            return Err(DiskError::Empty(path.into()));
        }
        if !bytes.is_multiple_of(SECTOR) {
            return Err(DiskError::Size { path: path.into(), bytes });
        }
        let (path, lock) = (std::path::absolute(path).map_err(failed)?, DiskLock::new(access));
        Ok(Self {
            path,
            file,
            access,
            sectors: bytes / SECTOR,
            lock,
            written: AtomicBool::new(false),
            sync_failed: Mutex::default(),
            under_way: UnderWay::default(),
            stale: AtomicBool::new(false),
        })
    }

    /// Takes it for this machine alone; shared where it is only read. Again is as good as once.
    ///
    /// # Errors
    /// One line: that another has it.
    pub fn take(&self) -> Result<(), DiskError> {
        self.lock.take(&self.file).map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock => DiskError::InUse(self.path.clone()),
            _ => DiskError::Lock { path: self.path.clone(), error },
        })?;
        // Something may have looked at it since it was opened.
        if self.stale.swap(false, Ordering::Relaxed) {
            self.forget();
        }
        Ok(())
    }

    /// Lets another machine take it, perhaps on another host: what was written is on stable storage first.
    ///
    /// # Errors
    /// When it cannot be put there: then nobody else can take it.
    pub fn hand_over(&self) -> Result<(), DiskError> {
        self.sync().map_err(|error| DiskError::Sync { path: self.path.clone(), error })?;
        self.release()
    }

    /// Lets another machine take it.
    ///
    /// # Errors
    /// As the host fails.
    pub fn release(&self) -> Result<(), DiskError> {
        self.lock.release(&self.file).map_err(|error| DiskError::Lock { path: self.path.clone(), error })
    }

    /// Something was written: said when it was, whether it could be or not.
    pub fn wrote(&self) {
        self.written.store(true, Ordering::Release);
    }

    /// Puts what was written on stable storage. Costs nothing where it is there already.
    ///
    /// # Errors
    /// As the file fails.
    pub fn sync(&self) -> io::Result<()> {
        let mut failed = self.sync_failed.lock().unwrap_or_else(PoisonError::into_inner);
        if *failed {
            return Err(io::Error::other("what was written before could not be synchronised"));
        }
        // In this order: what is written meanwhile is for the next time.
        if self.written.swap(false, Ordering::AcqRel) {
            self.file.sync_data().inspect_err(|_| *failed = true)?;
        }
        Ok(())
    }

    /// The same, and waits for it only as long as `go_on` says so: a disk may hang for ever.
    ///
    /// # Errors
    /// [`DiskError::Hangs`] or [`DiskError::Sync`].
    pub fn sync_while(self: &Arc<Self>, go_on: &dyn Fn() -> bool) -> Result<(), DiskError> {
        if self.is_synced() {
            return Ok(());
        }
        let image = Arc::clone(self);
        let path = || self.path.clone();
        let ended = self.under_way.finish(move || image.sync(), go_on);
        let outcome = ended.map_err(|Hangs(after)| DiskError::Hangs { path: path(), after })?;
        outcome.map_err(|error| DiskError::Sync { path: path(), error })
    }

    /// Whether [`sync`](Self::sync) would find nothing to do and nothing to wait for.
    fn is_synced(&self) -> bool {
        self.sync_failed.try_lock().is_ok_and(|failed| !*failed && !self.written.load(Ordering::Acquire))
    }

    /// Another host writes it until it is [taken](Self::take) here. What this host's kernel remembers of it is forgotten now,
    /// which takes as long as there is much, and what it may have looked up meanwhile then.
    pub fn expect(&self) {
        self.forget();
        self.stale.store(true, Ordering::Relaxed);
    }

    fn forget(&self) {
        // Where it cannot be forgotten (a memory file system) it is the content.
        let _ = rustix::fs::fadvise(&self.file, 0, None, Advice::DontNeed);
    }

    /// Its path, absolute.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its length.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.sectors * SECTOR
    }

    /// Its length in sectors.
    #[must_use]
    pub fn sectors(&self) -> u64 {
        self.sectors
    }

    /// What may be done with it.
    #[must_use]
    pub fn access(&self) -> DiskAccess {
        self.access
    }

    pub(super) fn file(&self) -> &File {
        &self.file
    }
}
