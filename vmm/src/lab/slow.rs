//! A slow link: so many bytes per second in each direction, all connections together, each byte so long on its way.
//!
//! For tests and measurements on one host, where the network itself cannot be made slow. A connection's bytes are read as the
//! rate allows, and written on when their time has come; what a link of that length holds is under way at most, so that a
//! sender feels it. It knows no frames, and nothing breaks.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

/// Bytes that go on at once: a millisecond of 100 Mb/s.
const PIECE: usize = 12 << 10;

/// Bytes that wait in front of the link, as in a switch.
const QUEUE: u64 = 128 << 10;

/// A link from a source to a destination. It ends when this is dropped.
#[derive(Debug)]
pub struct SlowLink {
    address: String,
    link: Arc<Link>,
}

#[derive(Debug)]
struct Link {
    destination: String,
    bytes_per_s: f64,
    delay: Duration,
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

    /// When so many bytes are through.
    fn take(&self, bytes: usize, bytes_per_s: f64) -> Instant {
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        let mut paid_until = self.paid_until.lock().expect("no panic");
        let from = (*paid_until).max(Instant::now());
        *paid_until = from + Duration::from_secs_f64(bytes as f64 / bytes_per_s);
        *paid_until
    }
}

impl SlowLink {
    /// A link to the destination at this address; `delay` is that of one direction.
    ///
    /// # Panics
    /// When no port can be had.
    #[must_use]
    pub fn new(destination: &str, bytes_per_s: u64, delay: Duration) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address").to_string();
        let link = Arc::new(Link {
            destination: destination.to_owned(),
            bytes_per_s: bytes_per_s as f64,
            delay,
            there: Lane::new(),
            back: Lane::new(),
            over: AtomicBool::new(false),
        });
        let accepting = Arc::clone(&link);
        thread::spawn(move || accepting.accept(&listener));
        Self { address, link }
    }

    /// What the source is to dial.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
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
        let _ = TcpStream::connect(&self.address);
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
                && let Ok(destination) = TcpStream::connect(&self.destination)
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
            // What is under way: as much as the rate lets through in the delay.
            let room = (self.bytes_per_s * self.delay.as_secs_f64()) as u64 + QUEUE;
            let (sender, arriving) = sync_channel(room.div_ceil(PIECE as u64) as usize);
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
        let mut piece = [0; PIECE];
        loop {
            let read = from.read(&mut piece)?;
            if read == 0 {
                return Ok(());
            }
            let through = lane.take(read, self.bytes_per_s);
            if sender.send((through + self.delay, piece[..read].to_vec())).is_err() {
                return from.shutdown(Shutdown::Both);
            }
            thread::sleep(through.saturating_duration_since(Instant::now()));
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
        let address = listener.local_addr().unwrap().to_string();
        let link = SlowLink::new(&address, 10_000_000, Duration::from_millis(20));
        let sent: Vec<u8> = (0..1_000_000_u32).map(|n| (n.wrapping_mul(n) >> 5) as u8).collect();
        let began = Instant::now();
        let mut source = TcpStream::connect(link.address()).unwrap();
        let (mut arrived, sending) = (Vec::new(), sent.clone());
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
