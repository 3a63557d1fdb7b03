//! The journal: what a side has promised about a guest, in a file that outlives its process (`docs/handover.md`).
//!
//! One file a guest and side: two slots, written in turn, each a line of JSON that a person can read, with a hash, so that
//! a write that was cut short leaves the one before. In the pause it is only written, which costs microseconds and outlives
//! the process; what must outlive the host too is synced outside of it. A lock on the file says that its process lives.

use std::ffi::OsString;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::time::Duration;

use rustix::fs::FlockOperation;
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use uuid::Uuid;
use xxhash_rust::xxh3::xxh3_64;

use crate::wire::message::tame;

/// Bytes of a slot.
const SLOT: usize = 1024;
/// Records of what is over are kept for so long.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(24 * 3600);
/// Records that nobody will write on any more, of processes that were killed: a source may still ask after its guest.
const ABANDONED_AFTER: Duration = Duration::from_secs(30 * 24 * 3600);
/// Where the kernel says which boot this is.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// Which side a journal is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    /// The guest leaves from here.
    Source,
    /// It comes here.
    Destination,
}

/// How far it had come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Promise {
    /// Source: the destination has accepted.
    Leaving,
    /// Source: commit is about to be sent.
    Committed,
    /// Source: it runs on the destination.
    Moved,
    /// Source: its operator has forced it to run on here.
    Forced,
    /// Destination: it may come.
    Arriving,
    /// Destination: commit was heard, and the guest is about to run.
    Running,
    /// Destination: it is here.
    Arrived,
    /// Destination: it does not run here and never did.
    Discarded,
}

/// One record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The guest.
    pub guest: Uuid,
    /// The migration.
    pub session: Uuid,
    /// The guest's epoch on the destination; after `forced`, here.
    pub epoch: u64,
    /// Which side.
    pub side: Side,
    /// How far.
    pub promise: Promise,
    /// The other side, for people.
    pub peer: String,
    /// The boot of this host.
    pub boot: String,
    /// Counts the writes.
    pub number: u64,
}

/// What a record without a living process says of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Past {
    /// The guest ran here, and is gone.
    Ran,
    /// It never ran here and never will.
    NeverRan,
    /// It may have: power failed in the very moment.
    Unsure,
}

/// A folder of journals, for one VMM.
#[derive(Debug, Clone, Default)]
pub struct Journals {
    /// None: nothing is kept.
    folder: Option<PathBuf>,
    vmm: String,
    /// Guests that have moved from here are remembered, because somebody may boot one by its name again.
    remembers: bool,
}

/// The journal of one migration on one side.
#[derive(Debug)]
pub struct Journal {
    file: Option<File>,
    path: PathBuf,
    record: Record,
}

impl Journals {
    /// Keeps nothing: for guests whose loss does not matter, such as those of tests.
    #[must_use]
    pub fn nowhere() -> &'static Self {
        static NOWHERE: Journals = Journals { folder: None, vmm: String::new(), remembers: false };
        &NOWHERE
    }

    /// Keeps them in a folder, which need not exist.
    #[must_use]
    pub fn at(folder: impl Into<PathBuf>, vmm: &str) -> Self {
        Self { folder: Some(folder.into()), vmm: vmm.to_owned(), remembers: false }
    }

    /// Keeps them in the [state directory](state_dir), which need not exist. Without one nothing is kept.
    #[must_use]
    pub fn from_env(vmm: &str) -> Self {
        Self { folder: state_dir(), vmm: vmm.to_owned(), remembers: false }
    }

    /// Makes the folder.
    ///
    /// # Errors
    /// When that is refused.
    pub fn prepare(&self) -> io::Result<()> {
        let _ = boot();
        self.folder.iter().try_for_each(|folder| DirBuilder::new().recursive(true).mode(0o700).create(folder))
    }

    /// Remembers guests that have moved from here: by an identity that its operator gave it one might be booted again.
    #[must_use]
    pub fn remembering(self, remembers: bool) -> Self {
        Self { remembers, ..self }
    }

    /// Whether a guest that has moved from here is to be remembered.
    pub(crate) fn remembers(&self) -> bool {
        self.remembers
    }

    /// The folder, if anything is kept.
    #[must_use]
    pub fn folder(&self) -> Option<&Path> {
        self.folder.as_deref()
    }

    /// Opens the journal of a migration and writes its first record to stable storage.
    ///
    /// # Errors
    /// When the folder cannot be written to, or another process keeps this very journal.
    pub(crate) fn open(
        &self,
        guest: Uuid,
        session: Uuid,
        epoch: u64,
        promise: Promise,
        peer: &str,
    ) -> io::Result<Journal> {
        let (side, word) = match promise {
            Promise::Leaving | Promise::Committed | Promise::Moved | Promise::Forced => {
                (Side::Source, "source")
            }
            _ => (Side::Destination, "destination"),
        };
        let peer = tame(peer).chars().take(100).collect();
        let record = Record { guest, session, epoch, side, promise, peer, boot: boot(), number: 0 };
        let Some(folder) = &self.folder else {
            return Ok(Journal { file: None, path: PathBuf::new(), record });
        };
        self.prepare()?;
        self.prune();
        let path = folder.join(format!("{guest}.{}.{word}", self.vmm));
        let file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path)?;
        rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive)
            .map_err(|_| io::Error::new(ErrorKind::ResourceBusy, "another process keeps this journal"))?;
        let before = newest(&file);
        let number = before.as_ref().map_or(0, |record| record.number);
        let mut journal = Journal { file: Some(file), path, record: Record { number, ..record } };
        let begun = journal.begin(promise).and_then(|()| match before {
            None => File::open(folder)?.sync_all(),
            Some(_) => Ok(()),
        });
        if begun.is_err() {
            // Nothing was promised: a record of it would keep the guest from being booted here.
            match before {
                None => journal.remove(),
                Some(before) => journal.restore(before),
            }
        }
        begun.map(|()| journal)
    }

    /// What is known here of a migration whose guest was to come, from journals that no living process keeps.
    #[must_use]
    pub(crate) fn of_session(&self, session: Uuid) -> Option<Past> {
        let ours = |record: &Record| record.session == session && record.side == Side::Destination;
        let (path, _) = self.records().find(|(_, record)| ours(record))?;
        let file = File::open(path).ok()?;
        rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared).ok()?;
        // Read again: what was read before the lock, its process may have written over and died.
        let record = newest(&file).filter(|record| ours(record))?;
        Some(match record.promise {
            Promise::Discarded => Past::NeverRan,
            Promise::Arriving if record.boot == boot() && !record.boot.is_empty() => Past::NeverRan,
            Promise::Arriving => Past::Unsure,
            _ => Past::Ran,
        })
    }

    /// The record of a later incarnation of a guest than this, if one has run here or was handed on from here.
    #[must_use]
    pub fn superseding(&self, guest: Uuid, epoch: u64) -> Option<Record> {
        let later = |record: &Record| {
            let ran = !matches!(record.promise, Promise::Leaving | Promise::Arriving | Promise::Discarded);
            record.guest == guest && record.epoch > epoch && ran
        };
        self.records().map(|(_, record)| record).filter(later).max_by_key(|record| record.epoch)
    }

    /// Where a guest has gone from here, or may have, and the file that says so.
    #[must_use]
    pub fn handed_on(&self, guest: Uuid) -> Option<(PathBuf, Record)> {
        let mine = self.records().filter(|(_, record)| record.guest == guest);
        let (path, last) = mine.max_by_key(|(_, record)| record.epoch)?;
        let gone = matches!(last.promise, Promise::Leaving | Promise::Committed | Promise::Moved);
        gone.then_some((path, last))
    }

    /// Forgets what has been over for long: whoever could still ask has given up.
    fn prune(&self) {
        for (path, record) in self.records() {
            let forgotten_after = match record.promise {
                Promise::Discarded | Promise::Arrived => FORGOTTEN_AFTER,
                // Of a process that died before its guest ran.
                Promise::Arriving => ABANDONED_AFTER,
                _ => continue,
            };
            let old = |file: &File| {
                let age = file.metadata().and_then(|file| file.modified()).ok()?.elapsed().ok()?;
                rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive).ok()?;
                (age >= forgotten_after).then_some(())
            };
            if File::open(&path).is_ok_and(|file| old(&file).is_some()) {
                // It only takes room.
                let _ = fs::remove_file(&path);
            }
        }
    }

    fn records(&self) -> impl Iterator<Item = (PathBuf, Record)> {
        let entries = self.folder.as_ref().and_then(|folder| fs::read_dir(folder).ok());
        let paths = entries.into_iter().flatten().flatten().map(|entry| entry.path());
        paths.filter_map(|path| {
            let record = newest(&File::open(&path).ok()?)?;
            Some((path, record))
        })
    }
}

impl Journal {
    /// Writes how far it has come. Outlives this process; the host only after [`sync`](Self::sync).
    pub(crate) fn write(&mut self, promise: Promise) -> io::Result<()> {
        self.record.promise = promise;
        // A file may say that it was written as often as can be counted: then the newest stays where it is.
        self.record.number = self.record.number.saturating_add(1);
        let Some(file) = &self.file else { return Ok(()) };
        let at = (self.record.number % 2) * SLOT as u64;
        file.write_all_at(&slot(&self.record), at)
    }

    /// The first record, on stable storage. In both slots: so that no later write needs room on the disk.
    fn begin(&mut self, promise: Promise) -> io::Result<()> {
        self.write(promise)?;
        self.write(promise)?;
        self.sync()
    }

    /// What was on record before is again. Without room for that, it is lost with what could not be begun.
    fn restore(&mut self, before: Record) {
        let promise = before.promise;
        self.record = Record { number: self.record.number, ..before };
        let _ = self.write(promise).and_then(|()| self.sync());
    }

    /// Puts what was written on stable storage.
    pub(crate) fn sync(&self) -> io::Result<()> {
        self.file.as_ref().map_or(Ok(()), File::sync_data)
    }

    /// The same with another epoch, on stable storage.
    pub(crate) fn force(&mut self, epoch: u64) -> io::Result<()> {
        self.record.epoch = epoch;
        self.write(Promise::Forced)?;
        self.sync()
    }

    /// Nothing is promised any more.
    pub(crate) fn remove(&mut self) {
        if self.file.take().is_some() {
            // What is left would only say that the guest was about to leave.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Where what must outlive the process is kept: what `VMM_STATE_DIR` says, else `vmm` in `XDG_STATE_HOME`, else
/// `~/.local/state/vmm`, for root `/var/lib/vmm`. It need not exist.
#[must_use]
pub fn state_dir() -> Option<PathBuf> {
    let root = rustix::process::geteuid().is_root();
    let [ours, xdg, home] = ["VMM_STATE_DIR", "XDG_STATE_HOME", "HOME"].map(std::env::var_os);
    choose(ours, xdg, home, root)
}

fn choose(
    ours: Option<OsString>,
    xdg: Option<OsString>,
    home: Option<OsString>,
    root: bool,
) -> Option<PathBuf> {
    let given = |value: Option<OsString>| value.filter(|value| !value.is_empty()).map(PathBuf::from);
    given(ours)
        .or_else(|| given(xdg).map(|xdg| xdg.join("vmm")))
        .or_else(|| root.then(|| "/var/lib/vmm".into()))
        .or_else(|| given(home).map(|home| home.join(".local/state/vmm")))
}

/// The clock by which promises lapse: since the host's boot, its sleep included.
pub(crate) fn now() -> Duration {
    let now = clock_gettime(ClockId::Boottime);
    Duration::new(now.tv_sec.unsigned_abs(), now.tv_nsec.unsigned_abs() as u32)
}

/// The boot of this host; empty where the kernel does not say. Read once: it is wanted when there may be no descriptor for it.
fn boot() -> String {
    static BOOT: LazyLock<String> =
        LazyLock::new(|| fs::read_to_string(BOOT_ID).map(|id| id.trim().to_owned()).unwrap_or_default());
    BOOT.clone()
}

/// A record as it is written: its hash, and a line that a person can read.
fn slot(record: &Record) -> [u8; SLOT] {
    let line = serde_json::to_vec(record).expect("a record is plain data");
    let mut bytes = [b' '; SLOT];
    bytes[SLOT - 1] = b'\n';
    let text = format!("{:016x} ", xxh3_64(&line));
    bytes[..text.len()].copy_from_slice(text.as_bytes());
    bytes[text.len()..text.len() + line.len()].copy_from_slice(&line);
    bytes
}

fn newest(file: &File) -> Option<Record> {
    let read = |at: u64| {
        let mut bytes = [0; SLOT];
        file.read_exact_at(&mut bytes, at * SLOT as u64).ok()?;
        let text = str::from_utf8(&bytes).ok()?;
        let (hash, line) = text.trim_end().split_once(' ')?;
        let whole = u64::from_str_radix(hash, 16).ok()? == xxh3_64(line.as_bytes());
        serde_json::from_str::<Record>(line).ok().filter(|_| whole)
    };
    [0, 1].into_iter().filter_map(read).max_by_key(|record| record.number)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn opened(folder: &Path, promise: Promise, epoch: u64) -> (Journals, Journal, Uuid) {
        let (journals, session) = (Journals::at(folder, "demo"), Uuid::new_v4());
        let journal = journals.open(Uuid::nil(), session, epoch, promise, "there:7400").expect("a folder");
        (journals, journal, session)
    }

    #[test]
    fn a_record_outlives_its_process_and_a_torn_one_leaves_the_one_before() {
        let folder = tempfile::tempdir().expect("a folder");
        let (journals, mut journal, session) = opened(folder.path(), Promise::Arriving, 1);
        assert_eq!(journals.of_session(session), None, "its process lives: ask there");
        journal.write(Promise::Running).expect("room");
        let at = (journal.record.number % 2) * SLOT as u64;
        drop(journal);
        assert_eq!(journals.of_session(session), Some(Past::Ran));
        let path = folder.path().join(format!("{}.demo.destination", Uuid::nil()));
        OpenOptions::new()
            .write(true)
            .open(path)
            .expect("a file")
            .write_all_at(b"torn", at + 40)
            .expect("room");
        assert_eq!(journals.of_session(session), Some(Past::NeverRan));
        assert_eq!(journals.of_session(Uuid::new_v4()), None);
    }

    #[test]
    fn after_a_power_failure_nothing_is_certain() {
        let folder = tempfile::tempdir().expect("a folder");
        let (journals, mut journal, session) = opened(folder.path(), Promise::Arriving, 1);
        journal.record.boot = "another".to_owned();
        journal.write(Promise::Arriving).expect("room");
        drop(journal);
        assert_eq!(journals.of_session(session), Some(Past::Unsure));
    }

    #[test]
    fn an_earlier_incarnation_is_superseded() {
        let folder = tempfile::tempdir().expect("a folder");
        let (journals, mut journal, _) = opened(folder.path(), Promise::Leaving, 3);
        assert_eq!(journals.superseding(Uuid::nil(), 2), None, "nothing was handed on yet");
        journal.write(Promise::Committed).expect("room");
        assert_eq!(journals.superseding(Uuid::nil(), 2).map(|record| record.epoch), Some(3));
        assert_eq!(journals.superseding(Uuid::nil(), 3), None);
        assert_eq!(
            journals.handed_on(Uuid::nil()).map(|(_, record)| record.peer),
            Some("there:7400".to_owned())
        );
        journal.force(4).expect("room");
        assert_eq!(journals.handed_on(Uuid::nil()), None);
        journal.remove();
        assert_eq!(journals.superseding(Uuid::nil(), 0), None);
    }

    #[test]
    fn a_file_that_has_counted_to_the_end_is_written_on() {
        let folder = tempfile::tempdir().expect("a folder");
        let (_, mut journal, _) = opened(folder.path(), Promise::Arriving, 1);
        journal.record.number = u64::MAX - 2;
        journal.write(Promise::Running).expect("room");
        journal.write(Promise::Arrived).expect("room");
        drop(journal);
        let (journals, mut journal, _) = opened(folder.path(), Promise::Arriving, 2);
        assert_eq!(journals.superseding(Uuid::nil(), 1), None, "it only may come");
        journal.write(Promise::Running).expect("room");
        assert_eq!(journals.superseding(Uuid::nil(), 1).map(|record| record.epoch), Some(2));
    }

    #[test]
    fn our_variable_overrides_and_everyone_has_a_place() {
        let some = |value: &str| Some(OsString::from(value));
        assert_eq!(choose(some("/a"), some("/b"), some("/c"), true), Some("/a".into()));
        assert_eq!(choose(some(""), some("/b"), some("/c"), true), Some("/b/vmm".into()));
        assert_eq!(choose(None, None, some("/c"), true), Some("/var/lib/vmm".into()));
        assert_eq!(choose(None, None, some("/c"), false), Some("/c/.local/state/vmm".into()));
        assert_eq!(choose(None, None, None, false), None);
    }

    /// What the pause pays: `cargo test --release -p migrate --lib journal -- --ignored --nocapture`.
    #[test]
    #[ignore = "a measurement, for people to read"]
    fn what_a_record_in_the_pause_costs() {
        let folder = tempfile::tempdir().expect("a folder");
        let (_, mut journal, _) = opened(folder.path(), Promise::Leaving, 1);
        let mut us: Vec<u128> = (0..2000)
            .map(|_| {
                let since = std::time::Instant::now();
                journal.write(Promise::Committed).expect("room");
                since.elapsed().as_nanos()
            })
            .collect();
        us.sort_unstable();
        println!("median {} ns, 99 % {} ns, longest {} ns", us[1000], us[1980], us[1999]);
    }
}
