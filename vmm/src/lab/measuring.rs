//! One measurement at a time: two on the same machine spoil each other's figures.
//!
//! A lock (flock(2)) on a file that every user may open, for reading alone. It ends with whoever holds it, however that
//! ends. The file is empty: the kernel knows who holds the lock (`/proc/locks`, proc(5)).

use std::fs::{self, File, Permissions, TryLockError};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::thread;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use tokio::sync::oneshot;

/// In no folder of one user's, nor one that the environment says: it has to be the same for all.
const PATH: &str = "/tmp/vmm-measuring.lock";

/// The right to measure, as long as this is there.
#[derive(Debug)]
#[must_use]
pub struct Measuring {
    _lock: Option<File>,
}

impl Measuring {
    /// Waits until nobody else on this machine measures, and says so, once. Where there can be no lock it warns.
    pub async fn begin() -> Self {
        Self::by(Path::new(PATH)).await
    }

    async fn by(path: &Path) -> Self {
        let locked = match open(path) {
            Ok(file) => lock(file).await,
            Err(error) => Err(error),
        };
        if let Err(error) = &locked {
            let path = path.display();
            eprintln!(
                "warning: cannot know whether others measure on this machine: no lock on {path}: {error}"
            );
        }
        Self { _lock: locked.ok() }
    }
}

/// It may be someone else's, in a folder where anyone can put anything: it is not written, nor followed elsewhere, nor
/// waited for if it is a pipe.
fn open(path: &Path) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let existing = || rustix::fs::open(path, flags, Mode::empty()).map(File::from);
    match existing() {
        Err(Errno::NOENT) => {}
        opened => return Ok(opened?),
    }
    match rustix::fs::open(path, flags | OFlags::CREATE | OFlags::EXCL, Mode::RUSR) {
        Err(Errno::EXIST) => Ok(existing()?),
        made => {
            let file = File::from(made?);
            // Whatever this user's umask is.
            file.set_permissions(Permissions::from_mode(0o644))?;
            Ok(file)
        }
    }
}

async fn lock(file: File) -> io::Result<File> {
    match file.try_lock() {
        Ok(()) => return Ok(file),
        Err(TryLockError::Error(error)) => return Err(error),
        Err(TryLockError::WouldBlock) => {}
    }
    let locks = fs::read_to_string("/proc/locks").unwrap_or_default();
    let holder = holder(&locks, file.metadata()?.ino());
    eprintln!("waiting: {} measures on this machine", holder.map_or("another program".to_owned(), describe));
    let (done, locked) = oneshot::channel();
    // Not a thread of the runtime's: it would be waited for when the program is asked to end.
    thread::spawn(move || done.send(file.lock().map(|()| file)));
    locked.await.expect("the thread answers")
}

/// The process that holds the lock on the file with this inode. Those who wait for it have an arrow in their lines.
fn holder(locks: &str, inode: u64) -> Option<u32> {
    locks.lines().find_map(|line| {
        let words: Vec<_> = line.split_whitespace().collect();
        let [_, "FLOCK", _, "WRITE", pid, place, ..] = words[..] else { return None };
        let (_, at) = place.rsplit_once(':')?;
        (at.parse() == Ok(inode)).then(|| pid.parse().ok())?
    })
}

fn describe(pid: u32) -> String {
    match fs::read_to_string(format!("/proc/{pid}/comm")) {
        Ok(name) => format!("process {pid} ({})", name.trim()),
        Err(_) => format!("process {pid}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_holds_a_lock() {
        let locks = "1: POSIX  ADVISORY  WRITE 11 00:19:77 0 EOF\n2: FLOCK  ADVISORY  WRITE 12 fe:00:77 0 EOF\n\
                     2: -> FLOCK  ADVISORY  WRITE 13 fe:00:78 0 EOF\n3: FLOCK  ADVISORY  READ 14 fe:00:78 0 EOF\n";
        assert_eq!((holder(locks, 77), holder(locks, 78), holder("", 77)), (Some(12), None, None));
    }

    #[tokio::test]
    async fn the_second_waits_for_the_first() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        let first = Measuring::by(&path).await;
        let file = open(&path).unwrap();
        assert!(matches!(file.try_lock(), Err(TryLockError::WouldBlock)));
        let locks = fs::read_to_string("/proc/locks").unwrap();
        assert_eq!(holder(&locks, file.metadata().unwrap().ino()), Some(std::process::id()));
        let second = lock(file);
        let (second, ()) = tokio::join!(second, async { drop(first) });
        assert!(second.is_ok());
    }

    #[tokio::test]
    async fn who_cannot_lock_goes_on() {
        assert!(Measuring::by(Path::new("/proc/no/such/file")).await._lock.is_none());
    }
}
