//! The network between two VMMs, for the tests to break.
//!
//! A proxy listens for the source and dials the destination, connection by connection, and passes frames on whole or not at
//! all. What goes wrong is said beforehand, as [`Trouble`]: where, and what. When it is cut, every connection ends at the same
//! moment and no new one is taken until it heals: so a test says exactly which message was the last to arrive. It reads heads
//! only, and never looks at what is in a frame. Of what is no frame (TLS) it knows the bytes alone.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread;
use std::time::Duration;

use crate::wire::{self, HEAD};
use crate::{Cut, Does, Trouble};

/// Bytes passed on at once.
const CHUNK: usize = 256 << 10;

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
    /// What is still to happen.
    troubles: Vec<Trouble>,
    happened: usize,
    slow: Duration,
    to_destination: u64,
    to_source: u64,
    ends: Vec<TcpStream>,
    /// Nobody needs it any more.
    over: bool,
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
    /// A link to the destination at this address, which breaks there for good.
    ///
    /// # Panics
    /// When no port can be had.
    pub fn new(destination: &str, cut: Cut) -> Self {
        Self::troubled(destination, vec![Trouble { at: cut, nth: 1, does: Does::Break(None) }])
    }

    /// A link to the destination at this address, to which all this happens.
    ///
    /// # Panics
    /// When no port can be had.
    pub fn troubled(destination: &str, troubles: Vec<Trouble>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address").to_string();
        let now = Mutex::new(Now { troubles, ..Now::default() });
        let link = Arc::new(Link { destination: destination.to_owned(), now, changed: Condvar::new() });
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

    /// The link is good again, for new connections, and nothing happens to it any more by itself.
    pub fn heal(&self) {
        self.link.now().troubles.clear();
        self.link.heal();
    }

    /// From now on nothing arrives on either side, and no connection ends.
    pub fn fall_silent(&self) {
        self.link.set(Flow::Silent);
    }

    /// Whether the link is broken.
    pub fn is_cut(&self) -> bool {
        self.link.now().flow == Flow::Broken
    }

    /// How much of what was to happen has happened.
    pub fn happened(&self) -> usize {
        self.link.now().happened
    }

    /// Bytes that have gone to the destination.
    pub fn bytes(&self) -> u64 {
        self.link.now().to_destination
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.link.now().over = true;
        self.cut();
        // Wakes the thread that accepts, which then ends.
        let _ = TcpStream::connect(&self.address);
    }
}

impl Link {
    fn now(&self) -> MutexGuard<'_, Now> {
        self.now.lock().expect("no panic")
    }

    fn accept(self: Arc<Self>, listener: &TcpListener) {
        for source in listener.incoming() {
            let (over, broken) = {
                let now = self.now();
                (now.over, now.flow == Flow::Broken)
            };
            if over {
                return;
            }
            // A destination that cannot be reached shows as a connection that ends at once.
            if let (Ok(source), false) = (source, broken)
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
            let mut now = self.now();
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

    fn pump(self: &Arc<Self>, mut from: &TcpStream, mut to: &TcpStream, way: Way) -> io::Result<()> {
        let mut chunk = vec![0; CHUNK];
        loop {
            let mut head = [0; HEAD];
            from.read_exact(&mut head)?;
            // What is no frame goes on as it comes.
            let Some((kind, length)) = wire::head(&head) else {
                self.pass(&mut to, &mut head, way, false)?;
                return self.pump_bytes(from, to, way, &mut chunk);
            };
            if let Some(does) = self.meets(|at| matches!(at, Cut::Before(before) if before as u8 == kind)) {
                if matches!(does, Does::Repeat | Does::Damage { .. }) {
                    self.change_frame(from, to, way, &does, &head, length)?;
                    continue;
                }
                self.suffer(&does)?;
            }
            let after = self.meets(|at| matches!(at, Cut::After(after) if after as u8 == kind));
            let last = matches!(after, Some(Does::Break(_)));
            if last {
                self.set(Flow::Last);
            }
            self.pass(&mut to, &mut head, way, last)?;
            let mut left = length;
            while left > 0 {
                let most = usize::try_from(left).map_or(CHUNK, |left| left.min(CHUNK));
                let read = from.read(&mut chunk[..most])?;
                if read == 0 {
                    return Err(ErrorKind::UnexpectedEof.into());
                }
                self.pass(&mut to, &mut chunk[..read], way, last)?;
                left -= read as u64;
            }
            if let Some(does) = after {
                self.suffer(&does)?;
            }
        }
    }

    fn pump_bytes(
        self: &Arc<Self>,
        mut from: &TcpStream,
        mut to: &TcpStream,
        way: Way,
        chunk: &mut [u8],
    ) -> io::Result<()> {
        loop {
            match from.read(chunk)? {
                0 => return Ok(()),
                read => self.pass(&mut to, &mut chunk[..read], way, false)?,
            }
        }
    }

    /// A frame that arrives twice, or not as it was sent.
    fn change_frame(
        self: &Arc<Self>,
        from: &TcpStream,
        mut to: &TcpStream,
        way: Way,
        does: &Does,
        head: &[u8],
        length: u64,
    ) -> io::Result<()> {
        let mut frame = head.to_vec();
        from.take(length).read_to_end(&mut frame)?;
        let end = frame.len();
        match *does {
            Does::Damage { byte, bits } => frame[byte % end] ^= bits,
            _ => frame.extend_from_within(..),
        }
        self.pass(&mut to, &mut frame, way, false)
    }

    /// What is to happen at such a place now, if anything is; it happens only once.
    fn meets(&self, is: impl Fn(Cut) -> bool) -> Option<Does> {
        let mut now = self.now();
        let index = now.troubles.iter_mut().position(|trouble| {
            trouble.nth -= u32::from(is(trouble.at));
            trouble.nth == 0
        })?;
        now.happened += 1;
        Some(now.troubles.remove(index).does)
    }

    /// Has something happen to the link. An error where the frame must not go on.
    fn suffer(self: &Arc<Self>, does: &Does) -> io::Result<()> {
        match does {
            Does::Break(heals) => {
                self.set(Flow::Broken);
                if let Some(heals) = *heals {
                    let link = Arc::clone(self);
                    thread::spawn(move || {
                        thread::sleep(heals);
                        link.heal();
                    });
                }
                return Err(ErrorKind::ConnectionAborted.into());
            }
            Does::Stall(time) => {
                self.set(Flow::Silent);
                thread::sleep(*time);
                self.set(Flow::Flowing);
            }
            Does::Slow(time) => self.now().slow = *time,
            Does::Act(act) => act(),
            Does::Repeat | Does::Damage { .. } => {}
        }
        Ok(())
    }

    fn pass(
        self: &Arc<Self>,
        to: &mut &TcpStream,
        mut bytes: &mut [u8],
        way: Way,
        last: bool,
    ) -> io::Result<()> {
        while !bytes.is_empty() {
            let (allowed, does) = self.allowance(bytes.len(), way, last)?;
            let (first, rest) = bytes.split_at_mut(allowed);
            to.write_all(first)?;
            match does {
                Some(Does::Damage { bits, .. }) => rest.iter_mut().take(1).for_each(|byte| *byte ^= bits),
                Some(does) => self.suffer(&does)?,
                None => {}
            }
            bytes = rest;
        }
        Ok(())
    }

    /// How many of so many bytes may go on, and what happens then. Waits while the link is silent.
    fn allowance(&self, bytes: usize, way: Way, last: bool) -> io::Result<(usize, Option<Does>)> {
        let slow = self.now().slow;
        if !slow.is_zero() {
            thread::sleep(slow);
        }
        let mut now = self.now();
        while now.flow == Flow::Silent || now.flow == Flow::Last && !last {
            now = self.changed.wait(now).expect("no panic");
        }
        if now.flow == Flow::Broken {
            return Err(ErrorKind::ConnectionAborted.into());
        }
        let gone = if way == Way::ToDestination { now.to_destination } else { now.to_source };
        let within = |at| match (at, way) {
            (Cut::AfterBytes(at), Way::ToDestination) | (Cut::AfterBytesBack(at), Way::ToSource) => {
                usize::try_from(at.checked_sub(gone)?).ok().filter(|left| *left < bytes)
            }
            _ => None,
        };
        let due =
            now.troubles.iter().enumerate().filter_map(|(index, trouble)| Some((within(trouble.at)?, index)));
        let (allowed, does) = match due.min() {
            Some((allowed, index)) => {
                now.happened += 1;
                (allowed, Some(now.troubles.remove(index).does))
            }
            None => (bytes, None),
        };
        *if way == Way::ToDestination { &mut now.to_destination } else { &mut now.to_source } +=
            allowed as u64;
        Ok((allowed, does))
    }

    fn heal(&self) {
        let mut now = self.now();
        if !now.over {
            now.flow = Flow::Flowing;
            now.ends.retain(|end| end.peer_addr().is_ok());
        }
        self.changed.notify_all();
    }

    fn set(&self, flow: Flow) {
        let mut now = self.now();
        if now.flow != Flow::Broken {
            now.flow = flow;
        }
        if flow == Flow::Broken {
            now.ends.drain(..).for_each(|end| drop(end.shutdown(Shutdown::Both)));
        }
        self.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Kind;

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
    fn frames_come_twice_or_changed_or_late() {
        let frames = [frame(Kind::State, b"abc"), frame(Kind::Commit, b"")];
        let arrives = |at, does| {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let address = listener.local_addr().unwrap().to_string();
            let proxy = Proxy::troubled(&address, vec![Trouble { at, nth: 1, does }]);
            let mut source = TcpStream::connect(proxy.address()).unwrap();
            let mut destination = listener.accept().unwrap().0;
            source.write_all(&frames.concat()).unwrap();
            source.shutdown(Shutdown::Write).unwrap();
            let mut arrived = Vec::new();
            destination.read_to_end(&mut arrived).unwrap();
            assert_eq!(proxy.happened(), 1);
            arrived
        };
        let [state, commit] = &frames;
        let twice = arrives(Cut::Before(Kind::State), Does::Repeat);
        assert_eq!(twice, [state.clone(), state.clone(), commit.clone()].concat());
        let mut changed = frames.concat();
        changed[17] ^= 1;
        assert_eq!(arrives(Cut::Before(Kind::State), Does::Damage { byte: 17, bits: 1 }), changed);
        assert_eq!(arrives(Cut::AfterBytes(17), Does::Damage { byte: 0, bits: 1 }), changed);
        let late = Does::Stall(Duration::from_millis(20));
        assert_eq!(arrives(Cut::After(Kind::State), late.clone()), frames.concat());
        assert_eq!(arrives(Cut::AfterBytes(5), late), frames.concat());
    }

    #[test]
    fn a_link_heals() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let does = Does::Break(Some(Duration::from_millis(1)));
        let proxy = Proxy::troubled(&address, vec![Trouble { at: Cut::Before(Kind::Commit), nth: 1, does }]);
        let ask = || {
            let mut source = TcpStream::connect(proxy.address()).unwrap();
            // Fails where the link is broken.
            let _ = source.write_all(&frame(Kind::Commit, b""));
            let _ = source.shutdown(Shutdown::Write);
            // That the far side has seen it all, or that it never will.
            let _ = source.read_to_end(&mut Vec::new());
        };
        ask();
        crate::until("the link to heal", || (!proxy.is_cut()).then_some(()));
        drop(listener.accept().unwrap());
        thread::scope(|scope| {
            scope.spawn(ask);
            let mut arrived = Vec::new();
            listener.accept().unwrap().0.read_to_end(&mut arrived).unwrap();
            assert_eq!(arrived, frame(Kind::Commit, b""));
        });
    }

    #[test]
    fn what_is_no_frame_gets_through() {
        let words = b"GET / HTTP/1.1 and whatever follows it".to_vec();
        assert_eq!(arrives(Cut::Never, std::slice::from_ref(&words)), words);
    }
}
