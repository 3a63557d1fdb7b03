//! Where the guest's output goes, and where its input comes from: for its serial port and its virtio console alike.
//!
//! The last [`BACKLOG`] bytes are kept in a ring whose positions never repeat. Whoever listens reads from the ring at
//! its own pace: a slow listener loses the oldest bytes and is told how many; the guest never waits for anyone.
//! A file (or standard output) loses nothing while it takes what its own thread writes; one that does not is said to
//! lose output on standard error, and the guest goes on.

mod input;

use std::collections::VecDeque;
use std::io::Write;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::sandbox::{self, ThreadKind};
use input::Input;
pub(super) use input::{MAX_INPUT, Reader};

/// Bytes of recent output that are kept.
pub(super) const BACKLOG: usize = 64 << 10;

/// Bytes that wait for a slow file at most.
const MAX_UNWRITTEN: usize = 16 << 20;

/// A guest's console. Clones are the same console.
#[derive(Clone)]
pub struct Console {
    shared: Arc<Shared>,
    /// Ends with the last clone.
    _file: Option<Arc<FileThread>>,
}

struct Shared {
    /// Written by vCPU threads, read by listeners: a lock, held for a copy of at most [`BACKLOG`].
    ring: Mutex<Ring>,
    more: Condvar,
    /// The position after the newest byte, for listeners that wait without blocking.
    position: watch::Sender<u64>,
    input: Input,
}

#[derive(Default)]
struct Ring {
    bytes: VecDeque<u8>,
    /// Position after the newest byte: bytes since the console was made.
    end: u64,
    /// What the file's thread has not written yet; none without a file.
    unwritten: Option<Unwritten>,
    /// No more output will come.
    closed: bool,
    /// The file's thread has written all.
    written: bool,
}

/// Output on its way to a file.
#[derive(Default)]
struct Unwritten {
    bytes: Vec<u8>,
    /// Bytes after these that found no room.
    lost: u64,
}

/// What a listener heard.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Heard {
    /// Bytes that were lost before these, because the listener was slow.
    pub lost: u64,
    /// The output.
    pub bytes: Vec<u8>,
}

impl Default for Console {
    fn default() -> Self {
        Self::new()
    }
}

impl Console {
    /// A console that only keeps the backlog.
    #[must_use]
    pub fn new() -> Self {
        Self { shared: Arc::new(Shared::new(Ring::default())), _file: None }
    }

    /// A console whose whole output is also written to `sink`, by a thread of its own.
    ///
    /// # Errors
    /// When the host refuses the thread.
    pub fn with_sink(sink: Box<dyn Write + Send>) -> std::io::Result<Self> {
        let shared = Arc::new(Shared::new(Ring { unwritten: Some(Unwritten::default()), ..Ring::default() }));
        let file = FileThread::start(Arc::clone(&shared), sink)?;
        Ok(Self { shared, _file: Some(Arc::new(file)) })
    }

    /// Output of the guest, nothing between these bytes. Never waits for a listener.
    pub(super) fn put(&self, bytes: &[u8]) {
        let mut ring = self.shared.ring();
        ring.bytes.extend(bytes);
        let old = ring.bytes.len().saturating_sub(BACKLOG);
        ring.bytes.drain(..old);
        ring.end += bytes.len() as u64;
        if let Some(unwritten) = &mut ring.unwritten {
            unwritten.push(bytes);
        }
        let end = ring.end;
        drop(ring);
        self.shared.more.notify_all();
        self.shared.position.send_replace(end);
    }

    /// The most recent output.
    #[must_use]
    pub fn recent(&self) -> Vec<u8> {
        self.shared.ring().bytes.iter().copied().collect()
    }

    /// Listens, from the oldest byte that is kept.
    #[must_use]
    pub fn listen(&self) -> ConsoleReader {
        let at = self.shared.ring().start();
        ConsoleReader { shared: Arc::clone(&self.shared), at, moved: self.shared.position.subscribe() }
    }

    /// Waits until `text` is in the recent output, at most `limit`.
    #[must_use]
    pub fn wait_for(&self, text: &str, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        let mut ring = self.shared.ring();
        loop {
            let found = ring.bytes.make_contiguous().windows(text.len().max(1)).any(|w| w == text.as_bytes());
            let wait = deadline.saturating_duration_since(Instant::now());
            if found || wait.is_zero() {
                return found;
            }
            ring = self.shared.more.wait_timeout(ring, wait).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Types. How many bytes were taken: fewer than given when the guest does not read.
    pub fn input(&self, bytes: &[u8]) -> usize {
        self.shared.input.type_in(bytes)
    }

    /// Connects a device: `typed` is called when there is input for it. The serial port comes first, and reads, in the
    /// place of all that another machine had connected. With a virtio console nobody reads before that is
    /// [settled](Self::settle_input).
    pub(super) fn connect(&self, reader: Reader, typed: Arc<dyn Fn() + Send + Sync>) {
        self.shared.input.connect(reader, typed);
    }

    /// From here on this device reads.
    pub(super) fn input_goes_to(&self, reader: Reader) {
        self.shared.input.goes_to(reader);
    }

    /// As long as that is open: this device reads.
    pub(super) fn settle_input(&self, reader: Reader) {
        self.shared.input.settle(reader);
    }

    /// Whether there is input for this device.
    pub(super) fn input_waits_for(&self, reader: Reader) -> bool {
        self.shared.input.waits_for(reader)
    }

    /// Offers up to `room` bytes of input, if this device reads; `take` says how many it has taken. Whoever types waits
    /// for it.
    pub(super) fn give_input(&self, reader: Reader, room: usize, take: impl FnOnce(&[u8]) -> usize) {
        self.shared.input.give(reader, room, take);
    }

    /// A copy of what waits for the guest.
    pub(super) fn pending_input(&self) -> Vec<u8> {
        self.shared.input.pending()
    }

    /// What waited for the guest where it was: comes first once it runs.
    pub(super) fn restore_input(&self, bytes: &[u8]) {
        self.shared.input.restore(bytes);
    }

    /// The guest is about to run here.
    pub(super) fn guest_runs(&self) {
        self.shared.input.guest_runs();
    }
}

impl std::fmt::Debug for Console {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "console at byte {}", self.shared.ring().end)
    }
}

impl Shared {
    fn new(ring: Ring) -> Self {
        Self {
            ring: Mutex::new(ring),
            more: Condvar::new(),
            position: watch::Sender::new(0),
            input: Input::default(),
        }
    }

    /// Nothing that is done under it can leave the ring half-changed.
    fn ring(&self) -> MutexGuard<'_, Ring> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Unwritten {
    fn push(&mut self, bytes: &[u8]) {
        let (kept, lost) = bytes.split_at(bytes.len().min(MAX_UNWRITTEN - self.bytes.len()));
        self.bytes.extend_from_slice(kept);
        self.lost += lost.len() as u64;
    }
}

impl Ring {
    fn start(&self) -> u64 {
        self.end - self.bytes.len() as u64
    }
}

/// One listener and how far it has come.
pub struct ConsoleReader {
    shared: Arc<Shared>,
    at: u64,
    moved: watch::Receiver<u64>,
}

impl ConsoleReader {
    /// What has come since the last time; nothing if nothing has.
    pub fn now(&mut self) -> Heard {
        let ring = self.shared.ring();
        let from = self.at.max(ring.start());
        let bytes = ring.bytes.iter().skip((from - ring.start()) as usize).copied().collect();
        let heard = Heard { lost: from - self.at, bytes };
        self.at = ring.end;
        heard
    }

    /// Waits for output. Can be dropped while waiting without losing any.
    pub async fn next(&mut self) -> Heard {
        loop {
            self.moved.borrow_and_update();
            let heard = self.now();
            if heard != Heard::default() {
                return heard;
            }
            if self.moved.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }
}

impl std::fmt::Debug for ConsoleReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "console listener at byte {}", self.at)
    }
}

/// How long the end of a console waits for a file (a terminal that is stopped, a full pipe) to take the rest.
const STUCK: Duration = Duration::from_secs(2);

/// The thread that writes everything to a file. Dropping it waits until all is written, or the file is stuck.
struct FileThread {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl FileThread {
    fn start(shared: Arc<Shared>, sink: Box<dyn Write + Send>) -> std::io::Result<Self> {
        let source = Arc::clone(&shared);
        let body = move || {
            sandbox::confine(ThreadKind::Device);
            write_on(&source, sink, |words| {
                let _ = writeln!(std::io::stderr(), "vmm: {words}");
            });
            source.ring().written = true;
            source.more.notify_all();
        };
        let thread = std::thread::Builder::new().name("console-file".into()).spawn(body)?;
        Ok(Self { shared, thread: Some(thread) })
    }
}

impl Drop for FileThread {
    fn drop(&mut self) {
        self.shared.ring().closed = true;
        self.shared.more.notify_all();
        let waited = self.shared.more.wait_timeout_while(self.shared.ring(), STUCK, |ring| !ring.written);
        let written = waited.unwrap_or_else(PoisonError::into_inner).0.written;
        if let (Some(thread), true) = (self.thread.take(), written) {
            let _ = thread.join();
        }
    }
}

/// Writes all that comes. The guest must not suffer for a file that cannot be written: its output is lost then, which
/// is said once.
fn write_on(shared: &Shared, mut sink: impl Write, mut say: impl FnMut(&str)) {
    let mut failed = false;
    while let Some(Unwritten { bytes, lost }) = unwritten(shared) {
        if let (Err(error), false) = (sink.write_all(&bytes).and_then(|()| sink.flush()), failed) {
            failed = true;
            say(&format!("the console's output is lost, it cannot be written: {error}; the guest goes on"));
        }
        if lost > 0 {
            say(&format!("{lost} bytes of the console's output are lost: its file is too slow"));
        }
    }
}

/// Waits for output that is not written yet. None when the console is closed and all is written.
fn unwritten(shared: &Shared) -> Option<Unwritten> {
    let mut ring = shared.ring();
    loop {
        let all = ring.unwritten.as_mut().map(std::mem::take).unwrap_or_default();
        if !all.bytes.is_empty() {
            return Some(all);
        }
        if ring.closed {
            return None;
        }
        ring = shared.more.wait(ring).unwrap_or_else(PoisonError::into_inner);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_hears_the_backlog_and_what_follows() {
        let console = Console::new();
        console.put(b"one");
        let mut reader = console.listen();
        assert_eq!(reader.now(), Heard { lost: 0, bytes: b"one".into() });
        console.put(b"two");
        assert_eq!(reader.now(), Heard { lost: 0, bytes: b"two".into() });
        assert_eq!(reader.now(), Heard::default());
        assert!(console.wait_for("netw", Duration::ZERO));
    }

    #[test]
    fn a_slow_listener_is_told_what_it_lost() {
        let console = Console::new();
        let mut reader = console.listen();
        console.put(&vec![b'x'; BACKLOG + 10]);
        let heard = reader.now();
        assert_eq!((heard.lost, heard.bytes.len()), (10, BACKLOG));
    }

    #[test]
    fn a_file_loses_nothing() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let console = Console::with_sink(Box::new(file.reopen().unwrap())).unwrap();
        let text: Vec<u8> = (0..3 * BACKLOG).map(|n| n as u8).collect();
        console.put(&text);
        drop(console);
        assert!(std::fs::read(file.path()).unwrap() == text);
    }

    #[test]
    fn a_file_that_fails_is_told_of_once() {
        let shared = Shared::new(Ring { unwritten: Some(Unwritten::default()), ..Ring::default() });
        let console = Console { shared: Arc::new(shared), _file: None };
        console.put(b"lost");
        let mut said = Vec::new();
        write_on(&console.shared, std::fs::File::create("/dev/full").unwrap(), |words| {
            said.push(words.to_owned());
            console.put(b"more");
            console.shared.ring().closed = said.len() == 1;
        });
        assert_eq!(said.len(), 1, "{said:?}");
        assert!(said[0].contains("No space left"), "{said:?}");
    }

    #[test]
    fn a_file_that_is_too_slow_loses_the_newest_and_is_told_how_much() {
        let mut unwritten = Unwritten { bytes: vec![b'x'; MAX_UNWRITTEN - 1], lost: 0 };
        unwritten.push(b"yyy");
        assert_eq!((unwritten.bytes.len(), unwritten.lost), (MAX_UNWRITTEN, 2));
        let ring = Ring { unwritten: Some(unwritten), closed: true, ..Ring::default() };
        let mut said = Vec::new();
        write_on(&Shared::new(ring), std::io::sink(), |words| said.push(words.to_owned()));
        assert_eq!(said, ["2 bytes of the console's output are lost: its file is too slow"]);
    }

    #[tokio::test(flavor = "current_thread")]
    async fn waiting_ends_with_output() {
        let console = Console::new();
        let mut reader = console.listen();
        let writer = console.clone();
        let thread = std::thread::spawn(move || writer.put(b"!"));
        assert_eq!(reader.next().await.bytes, b"!");
        thread.join().unwrap();
    }
}
