//! The lock on a disk's image: that no two machines ever write it at once.
//!
//! An *open file description* lock (fcntl(2)): it belongs to the open file, not to the process, so that two machines of
//! one process exclude each other, too, and no other close of the same file in this process drops it. It ends with the
//! open file at the latest. A machine that only reads takes a shared lock: readers exclude writers, not each other.

#![expect(unsafe_code, reason = "F_OFD_SETLK has no safe wrapper")]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use crate::config::DiskAccess;

/// The lock of one open image. Not held when made.
#[derive(Debug)]
pub(super) struct DiskLock {
    kind: libc::c_int,
}

impl DiskLock {
    /// As this access needs it.
    #[must_use]
    pub(super) fn new(access: DiskAccess) -> Self {
        let kind = match access {
            DiskAccess::ReadOnly => libc::F_RDLCK,
            DiskAccess::ReadWrite => libc::F_WRLCK,
        };
        Self { kind }
    }

    /// Takes it, at once or not at all. Taking it twice is taking it once.
    ///
    /// # Errors
    /// `WouldBlock` where another holds one that excludes it.
    pub(super) fn take(&self, file: &File) -> io::Result<()> {
        set(file, self.kind).map_err(|error| match error.raw_os_error() {
            // The two errors mean the same (fcntl(2)).
            Some(libc::EACCES | libc::EAGAIN) => io::ErrorKind::WouldBlock.into(),
            _ => error,
        })
    }

    /// Lets it go.
    ///
    /// # Errors
    /// As the host fails; never on a local file.
    pub(super) fn release(&self, file: &File) -> io::Result<()> {
        set(file, libc::F_UNLCK)
    }
}

/// On the whole file, however long it is or becomes: a length of 0 says so.
fn set(file: &File, kind: libc::c_int) -> io::Result<()> {
    // SAFETY: a flock of zeros is valid; l_pid must be 0 for this kind of lock.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = kind as libc::c_short;
    lock.l_whence = libc::SEEK_SET as libc::c_short;
    // SAFETY: the file is open, and the kernel only reads the struct, which outlives the call.
    match unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &lock) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
