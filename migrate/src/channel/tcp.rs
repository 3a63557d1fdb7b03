//! Links over TCP.
//!
//! Blocking sockets with time limits (`SO_RCVTIMEO`, `SO_SNDTIMEO`), `TCP_NODELAY` always: a commit must not
//! wait for an acknowledgement. `shutdown` from another thread ends whoever is blocked. `TCP_USER_TIMEOUT`
//! bounds how long sent bytes may stay unacknowledged.

use std::io::{self, ErrorKind, Read, Write};
use std::mem::MaybeUninit;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use super::whole::fill;
use super::within::{is_within_host, keep_in_cache, send_unpaced_within};
use super::{Dial, Link, Listen};
use crate::guest::Ram;
use crate::pages::PageRun;
use crate::wire::Role;

/// Before a listener that could not accept tries again.
const REST: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };

/// How a listener's rest ended.
enum Woken {
    ByName,
    ByTime,
}

/// What a connection can take in unread, inherited from the listening socket. More than is ever under way in post-copy:
/// on loopback, where a segment is 64 KiB, a window that closes may open again only after 200 ms.
const RECEIVE_BUFFER: usize = 4 << 20;

/// As sockets wait before they are told.
const UNLIMITED: Duration = Duration::from_secs(u32::MAX as u64);

/// One TCP connection.
#[derive(Debug)]
pub struct TcpLink {
    pub(super) socket: Socket,
    peer: String,
    /// Held while a frame is written, so that frames of two threads (a message, a sign of life) never mix.
    writing: Mutex<()>,
    /// How long the socket waits for the peer.
    limit: Mutex<Duration>,
    /// A socket that is not connected yet cannot be shut: who is about to connect it looks here.
    is_shut: AtomicBool,
}

impl TcpLink {
    fn new(socket: Socket, peer: String) -> io::Result<Self> {
        socket.set_tcp_nodelay(true)?;
        let (writing, limit, is_shut) = (Mutex::new(()), Mutex::new(UNLIMITED), AtomicBool::new(false));
        Ok(Self { socket, peer, writing, limit, is_shut })
    }

    fn accepted(stream: TcpStream, peer: SocketAddr) -> io::Result<Self> {
        stream.set_nonblocking(false)?;
        Self::new(stream.into(), peer.to_string())
    }

    /// Connects, unless shut meanwhile. In this order: what is shut after the connecting has begun wakes the wait.
    fn connect(&self, address: SocketAddr, limit: Duration) -> io::Result<()> {
        send_unpaced_within(&self.socket, address);
        self.socket.set_nonblocking(true)?;
        match self.socket.connect(&address.into()) {
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::INPROGRESS.raw_os_error()) => {
                self.await_connected(limit)?;
            }
            connected => connected?,
        }
        self.socket.set_nonblocking(false)
    }

    fn await_connected(&self, limit: Duration) -> io::Result<()> {
        if self.is_shut() {
            return Err(ErrorKind::ConnectionAborted.into());
        }
        if !wait_for(&self.socket, PollFlags::OUT, limit)? {
            return Err(io::Error::new(ErrorKind::TimedOut, "it does not answer"));
        }
        match self.socket.take_error()? {
            Some(error) => Err(error),
            None if self.is_shut() => Err(ErrorKind::ConnectionAborted.into()),
            None => Ok(()),
        }
    }

    /// How long the socket waits for the peer.
    pub(super) fn limit(&self) -> Duration {
        *self.limit.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What has come, or comes within `left`.
    pub(super) fn read(&self, into: &mut [u8], left: Duration) -> io::Result<usize> {
        // The socket waits for the whole limit by itself.
        if left < self.limit() && !wait_for(&self.socket, PollFlags::IN, left)? {
            return Err(ErrorKind::WouldBlock.into());
        }
        (&self.socket).read(into)
    }

    fn is_shut(&self) -> bool {
        self.is_shut.load(Ordering::SeqCst)
    }
}

impl AsRef<Self> for TcpLink {
    fn as_ref(&self) -> &Self {
        self
    }
}

impl Link for TcpLink {
    fn send(&self, bytes: &[u8]) -> io::Result<()> {
        let _whole = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        (&self.socket).write_all(bytes)
    }

    fn send_pages(&self, head: &[u8], ram: &dyn Ram, runs: &[PageRun]) -> io::Result<()> {
        let _whole = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        ram.send(head, runs, self.socket.as_fd())
    }

    fn receive(&self, into: &mut [u8]) -> io::Result<()> {
        fill(into, self.limit(), |into, left| self.read(into, left))
    }

    fn receive_pages(&self, ram: &dyn Ram, runs: &[PageRun]) -> io::Result<()> {
        ram.receive(runs, self.socket.as_fd())
    }

    fn set_limit(&self, limit: Duration) -> io::Result<()> {
        *self.limit.lock().unwrap_or_else(PoisonError::into_inner) = limit;
        self.socket.set_read_timeout(Some(limit))?;
        self.socket.set_write_timeout(Some(limit))?;
        self.socket.set_tcp_user_timeout(Some(limit))
    }

    fn keep_in_cache(&self) {
        keep_in_cache(&self.socket);
    }

    fn is_within_host(&self) -> bool {
        is_within_host(&SockRef::from(&self.socket))
    }

    fn shut(&self, how: Shutdown) {
        self.is_shut.store(true, Ordering::SeqCst);
        // Fails when it is already shut or was never connected: both are as asked for.
        let _ = self.socket.shutdown(how);
    }

    fn peer(&self) -> &str {
        &self.peer
    }
}

/// Dials `HOST:PORT`.
#[derive(Debug, Clone)]
pub struct TcpDial {
    to: String,
    /// What the name stands for, once looked up.
    addresses: Arc<OnceLock<Vec<SocketAddr>>>,
}

impl TcpDial {
    /// Will dial `to`, a `HOST:PORT`.
    #[must_use]
    pub fn new(to: &str) -> Self {
        Self { to: to.to_owned(), addresses: Arc::default() }
    }

    fn addresses(&self) -> io::Result<&[SocketAddr]> {
        if self.addresses.get().is_none() {
            resolve(&self.to, &self.addresses)?;
        }
        Ok(self.addresses.get().map_or(&[], Vec::as_slice))
    }
}

impl TcpDial {
    /// A connection, as the link that `wrap` makes of it; `made` is told of that before anything blocks.
    pub(super) fn connect<L: Link + AsRef<TcpLink> + 'static>(
        &self,
        limit: Duration,
        wrap: impl Fn(TcpLink) -> io::Result<L>,
        made: &dyn Fn(&Arc<dyn Link>),
    ) -> io::Result<Arc<L>> {
        let mut refused = io::Error::new(ErrorKind::NotFound, "the name has no address");
        let deadline = Instant::now() + limit;
        for address in self.addresses()? {
            let socket = Socket::new(Domain::for_address(*address), Type::STREAM, Some(Protocol::TCP))?;
            let link = Arc::new(wrap(TcpLink::new(socket, self.to.clone())?)?);
            made(&(Arc::clone(&link) as Arc<dyn Link>));
            let tcp: &TcpLink = (*link).as_ref();
            match tcp.connect(*address, deadline.saturating_duration_since(Instant::now())) {
                Ok(()) => {
                    link.set_limit(limit)?;
                    return Ok(link);
                }
                Err(error) if tcp.is_shut() => return Err(error),
                Err(error) => refused = error,
            }
        }
        Err(refused)
    }
}

impl Dial for TcpDial {
    fn dial(&self, _: Role, limit: Duration, made: &dyn Fn(&Arc<dyn Link>)) -> io::Result<Arc<dyn Link>> {
        Ok(self.connect(limit, Ok, made)?)
    }

    fn look_up(&self) -> Option<Box<dyn FnOnce() -> io::Result<()> + Send>> {
        // An address is no name.
        self.to.parse::<SocketAddr>().is_err().then(|| {
            let (to, addresses) = (self.to.clone(), Arc::clone(&self.addresses));
            Box::new(move || resolve(&to, &addresses)) as _
        })
    }

    fn to(&self) -> &str {
        &self.to
    }

    fn elsewhere(&self, to: &str) -> Option<Box<dyn Dial>> {
        Some(Box::new(Self::new(to)))
    }
}

fn resolve(to: &str, into: &OnceLock<Vec<SocketAddr>>) -> io::Result<()> {
    let found = to.to_socket_addrs()?.collect();
    // Of two who looked at the same time the first's answer counts.
    let _ = into.set(found);
    Ok(())
}

/// Waits until the socket can be read or written; false when `limit` has passed.
fn wait_for(socket: &Socket, what: PollFlags, limit: Duration) -> io::Result<bool> {
    let deadline = Instant::now() + limit;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).map_err(|_| ErrorKind::InvalidInput)?;
        match poll(&mut [PollFd::new(socket, what)], Some(&left)) {
            Ok(ready) => return Ok(ready > 0),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Listens on one port.
#[derive(Debug)]
pub struct TcpListen {
    listener: TcpListener,
    address: SocketAddr,
    waker: OwnedFd,
}

impl TcpListen {
    /// Listens on `HOST:PORT`; port 0 picks a free one.
    ///
    /// # Errors
    /// When the address cannot be had.
    pub fn bind(listen: &str) -> io::Result<Self> {
        Self::on(TcpListener::bind(listen)?)
    }

    /// Listens on a socket that is bound already.
    ///
    /// # Errors
    /// When the host refuses what waiting on it needs.
    pub fn on(listener: TcpListener) -> io::Result<Self> {
        // Without the right to exceed the system's limit it sizes buffers as it sees fit.
        let _ = rustix::net::sockopt::set_socket_recv_buffer_size_force(&listener, RECEIVE_BUFFER);
        // Non-blocking: a connection that is gone before it is accepted must not leave accept waiting.
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let waker = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self { listener, address, waker })
    }

    /// Waits for a connection; false when woken.
    fn wait(&self) -> io::Result<bool> {
        let interest = PollFlags::IN;
        let mut fds = [PollFd::new(&self.listener, interest), PollFd::new(&self.waker, interest)];
        match poll(&mut fds, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        if fds[1].revents().is_empty() {
            return Ok(true);
        }
        self.forget_wake();
        Ok(false)
    }

    /// Waits a while, or until woken.
    fn rest(&self) -> io::Result<Woken> {
        let mut fds = [PollFd::new(&self.waker, PollFlags::IN)];
        match poll(&mut fds, Some(&REST)) {
            Ok(0) | Err(rustix::io::Errno::INTR) => return Ok(Woken::ByTime),
            Ok(_) => {}
            Err(error) => return Err(error.into()),
        }
        self.forget_wake();
        Ok(Woken::ByName)
    }

    /// The next connection; `None` when woken.
    pub(super) fn next(&self) -> io::Result<Option<TcpLink>> {
        while self.wait()? {
            match self.listener.accept() {
                Ok((stream, peer)) => {
                    // A caller that is gone already is no error of the listener.
                    if let Ok(link) = TcpLink::accepted(stream, peer) {
                        return Ok(Some(link));
                    }
                }
                Err(error) if passes(&error) => {}
                // The caller stays queued and the socket readable: asking again at once would only spin.
                Err(error) => match (self.rest()?, is_want(&error)) {
                    (Woken::ByName, _) => return Ok(None),
                    (Woken::ByTime, true) => {}
                    (Woken::ByTime, false) => return Err(error),
                },
            }
        }
        Ok(None)
    }

    fn forget_wake(&self) {
        let mut count = [MaybeUninit::<u8>::uninit(); 8];
        let _ = rustix::io::read(&self.waker, &mut count);
    }
}

impl Listen for TcpListen {
    fn accept(&self) -> io::Result<Option<Arc<dyn Link>>> {
        Ok(self.next()?.map(|link| Arc::new(link) as Arc<dyn Link>))
    }

    fn address(&self) -> Option<SocketAddr> {
        Some(self.address)
    }

    fn wake(&self) {
        let _ = rustix::io::write(&self.waker, &1_u64.to_ne_bytes());
    }
}

/// accept(2): the host has no descriptors or memory to give now.
fn is_want(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let wants = [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM];
    Errno::from_io_error(error).is_some_and(|errno| wants.contains(&errno))
}

/// accept(2): network errors of the one connection are no errors of the listener.
fn passes(error: &io::Error) -> bool {
    use ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted, WouldBlock};
    matches!(error.kind(), WouldBlock | Interrupted | ConnectionAborted | ConnectionReset)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (Arc<dyn Link>, Arc<dyn Link>) {
        let listen = TcpListen::bind("127.0.0.1:0").expect("a free port");
        let dial = TcpDial::new(&listen.address.to_string());
        let near = dial.dial(Role::Control, Duration::from_secs(5), &|_| {}).expect("someone listens");
        (near, listen.accept().expect("a listener").expect("a connection"))
    }

    #[test]
    fn a_name_is_looked_up_and_an_address_is_not() {
        let has_to_be = |to| TcpDial::new(to).look_up().is_some();
        assert!(has_to_be("localhost:7000") && has_to_be("10.0.0.1.example:7000"));
        assert!(!has_to_be("127.0.0.1:7000") && !has_to_be("[::1]:7000"));
    }

    #[test]
    fn what_arrived_before_a_shut_can_still_be_read() {
        let (near, far) = pair();
        near.send(b"abort").expect("open");
        near.shut(Shutdown::Both);
        far.shut(Shutdown::Read);
        let mut bytes = [0; 5];
        far.receive(&mut bytes).expect("it had arrived");
        assert_eq!(&bytes, b"abort");
        let error = far.receive(&mut bytes).expect_err("nothing more");
        assert_eq!(error.kind(), ErrorKind::UnexpectedEof);
    }

    #[test]
    fn a_read_waits_no_longer_than_the_limit() {
        let (near, far) = pair();
        far.set_limit(Duration::from_millis(20)).expect("a valid limit");
        let none = far.receive(&mut [0; 4]).expect_err("nothing was sent");
        assert_eq!(none.kind(), ErrorKind::WouldBlock);
        near.send(&[1, 2]).expect("open");
        let half = far.receive(&mut [0; 4]).expect_err("half was sent");
        assert_eq!(half.kind(), ErrorKind::TimedOut);
    }

    #[test]
    fn a_peer_that_drips_does_not_hold_a_read_for_ever() {
        let (near, far) = pair();
        far.set_limit(Duration::from_millis(40)).expect("a valid limit");
        let dripping = std::thread::spawn(move || {
            while near.send(&[1]).is_ok() {
                std::thread::sleep(Duration::from_millis(10));
            }
        });
        let error = far.receive(&mut [0; 4096]).expect_err("it would take 40 s");
        assert_eq!(error.kind(), ErrorKind::TimedOut);
        far.shut(Shutdown::Both);
        dripping.join().expect("no panic");
    }

    #[test]
    fn accept_can_be_woken() {
        let listen = TcpListen::bind("127.0.0.1:0").expect("a free port");
        listen.wake();
        assert!(listen.accept().expect("a listener").is_none());
    }
}
