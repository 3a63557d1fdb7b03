//! Byte streams with deadlines: TCP between hosts, plain or inside TLS; memory between two sides in one process (tests).
//!
//! A [`Link`] moves whole frames: each `send` is written wholly and never mixed with another thread's.
//! No read or write waits longer than the link's time limit. Pages travel straight between guest memory
//! and the socket. A link knows no messages; [`Line`](line::Line) does.

pub(crate) mod limiter;
pub(crate) mod line;
pub mod memory;
pub mod tcp;
pub mod tls;
pub mod whole;
pub mod within;

use std::fmt::Debug;
use std::io;
use std::net::{Shutdown, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use crate::guest::Ram;
use crate::pages::PageRun;
use crate::wire::Role;

/// One connection.
pub trait Link: Send + Sync + Debug {
    /// Called once by the side that accepted, before anything else: both sides prove who they are, where this kind of link
    /// asks for that. Takes no longer than `limit` altogether, however slowly the peer speaks.
    ///
    /// # Errors
    /// [`Distrust`](tls::Distrust) where the peer has tried and is not trusted; others as the link fails.
    fn open(&self, limit: Duration) -> io::Result<()> {
        let _ = limit;
        Ok(())
    }

    /// Writes `bytes`, wholly.
    ///
    /// # Errors
    /// As the link fails; `TimedOut` after the time limit.
    fn send(&self, bytes: &[u8]) -> io::Result<()>;

    /// Writes `head` and then the pages of `runs`, wholly.
    ///
    /// # Errors
    /// As for [`send`](Self::send).
    fn send_pages(&self, head: &[u8], ram: &dyn Ram, runs: &[PageRun]) -> io::Result<()>;

    /// Fills `into`. One thread reads a link.
    ///
    /// # Errors
    /// `WouldBlock` when the time limit passed before the first byte, `TimedOut` when the [time for all](whole::time_for)
    /// passed after it; `UnexpectedEof` when the peer has closed.
    fn receive(&self, into: &mut [u8]) -> io::Result<()>;

    /// Fills the pages of `runs`.
    ///
    /// # Errors
    /// As for [`receive`](Self::receive).
    fn receive_pages(&self, ram: &dyn Ram, runs: &[PageRun]) -> io::Result<()>;

    /// Sets how long every read and write may wait for the peer.
    ///
    /// # Errors
    /// When the system refuses.
    fn set_limit(&self, limit: Duration) -> io::Result<()>;

    /// Its ends share a core, if they are on one host: little is to wait in it.
    fn keep_in_cache(&self) {}

    /// Whether both ends have the same address: they are on one host, or a tunnel begins here.
    fn is_within_host(&self) -> bool {
        false
    }

    /// Ends reading, writing, or both. Whoever is blocked returns at once; what has arrived can still be read.
    fn shut(&self, how: Shutdown);

    /// Who is at the other end, for people.
    fn peer(&self) -> &str;
}

/// How a source reaches its destination.
pub trait Dial: Send + Sync {
    /// A new connection; `made` is told of it before anything blocks, so that it can be shut meanwhile.
    ///
    /// # Errors
    /// When nobody answers within `limit`.
    fn dial(&self, role: Role, limit: Duration, made: &dyn Fn(&Arc<dyn Link>)) -> io::Result<Arc<dyn Link>>;

    /// Where to, for people.
    fn to(&self) -> &str;

    /// Finds out where that is, for all dials to come. It may take any time and nothing ends it, so it runs beside;
    /// `None`: there is nothing to find out. Without it each dial does so itself.
    fn look_up(&self) -> Option<Box<dyn FnOnce() -> io::Result<()> + Send>> {
        None
    }

    /// The same way of dialling, to another address; none where there are no addresses.
    fn elsewhere(&self, _to: &str) -> Option<Box<dyn Dial>> {
        None
    }
}

/// How a destination is reached.
pub trait Listen: Send + Sync {
    /// Waits for the next connection; `None` after [`wake`](Self::wake).
    ///
    /// # Errors
    /// When the system's listener is broken for good.
    fn accept(&self) -> io::Result<Option<Arc<dyn Link>>>;

    /// Where it listens, if that has an address.
    fn address(&self) -> Option<SocketAddr>;

    /// Makes the present or next [`accept`](Self::accept) return `None`, once.
    fn wake(&self);
}

/// How long each kind of wait may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deadlines {
    /// A connection, a hello, the data connections after the pre-flight.
    pub connect: Duration,
    /// Silence outside the pause.
    pub idle: Duration,
    /// Silence, and the whole wait for ready, during the pause.
    pub pause: Duration,
    /// Between two signs of life.
    pub beat: Duration,
    /// The guest's figures are read again so long after the end.
    pub settle: Duration,
}

impl Default for Deadlines {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(5),
            idle: Duration::from_secs(10),
            pause: Duration::from_secs(3),
            beat: Duration::from_millis(500),
            settle: Duration::from_millis(250),
        }
    }
}
