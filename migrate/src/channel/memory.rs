//! Links inside one process: two bounded byte queues. For tests of both sides without a network.

use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::net::{Shutdown, SocketAddr};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::{Dial, Link, Listen};
use crate::guest::Ram;
use crate::pages::PageRun;
use crate::wire::Role;

/// Bytes in flight in one direction before the sender waits.
const CAPACITY: usize = 256 << 10;

/// One direction of a link. The queue is shared by the two ends: one writes, one reads.
#[derive(Debug, Default)]
struct Pipe {
    queue: Mutex<Queue>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Queue {
    bytes: VecDeque<u8>,
    /// The writer will write no more.
    ended: bool,
    /// The reader will read no more.
    refused: bool,
}

impl Pipe {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a change until `deadline`; false when it has passed.
    fn wait<'a>(&self, queue: MutexGuard<'a, Queue>, deadline: Instant) -> Option<MutexGuard<'a, Queue>> {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return None;
        }
        Some(self.changed.wait_timeout(queue, left).unwrap_or_else(PoisonError::into_inner).0)
    }

    fn write(&self, mut bytes: &[u8], limit: Duration) -> io::Result<()> {
        let deadline = Instant::now() + limit;
        let mut queue = self.lock();
        while !bytes.is_empty() {
            if queue.ended || queue.refused {
                return Err(ErrorKind::BrokenPipe.into());
            }
            let room = (CAPACITY - queue.bytes.len()).min(bytes.len());
            if room == 0 {
                queue = self.wait(queue, deadline).ok_or(ErrorKind::TimedOut)?;
                continue;
            }
            queue.bytes.extend(&bytes[..room]);
            bytes = &bytes[room..];
            self.changed.notify_all();
        }
        Ok(())
    }

    fn read(&self, into: &mut [u8], limit: Duration) -> io::Result<()> {
        let deadline = Instant::now() + limit;
        let mut queue = self.lock();
        let mut done = 0;
        while done < into.len() {
            let got = queue.bytes.len().min(into.len() - done);
            if got > 0 {
                for (to, byte) in into[done..].iter_mut().zip(queue.bytes.drain(..got)) {
                    *to = byte;
                }
                done += got;
                self.changed.notify_all();
            } else if queue.ended || queue.refused {
                return Err(ErrorKind::UnexpectedEof.into());
            } else {
                let late = if done == 0 { ErrorKind::WouldBlock } else { ErrorKind::TimedOut };
                queue = self.wait(queue, deadline).ok_or(late)?;
            }
        }
        Ok(())
    }

    fn end(&self) {
        self.lock().ended = true;
        self.changed.notify_all();
    }

    fn refuse(&self) {
        self.lock().refused = true;
        self.changed.notify_all();
    }
}

/// One end of a link in memory.
#[derive(Debug)]
pub struct MemoryLink {
    out: Arc<Pipe>,
    back: Arc<Pipe>,
    limit: Mutex<Duration>,
    writing: Mutex<()>,
}

/// The two ends of a link in memory.
#[must_use]
pub fn pair() -> (Arc<dyn Link>, Arc<dyn Link>) {
    let (there, back) = (Arc::new(Pipe::default()), Arc::new(Pipe::default()));
    let end = |out: &Arc<Pipe>, back: &Arc<Pipe>| MemoryLink {
        out: Arc::clone(out),
        back: Arc::clone(back),
        limit: Mutex::new(Duration::from_secs(10)),
        writing: Mutex::new(()),
    };
    (Arc::new(end(&there, &back)), Arc::new(end(&back, &there)))
}

impl MemoryLink {
    fn limit(&self) -> Duration {
        *self.limit.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Link for MemoryLink {
    fn send(&self, bytes: &[u8]) -> io::Result<()> {
        let _whole = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        self.out.write(bytes, self.limit())
    }

    fn send_pages(&self, head: &[u8], ram: &dyn Ram, runs: &[PageRun]) -> io::Result<()> {
        let mut frame = head.to_vec();
        for run in runs {
            let at = frame.len();
            frame.resize(at + run.bytes() as usize, 0);
            ram.copy_out(*run, &mut frame[at..]);
        }
        self.send(&frame)
    }

    fn receive(&self, into: &mut [u8]) -> io::Result<()> {
        self.back.read(into, self.limit())
    }

    fn receive_pages(&self, ram: &dyn Ram, runs: &[PageRun]) -> io::Result<()> {
        let mut bytes = Vec::new();
        for run in runs {
            bytes.resize(run.bytes() as usize, 0);
            self.receive(&mut bytes)?;
            ram.copy_in(*run, &bytes);
        }
        Ok(())
    }

    fn set_limit(&self, limit: Duration) -> io::Result<()> {
        *self.limit.lock().unwrap_or_else(PoisonError::into_inner) = limit;
        Ok(())
    }

    fn shut(&self, how: Shutdown) {
        if how != Shutdown::Read {
            self.out.end();
        }
        if how != Shutdown::Write {
            self.back.refuse();
        }
    }

    fn peer(&self) -> &str {
        "the other side"
    }
}

impl Drop for MemoryLink {
    fn drop(&mut self) {
        self.shut(Shutdown::Both);
    }
}

/// A listener in memory, and its dialler: clones are the same place.
#[derive(Debug, Clone, Default)]
pub struct Place {
    inner: Arc<(Mutex<Waiting>, Condvar)>,
}

#[derive(Debug, Default)]
struct Waiting {
    links: VecDeque<Arc<dyn Link>>,
    woken: bool,
}

impl Place {
    /// A place nobody has dialled yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }
}

impl Dial for Place {
    fn dial(&self, _: Role, _: Duration, made: &dyn Fn(&Arc<dyn Link>)) -> io::Result<Arc<dyn Link>> {
        let (near, far) = pair();
        made(&near);
        self.inner.0.lock().unwrap_or_else(PoisonError::into_inner).links.push_back(far);
        self.inner.1.notify_all();
        Ok(near)
    }

    fn to(&self) -> &str {
        "memory"
    }
}

impl Listen for Place {
    fn accept(&self) -> io::Result<Option<Arc<dyn Link>>> {
        let mut waiting = self.inner.0.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if std::mem::take(&mut waiting.woken) {
                return Ok(None);
            }
            if let Some(link) = waiting.links.pop_front() {
                return Ok(Some(link));
            }
            waiting = self.inner.1.wait(waiting).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn address(&self) -> Option<SocketAddr> {
        None
    }

    fn wake(&self) {
        self.inner.0.lock().unwrap_or_else(PoisonError::into_inner).woken = true;
        self.inner.1.notify_all();
    }
}
