//! The network between two VMMs, for the tests to break.
//!
//! A proxy listens for the source and dials the destination, connection by connection, and passes frames on whole or not at
//! all. When it is cut, every connection ends at the same moment and no new one is taken until it is healed: so a test says
//! exactly which message was the last to arrive. It reads heads only and never looks at what is in a frame.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;

use crate::wire::{self, HEAD, Kind};

/// Bytes passed on at once.
const CHUNK: usize = 256 << 10;

/// When the link breaks by itself.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Cut {
    /// Not at all.
    #[default]
    Never,
    /// When this many bytes have gone to the destination, over all connections, in the middle of a frame or not.
    AfterBytes(u64),
    /// Before a frame of this kind: it does not arrive.
    Before(Kind),
    /// After a frame of this kind: it arrives, and nothing that it causes.
    After(Kind),
}

/// A link from a source to a destination. It ends when this is dropped.
#[derive(Debug)]
pub struct Proxy {
    address: String,
    link: Arc<Link>,
}

#[derive(Debug)]
struct Link {
    destination: String,
    // Shared by all pumps and the test: what each may do is decided in one place.
    now: Mutex<Now>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Now {
    flow: Flow,
    cut: Cut,
    /// Nobody needs the link any more.
    over: bool,
    to_destination: u64,
    ends: Vec<TcpStream>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Flow {
    #[default]
    Flowing,
    /// Nothing gets through, nothing is lost, nobody is told.
    Silent,
    /// One last frame is on its way, for the pump that has it.
    Last,
    Broken,
}

/// Which way a pump pumps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    ToDestination,
    ToSource,
}

impl Proxy {
    /// A link to the destination at this address.
    ///
    /// # Panics
    /// When no port can be had.
    pub fn new(destination: &str, cut: Cut) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address").to_string();
        let link = Arc::new(Link {
            destination: destination.to_owned(),
            now: Mutex::new(Now { cut, ..Now::default() }),
            changed: Condvar::new(),
        });
        let accepting = Arc::clone(&link);
        thread::spawn(move || accepting.accept(&listener));
        Self { address, link }
    }

    /// What the source is to dial.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Breaks the link now.
    pub fn cut(&self) {
        self.link.set(Flow::Broken);
    }

    /// The link is good again, for new connections, and breaks no more by itself.
    pub fn heal(&self) {
        let mut now = self.link.now.lock().expect("no panic");
        (now.flow, now.cut) = (Flow::Flowing, Cut::Never);
        now.ends.clear();
    }

    /// From now on nothing arrives on either side, and no connection ends.
    pub fn fall_silent(&self) {
        self.link.set(Flow::Silent);
    }

    /// Whether the link is broken.
    pub fn is_cut(&self) -> bool {
        self.link.now.lock().expect("no panic").flow == Flow::Broken
    }

    /// Bytes that have gone to the destination.
    pub fn bytes(&self) -> u64 {
        self.link.now.lock().expect("no panic").to_destination
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.cut();
        self.link.now.lock().expect("no panic").over = true;
        // Wakes the thread that accepts, which then ends.
        let _ = TcpStream::connect(&self.address);
    }
}

impl Link {
    fn accept(self: Arc<Self>, listener: &TcpListener) {
        for source in listener.incoming() {
            {
                let now = self.now.lock().expect("no panic");
                if now.over {
                    return;
                }
                if now.flow == Flow::Broken {
                    continue;
                }
            }
            // A destination that cannot be reached shows as a connection that ends at once.
            if let Ok(source) = source
                && let Ok(destination) = TcpStream::connect(&self.destination)
            {
                self.connect(source, destination).expect("sockets");
            }
        }
    }

    fn connect(self: &Arc<Self>, source: TcpStream, destination: TcpStream) -> io::Result<()> {
        source.set_nodelay(true)?;
        destination.set_nodelay(true)?;
        let ends = [source.try_clone()?, destination.try_clone()?];
        let back = (destination.try_clone()?, source.try_clone()?);
        {
            let mut now = self.now.lock().expect("no panic");
            if now.flow == Flow::Broken {
                return Ok(());
            }
            now.ends.extend(ends);
        }
        for ((from, to), way) in [((source, destination), Way::ToDestination), (back, Way::ToSource)] {
            let link = Arc::clone(self);
            thread::spawn(move || {
                // An error is an end like any other: the other side is told by the end of its connection.
                let _ = link.pump(&from, &to, way);
                let _ = to.shutdown(Shutdown::Write);
                let _ = from.shutdown(Shutdown::Read);
            });
        }
        Ok(())
    }

    fn pump(&self, mut from: &TcpStream, mut to: &TcpStream, way: Way) -> io::Result<()> {
        let mut chunk = vec![0; CHUNK];
        loop {
            let mut head = [0; HEAD];
            from.read_exact(&mut head)?;
            // What is no frame goes on as it comes.
            let (kind, mut left) = wire::head(&head).unwrap_or((0, u64::MAX));
            let last = self.begin(kind)?;
            self.pass(&mut to, &head, way, last)?;
            while left > 0 {
                let most = usize::try_from(left).map_or(CHUNK, |left| left.min(CHUNK));
                let read = from.read(&mut chunk[..most])?;
                if read == 0 {
                    return Err(ErrorKind::UnexpectedEof.into());
                }
                self.pass(&mut to, &chunk[..read], way, last)?;
                left -= read as u64;
            }
            if last {
                self.set(Flow::Broken);
            }
        }
    }

    /// Whether a frame of this kind is the last to get through; an error when it does not get through itself.
    fn begin(&self, kind: u8) -> io::Result<bool> {
        let cut = self.now.lock().expect("no panic").cut;
        match cut {
            Cut::Before(at) if at as u8 == kind => {
                self.set(Flow::Broken);
                Err(ErrorKind::ConnectionAborted.into())
            }
            Cut::After(at) if at as u8 == kind => {
                self.set(Flow::Last);
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    fn pass(&self, to: &mut &TcpStream, bytes: &[u8], way: Way, last: bool) -> io::Result<()> {
        let allowed = self.allowance(bytes.len(), way, last)?;
        to.write_all(&bytes[..allowed])?;
        if allowed < bytes.len() {
            self.set(Flow::Broken);
            return Err(ErrorKind::ConnectionAborted.into());
        }
        Ok(())
    }

    /// How many of so many bytes may go on. Waits while the link is silent.
    fn allowance(&self, bytes: usize, way: Way, last: bool) -> io::Result<usize> {
        let mut now = self.now.lock().expect("no panic");
        while now.flow == Flow::Silent || now.flow == Flow::Last && !last {
            now = self.changed.wait(now).expect("no panic");
        }
        if now.flow == Flow::Broken {
            return Err(ErrorKind::ConnectionAborted.into());
        }
        let allowed = match (now.cut, way) {
            (Cut::AfterBytes(most), Way::ToDestination) => {
                usize::try_from(most - now.to_destination).map_or(bytes, |left| left.min(bytes))
            }
            _ => bytes,
        };
        if way == Way::ToDestination {
            now.to_destination += allowed as u64;
        }
        Ok(allowed)
    }

    fn set(&self, flow: Flow) {
        let mut now = self.now.lock().expect("no panic");
        if now.flow != Flow::Broken {
            now.flow = flow;
        }
        if flow == Flow::Broken {
            now.ends.iter().for_each(|end| drop(end.shutdown(Shutdown::Both)));
        }
        self.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: Kind, payload: &[u8]) -> Vec<u8> {
        let mut frame = b"VM\x01".to_vec();
        frame.push(kind as u8);
        frame.extend(u32::try_from(payload.len()).unwrap().to_le_bytes());
        frame.extend([0; 8]);
        frame.extend(payload);
        frame
    }

    /// What arrives of these frames over a link that is cut so.
    fn arrives(cut: Cut, frames: &[Vec<u8>]) -> Vec<u8> {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let proxy = Proxy::new(&listener.local_addr().unwrap().to_string(), cut);
        let mut source = TcpStream::connect(proxy.address()).unwrap();
        let mut destination = listener.accept().unwrap().0;
        for frame in frames {
            // Fails once the link is cut.
            let _ = source.write_all(frame);
        }
        let _ = source.shutdown(Shutdown::Write);
        let mut arrived = Vec::new();
        destination.read_to_end(&mut arrived).unwrap();
        arrived
    }

    #[test]
    fn a_link_is_cut_at_a_frame_or_at_a_byte() {
        let frames = [frame(Kind::State, b"abc"), frame(Kind::Commit, b""), frame(Kind::Finish, b"")];
        assert_eq!(arrives(Cut::Never, &frames), frames.concat());
        assert_eq!(arrives(Cut::Before(Kind::Commit), &frames), frames[0]);
        assert_eq!(arrives(Cut::After(Kind::Commit), &frames), frames[..2].concat());
        assert_eq!(arrives(Cut::AfterBytes(17), &frames), frames.concat()[..17]);
    }

    #[test]
    fn what_is_no_frame_gets_through() {
        let words = b"GET / HTTP/1.1 and whatever follows it".to_vec();
        assert_eq!(arrives(Cut::Never, std::slice::from_ref(&words)), words);
    }
}
