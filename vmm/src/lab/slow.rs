//! A slow link: so many bytes per second in each direction, all connections together, each byte so long on its way.
//!
//! For tests and measurements on one host, where the network itself cannot be made slow or long. A connection's bytes are read as the
//! rate allows, and written on when their time has come; what a link of that length holds is under way at most, and what two
//! sockets keep, so that a sender feels it. It knows no frames, and nothing breaks.
//!
//! It is not a network in all: connections end at either end of it, so they have no slow start and no window that the way is
//! too long for, and are made at once.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// Bytes that go on at once: what goes through in 0.1 ms, but no fewer and no more than this.
const PIECES: std::ops::RangeInclusive<u64> = 12 << 10..=256 << 10;

/// A read that took no longer found its bytes waiting.
const AT_ONCE: Duration = Duration::from_micros(100);

/// Bytes that wait in front of the link, as in a switch.
const QUEUE: u64 = 128 << 10;

/// Where it listens: with an address of its own it is another host to whoever dials, and nothing is done there that is done
/// within one host only.
const HERE: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);

/// How slow, and how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// What goes through each way.
    pub bytes_per_s: u64,
    /// There and back, µs.
    pub round_trip_us: u64,
}

/// A link from a source to a destination. It ends when this is dropped.
#[derive(Debug)]
pub struct SlowLink {
    address: SocketAddr,
    link: Arc<Link>,
}

#[derive(Debug)]
struct Link {
    destination: SocketAddr,
    network: Network,
    there: Lane,
    back: Lane,
    over: AtomicBool,
}

/// One direction. When what was let through so far will be paid for is shared by its connections, hence the lock.
#[derive(Debug)]
struct Lane {
    paid_until: Mutex<Instant>,
    bytes: AtomicU64,
}

impl Lane {
    fn new() -> Self {
        Self { paid_until: Mutex::new(Instant::now()), bytes: AtomicU64::new(0) }
    }

    /// When so many bytes are through that have waited since then.
    fn take(&self, bytes: usize, since: Instant, bytes_per_s: u64) -> Instant {
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        let mut paid_until = self.paid_until.lock().expect("no panic");
        let from = since.max(*paid_until);
        *paid_until = from + Duration::from_secs_f64(bytes as f64 / bytes_per_s as f64);
        *paid_until
    }
}

impl Network {
    /// For people.
    #[must_use]
    pub fn describe(self) -> String {
        let (gbit, ms) = (self.bytes_per_s as f64 * 8.0 / 1e9, self.round_trip_us as f64 / 1e3);
        format!("{gbit} Gbit/s with a round trip of {ms} ms")
    }

    /// Of one direction.
    fn delay(self) -> Duration {
        Duration::from_micros(self.round_trip_us) / 2
    }

    fn piece(self) -> u64 {
        (self.bytes_per_s / 10_000).clamp(*PIECES.start(), *PIECES.end())
    }

    /// As much as goes through in the delay, and what waits in front.
    fn pieces_under_way(self) -> usize {
        let room = (self.bytes_per_s as f64 * self.delay().as_secs_f64()) as u64 + QUEUE;
        room.div_ceil(self.piece()) as usize
    }
}

impl SlowLink {
    /// A link to the destination at this address.
    ///
    /// # Errors
    /// When no port can be had.
    pub fn to(destination: SocketAddr, network: Network) -> io::Result<Self> {
        let listener = TcpListener::bind((HERE, 0))?;
        let address = listener.local_addr()?;
        let link = Arc::new(Link {
            destination,
            network,
            there: Lane::new(),
            back: Lane::new(),
            over: AtomicBool::new(false),
        });
        let accepting = Arc::clone(&link);
        thread::spawn(move || accepting.accept(&listener));
        Ok(Self { address, link })
    }

    /// What the source is to dial.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Bytes that have gone to the destination.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.link.there.bytes.load(Ordering::Relaxed)
    }
}

impl Drop for SlowLink {
    fn drop(&mut self) {
        self.link.over.store(true, Ordering::Relaxed);
        // Wakes the thread that accepts, which then ends.
        let _ = TcpStream::connect(self.address);
    }
}

impl Link {
    fn accept(self: Arc<Self>, listener: &TcpListener) {
        for source in listener.incoming() {
            if self.over.load(Ordering::Relaxed) {
                return;
            }
            // A destination that cannot be reached shows as a connection that ends at once.
            if let Ok(source) = source
                && let Ok(destination) = TcpStream::connect(self.destination)
            {
                self.connect(&source, &destination).expect("sockets");
            }
        }
    }

    fn connect(self: &Arc<Self>, source: &TcpStream, destination: &TcpStream) -> io::Result<()> {
        for end in [source, destination] {
            end.set_nodelay(true)?;
        }
        for is_back in [false, true] {
            let (from, to) = if is_back { (destination, source) } else { (source, destination) };
            let (mut from, mut to, link) = (from.try_clone()?, to.try_clone()?, Arc::clone(self));
            let (sender, arriving) = sync_channel(self.network.pieces_under_way());
            thread::spawn(move || {
                let lane = if is_back { &link.back } else { &link.there };
                // An error is an end like any other: the other side is told by the end of its connection.
                let _ = link.depart(&mut from, lane, &sender);
            });
            thread::spawn(move || {
                let _ = arrive(&arriving, &mut to);
                let _ = to.shutdown(Shutdown::Write);
            });
        }
        Ok(())
    }

    fn depart(
        &self,
        from: &mut TcpStream,
        lane: &Lane,
        sender: &SyncSender<(Instant, Vec<u8>)>,
    ) -> io::Result<()> {
        let mut piece = vec![0; self.network.piece() as usize];
        // When the bytes before were through, by which time this thread was to be awake again.
        let mut due = Instant::now();
        loop {
            let asked = Instant::now();
            let read = from.read(&mut piece)?;
            if read == 0 {
                return Ok(());
            }
            let now = Instant::now();
            // What was there already could have gone on when it was due: that this thread overslept is not the link's.
            let since = if now - asked < AT_ONCE { due.min(now) } else { now };
            due = lane.take(read, since, self.network.bytes_per_s);
            if sender.send((due.max(now) + self.network.delay(), piece[..read].to_vec())).is_err() {
                return from.shutdown(Shutdown::Both);
            }
            thread::sleep(due.saturating_duration_since(Instant::now()));
        }
    }
}

fn arrive(arriving: &Receiver<(Instant, Vec<u8>)>, to: &mut TcpStream) -> io::Result<()> {
    while let Ok((due, piece)) = arriving.recv() {
        thread::sleep(due.saturating_duration_since(Instant::now()));
        to.write_all(&piece)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_as_they_were_sent_and_not_before_their_time() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let network = Network { bytes_per_s: 10_000_000, round_trip_us: 40_000 };
        let link = SlowLink::to(listener.local_addr().unwrap(), network).unwrap();
        let sent: Vec<u8> = (0..1_000_000_u32).map(|n| (n.wrapping_mul(n) >> 5) as u8).collect();
        let mut source = TcpStream::connect(link.address()).unwrap();
        let (mut arrived, sending) = (Vec::new(), sent.clone());
        // A link saves nothing up while it is idle.
        thread::sleep(Duration::from_millis(50));
        let began = Instant::now();
        let sender = thread::spawn(move || {
            source.write_all(&sending).unwrap();
            source.shutdown(Shutdown::Write).unwrap();
        });
        listener.accept().unwrap().0.read_to_end(&mut arrived).unwrap();
        assert!(arrived == sent && link.bytes() == 1_000_000);
        assert!(began.elapsed() >= Duration::from_millis(120), "{:?}", began.elapsed());
        sender.join().unwrap();
    }
}
