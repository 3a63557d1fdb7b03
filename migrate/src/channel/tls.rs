//! Links inside TLS 1.3, in which each side has proven to the other who it is.
//!
//! The bytes inside are those of a plain connection. What TLS does with them is between memory and memory
//! ([`Session`]); the socket, its time limits and its ends are those of [`tcp`](super::tcp). So one thread may read while
//! another writes. A page costs a copy and its encryption on either side; its frame's head goes in records of its own, so that
//! a full record is four whole pages. No `close_notify` is said: in a migration an end is a message.

mod distrust;
mod fill;
mod session;

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustls::client::UnbufferedClientConnection;
use rustls::server::UnbufferedServerConnection;

pub use self::distrust::Distrust;
use self::fill::{Buffer, Fill, Pages};
use self::session::{Session, Stage, sealed};
use super::tcp::{TcpDial, TcpLink, TcpListen};
use super::whole::time_for;
use super::{Dial, Link, Listen};
use crate::guest::Ram;
use crate::pages::{PAGE_SIZE, PageRun};
use crate::protection::{DestinationIdentity, SourceIdentity};
use crate::wire::limits::MAGIC;
use crate::wire::message::Refuse;
use crate::wire::{Message, Role};

/// Plain bytes sealed and written at once: a few times what is under way between processor and socket, and within its cache.
const PIECE: usize = 256 << 10;

/// Bytes read at once.
const GULP: usize = 256 << 10;

/// One TLS connection.
#[derive(Debug)]
pub struct TlsLink {
    tcp: TcpLink,
    session: Mutex<Session>,
    /// Held while a frame is written, so that frames of two threads never mix.
    outgoing: Mutex<Outgoing>,
    incoming: Mutex<Incoming>,
}

/// Bytes on their way out. The buffers stay, so that a frame allocates nothing.
#[derive(Debug, Default)]
struct Outgoing {
    plain: Vec<u8>,
    sealed: Vec<u8>,
    /// Of `sealed`.
    filled: usize,
}

/// Bytes that have come: records, from `start` on, and what is left of the last one that was opened, from `read` on.
#[derive(Debug, Default)]
struct Incoming {
    bytes: Vec<u8>,
    start: usize,
    filled: usize,
    plain: Vec<u8>,
    read: usize,
}

impl Incoming {
    /// What was opened before goes first.
    fn serve(&mut self, fill: &mut dyn Fill) {
        self.read += fill.take(&self.plain[self.read..]);
        if self.read == self.plain.len() {
            self.plain.clear();
            self.read = 0;
        }
    }

    /// Where to read to. What is left of a record moves to the front.
    fn room(&mut self) -> &mut [u8] {
        self.bytes.resize(GULP, 0);
        self.bytes.copy_within(self.start..self.filled, 0);
        self.filled -= self.start;
        self.start = 0;
        &mut self.bytes[self.filled..]
    }

    fn is_amid_record(&self) -> bool {
        self.filled > self.start
    }
}

impl TlsLink {
    fn new(tcp: TcpLink, session: Session) -> Self {
        Self { tcp, session: Mutex::new(session), outgoing: Mutex::default(), incoming: Mutex::default() }
    }

    /// Both sides prove who they are, within `limit` altogether.
    fn shake_hands(&self, limit: Duration) -> io::Result<()> {
        let deadline = Instant::now() + limit;
        let (mut incoming, mut session) = (lock(&self.incoming), lock(&self.session));
        let (mut nothing, mut out) = (Buffer { into: &mut [], done: 0 }, Vec::new());
        loop {
            let Incoming { bytes, start, filled, plain, .. } = &mut *incoming;
            let opened = session.open(&mut bytes[*start..*filled], &mut nothing, plain, &mut out);
            if !out.is_empty() {
                self.limit_to(deadline)?;
                (&self.tcp.socket).write_all(&out)?;
                out.clear();
            }
            let (used, stage) = opened.map_err(Distrust::of)?;
            *start += used;
            if stage == Stage::Open {
                return Ok(());
            }
            let first = !incoming.is_amid_record() && matches!(*session, Session::Server(_));
            let room = incoming.room();
            if room.is_empty() {
                return Err(Distrust("its handshake is too long".to_owned()).into());
            }
            self.limit_to(deadline)?;
            let got = match (&self.tcp.socket).read(room) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(got) => got,
                Err(error) if error.kind() == ErrorKind::Interrupted => 0,
                Err(error) => return Err(error),
            };
            incoming.filled += got;
            if first && incoming.bytes[..incoming.filled].starts_with(&MAGIC.to_le_bytes()) {
                return Err(self.turn_plain_away());
            }
        }
    }

    /// No read or write goes on beyond `deadline`.
    fn limit_to(&self, deadline: Instant) -> io::Result<()> {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(ErrorKind::TimedOut.into()) } else { self.tcp.set_limit(left) }
    }

    /// A source without TLS speaks our frames: it is told in its own words.
    fn turn_plain_away(&self) -> io::Error {
        let reason =
            "migrations to here are protected; give migrate --tls or --psk as the destination was given";
        let refuse = Message::Refuse(Refuse { reasons: vec![reason.to_owned()] });
        if let Ok(frame) = refuse.encode() {
            // It may be gone already.
            let _ = self.tcp.send(&frame);
        }
        Distrust("it has no TLS; its migrate needs --tls or --psk as here".to_owned()).into()
    }

    /// Seals `bytes`, and writes what does not fit any more.
    fn push(&self, sealed_bytes: &mut Vec<u8>, filled: &mut usize, bytes: &[u8]) -> io::Result<()> {
        sealed_bytes.resize(2 * sealed(PIECE), 0);
        for piece in bytes.chunks(PIECE) {
            if sealed_bytes.len() - *filled < sealed(piece.len()) {
                self.flush(sealed_bytes, filled)?;
            }
            *filled += lock(&self.session).seal(piece, &mut sealed_bytes[*filled..])?;
        }
        Ok(())
    }

    fn flush(&self, sealed_bytes: &[u8], filled: &mut usize) -> io::Result<()> {
        let written = (&self.tcp.socket).write_all(&sealed_bytes[..*filled]);
        *filled = 0;
        // A record that was written in part would be followed by another: the peer could read neither.
        written.inspect_err(|_| *lock(&self.session) = Session::Broken)
    }

    /// Reads until `fill` is full.
    fn pull(&self, fill: &mut dyn Fill) -> io::Result<()> {
        let (limit, whole) = (self.tcp.limit(), fill.bytes());
        let mut deadline = None;
        let mut incoming = lock(&self.incoming);
        incoming.serve(fill);
        while !fill.is_full() {
            let Incoming { bytes, start, filled, plain, .. } = &mut *incoming;
            *start += lock(&self.session).open_more(&mut bytes[*start..*filled], fill, plain)?;
            if fill.is_full() {
                break;
            }
            let begun = fill.has_begun() || incoming.is_amid_record();
            if begun {
                deadline.get_or_insert_with(|| Instant::now() + time_for(whole, limit));
            }
            let left = deadline.map_or(limit, |deadline: Instant| {
                deadline.saturating_duration_since(Instant::now()).min(limit)
            });
            if left.is_zero() {
                return Err(ErrorKind::TimedOut.into());
            }
            match self.tcp.read(incoming.room(), left) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(got) => incoming.filled += got,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock && begun => {
                    return Err(ErrorKind::TimedOut.into());
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

impl AsRef<TcpLink> for TlsLink {
    fn as_ref(&self) -> &TcpLink {
        &self.tcp
    }
}

impl Link for TlsLink {
    fn open(&self, limit: Duration) -> io::Result<()> {
        self.shake_hands(limit)
    }

    fn send(&self, bytes: &[u8]) -> io::Result<()> {
        let Outgoing { sealed, filled, .. } = &mut *lock(&self.outgoing);
        self.push(sealed, filled, bytes)?;
        self.flush(sealed, filled)
    }

    fn send_pages(&self, head: &[u8], ram: &dyn Ram, runs: &[PageRun]) -> io::Result<()> {
        let Outgoing { plain, sealed, filled } = &mut *lock(&self.outgoing);
        plain.resize(PIECE, 0);
        self.push(sealed, filled, head)?;
        let mut at = 0;
        for run in runs {
            let mut done = 0;
            while done < run.count {
                let count = (run.count - done).min(((PIECE - at) / PAGE_SIZE) as u64);
                let part = PageRun { first: run.first + done, count };
                ram.copy_out(part, &mut plain[at..at + part.bytes() as usize]);
                at += part.bytes() as usize;
                done += count;
                if at == PIECE {
                    self.push(sealed, filled, plain)?;
                    self.flush(sealed, filled)?;
                    at = 0;
                }
            }
        }
        self.push(sealed, filled, &plain[..at])?;
        self.flush(sealed, filled)
    }

    fn receive(&self, into: &mut [u8]) -> io::Result<()> {
        self.pull(&mut Buffer { into, done: 0 })
    }

    fn receive_pages(&self, ram: &dyn Ram, runs: &[PageRun]) -> io::Result<()> {
        self.pull(&mut Pages::new(ram, runs))
    }

    fn set_limit(&self, limit: Duration) -> io::Result<()> {
        self.tcp.set_limit(limit)
    }

    fn keep_in_cache(&self) {
        self.tcp.keep_in_cache();
    }

    fn is_within_host(&self) -> bool {
        self.tcp.is_within_host()
    }

    fn shut(&self, how: Shutdown) {
        self.tcp.shut(how);
    }

    fn peer(&self) -> &str {
        self.tcp.peer()
    }
}

/// Dials by TCP, and shows who it is.
#[derive(Debug, Clone)]
pub struct TlsDial {
    inner: TcpDial,
    identity: SourceIdentity,
}

impl TlsDial {
    /// Will dial as `inner` does.
    #[must_use]
    pub fn new(inner: TcpDial, identity: SourceIdentity) -> Self {
        Self { inner, identity }
    }
}

impl Dial for TlsDial {
    fn dial(&self, _: Role, limit: Duration, made: &dyn Fn(&Arc<dyn Link>)) -> io::Result<Arc<dyn Link>> {
        let deadline = Instant::now() + limit;
        let wrap = |tcp| {
            let (config, name) = (Arc::clone(&self.identity.config), self.identity.name.clone());
            let connection = UnbufferedClientConnection::new(config, name).map_err(io::Error::other)?;
            Ok(TlsLink::new(tcp, Session::Client(connection)))
        };
        let link = self.inner.connect(limit, wrap, made)?;
        let left = deadline.saturating_duration_since(Instant::now());
        link.shake_hands(left).map_err(|error| stranded(error, limit))?;
        link.set_limit(limit)?;
        Ok(link)
    }

    fn look_up(&self) -> Option<Box<dyn FnOnce() -> io::Result<()> + Send>> {
        self.inner.look_up()
    }

    fn to(&self) -> &str {
        self.inner.to()
    }

    /// The name that its certificate must have stays what it was.
    fn elsewhere(&self, to: &str) -> Option<Box<dyn Dial>> {
        Some(Box::new(Self { inner: TcpDial::new(to), identity: self.identity.clone() }))
    }
}

/// Listens by TCP, and lets nobody in who does not show who it is.
#[derive(Debug)]
pub struct TlsListen {
    inner: TcpListen,
    identity: DestinationIdentity,
}

impl TlsListen {
    /// Listens where `inner` does.
    #[must_use]
    pub fn new(inner: TcpListen, identity: DestinationIdentity) -> Self {
        Self { inner, identity }
    }
}

impl Listen for TlsListen {
    fn accept(&self) -> io::Result<Option<Arc<dyn Link>>> {
        let Some(tcp) = self.inner.next()? else { return Ok(None) };
        let connection = UnbufferedServerConnection::new(Arc::clone(&self.identity.config));
        let connection = connection.map_err(io::Error::other)?;
        Ok(Some(Arc::new(TlsLink::new(tcp, Session::Server(connection)))))
    }

    fn address(&self) -> Option<SocketAddr> {
        self.inner.address()
    }

    fn wake(&self) {
        self.inner.wake();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Somebody listens there, but ends or says nothing where TLS begins.
fn stranded(error: io::Error, limit: Duration) -> io::Error {
    let why = match error.kind() {
        ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => {
            "it closed the connection where TLS begins; is `vmm receive` waiting there with --tls or --psk?"
                .to_owned()
        }
        ErrorKind::WouldBlock | ErrorKind::TimedOut => {
            format!("it has not finished the TLS handshake within {} s", limit.as_secs_f64())
        }
        _ => return error,
    };
    Distrust(why).into()
}
