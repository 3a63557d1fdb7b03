//! A link that misbehaves on purpose: after so many messages it is cut, or goes silent.

use std::io::{self, ErrorKind};
use std::net::{Shutdown, SocketAddr};
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use migrate::channel::{Dial, Link, Listen, memory};
use migrate::guest::Ram;
use migrate::pages::PageRun;
use migrate::wire::Role;

/// What happens when the fuse has burnt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Blow {
    /// All connections are closed.
    Cut,
    /// All connections are closed, and new ones are good.
    Blip,
    /// Nothing arrives any more, and nobody is told.
    Silence,
}

/// Burns by one on every operation of any link that has it.
#[derive(Debug)]
pub(crate) struct Fuse {
    left: AtomicI64,
    blow: Blow,
    /// Its links say that they lead no farther than this host.
    near: bool,
    /// Pages of the largest frame that was sent over its links, and those of fuses made from it.
    largest: Arc<AtomicU64>,
    /// Those that are still somebody's.
    links: Mutex<Vec<Weak<dyn Link>>>,
}

impl Fuse {
    pub(crate) fn new(operations: i64, blow: Blow) -> Arc<Self> {
        Arc::new(Self::of(operations, blow, false, Arc::default()))
    }

    /// As between two VMMs of one host.
    pub(crate) fn near(operations: i64, blow: Blow) -> Arc<Self> {
        Arc::new(Self::of(operations, blow, true, Arc::default()))
    }

    /// For links of the same kind, one that never burns.
    pub(crate) fn sound(&self) -> Arc<Self> {
        Arc::new(Self::of(i64::MAX, self.blow, self.near, Arc::clone(&self.largest)))
    }

    fn of(operations: i64, blow: Blow, near: bool, largest: Arc<AtomicU64>) -> Self {
        Self { left: AtomicI64::new(operations), blow, near, largest, links: Mutex::default() }
    }

    pub(crate) fn largest(&self) -> u64 {
        self.largest.load(Ordering::SeqCst)
    }

    pub(crate) fn has_blown(&self) -> bool {
        self.left.load(Ordering::SeqCst) < 0
    }

    /// Counts from now on: so many operations are left.
    pub(crate) fn light(&self, operations: i64) {
        self.left.store(operations, Ordering::SeqCst);
    }

    /// Burns through at once.
    pub(crate) fn blow(&self) {
        self.left.store(0, Ordering::SeqCst);
        self.burn();
    }

    /// Whether the operation may still happen.
    fn burn(&self) -> bool {
        let left = self.left.fetch_sub(1, Ordering::SeqCst);
        if left == 0 && self.blow != Blow::Silence {
            let links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
            links.iter().filter_map(Weak::upgrade).for_each(|link| link.shut(Shutdown::Both));
        }
        left > 0
    }

    fn wrap(self: &Arc<Self>, inner: Arc<dyn Link>) -> Arc<dyn Link> {
        if self.blow == Blow::Blip && self.has_blown() {
            return inner;
        }
        self.links.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::downgrade(&inner));
        let (void, end) = memory::pair();
        Arc::new(Fused { inner, void, _end: end, fuse: Arc::clone(self) })
    }
}

#[derive(Debug)]
struct Fused {
    inner: Arc<dyn Link>,
    /// Where silence is heard.
    void: Arc<dyn Link>,
    _end: Arc<dyn Link>,
    fuse: Arc<Fuse>,
}

impl Fused {
    fn sending(&self, send: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        match (self.fuse.burn(), self.fuse.blow) {
            (true, _) => send(),
            (false, Blow::Cut | Blow::Blip) => Err(ErrorKind::BrokenPipe.into()),
            (false, Blow::Silence) => Ok(()),
        }
    }
}

impl Link for Fused {
    fn send(&self, bytes: &[u8]) -> io::Result<()> {
        self.sending(|| self.inner.send(bytes))
    }

    fn send_pages(&self, head: &[u8], ram: &dyn Ram, runs: &[PageRun]) -> io::Result<()> {
        self.sending(|| {
            let pages = runs.iter().map(|run| run.count).sum();
            self.fuse.largest.fetch_max(pages, Ordering::SeqCst);
            self.inner.send_pages(head, ram, runs)
        })
    }

    fn receive(&self, into: &mut [u8]) -> io::Result<()> {
        match (self.fuse.burn(), self.fuse.blow) {
            (true, _) | (false, Blow::Cut | Blow::Blip) => self.inner.receive(into),
            (false, Blow::Silence) => self.void.receive(into),
        }
    }

    fn receive_pages(&self, ram: &dyn Ram, runs: &[PageRun]) -> io::Result<()> {
        self.inner.receive_pages(ram, runs)
    }

    fn set_limit(&self, limit: Duration) -> io::Result<()> {
        self.void.set_limit(limit)?;
        self.inner.set_limit(limit)
    }

    fn shut(&self, how: Shutdown) {
        self.void.shut(how);
        // A silent network carries no goodbye either, but this side's threads must wake.
        if self.fuse.blow != Blow::Silence || !self.fuse.has_blown() {
            self.inner.shut(how);
        } else {
            self.inner.shut(Shutdown::Read);
        }
    }

    fn peer(&self) -> &str {
        self.inner.peer()
    }

    fn is_within_host(&self) -> bool {
        self.fuse.near
    }
}

/// Dials or listens with a fuse on every link.
#[derive(Clone)]
pub(crate) struct Fusing<T> {
    pub(crate) inner: T,
    pub(crate) fuse: Arc<Fuse>,
}

impl<T: Dial> Dial for Fusing<T> {
    fn dial(&self, role: Role, limit: Duration, made: &dyn Fn(&Arc<dyn Link>)) -> io::Result<Arc<dyn Link>> {
        let link = self.fuse.wrap(self.inner.dial(role, limit, &|_| {})?);
        made(&link);
        Ok(link)
    }

    fn to(&self) -> &str {
        self.inner.to()
    }
}

impl<T: Listen> Listen for Fusing<T> {
    fn accept(&self) -> io::Result<Option<Arc<dyn Link>>> {
        Ok(self.inner.accept()?.map(|link| self.fuse.wrap(link)))
    }

    fn address(&self) -> Option<SocketAddr> {
        self.inner.address()
    }

    fn wake(&self) {
        self.inner.wake();
    }
}
