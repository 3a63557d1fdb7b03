//! Numbered data over TCP, both ways at once, and a connection where nothing is said: the side in the guest.
//!
//! The first byte of a connection says what it is: [`TALK`] or [`ECHO`]. In a talk each side sends words that follow from
//! their number, at a bounded rate, and checks every word it hears; who visited ends it by closing its direction, and is
//! told by the host how many words that has heard. An echo gives back what it hears, whenever that is.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::random::mix;
use crate::says::{Seconds, corrupt};

/// A connection full of words.
pub(crate) const TALK: u8 = b't';
/// A silent connection.
pub(crate) const ECHO: u8 = b'e';
/// In place of a word: the number of words heard follows, and nothing after it.
const GOODBYE: u64 = u64::MAX;

/// Words sent at once, so often: 40 KB/s.
const BURST: u64 = 500;
const PAUSE: Duration = Duration::from_millis(100);

/// What has been heard and said in a talk, in words, and for how long it was silent.
#[derive(Default)]
pub(crate) struct Talk {
    pub(crate) heard: AtomicU64,
    pub(crate) said: AtomicU64,
    pub(crate) longest_silence_us: AtomicU64,
    over: AtomicBool,
}

/// Serves everyone who comes, until it is killed.
pub(crate) fn serve(port: u16) -> io::Result<()> {
    let listener = TcpListener::bind(("0.0.0.0", port))?;
    println!("inner stream listens on port {port}");
    for visitor in listener.incoming() {
        let visitor = visitor?;
        thread::spawn(move || {
            if let Err(error) = entertain(visitor) {
                corrupt("stream", &format!("a connection broke: {error}"));
            }
        });
    }
    Ok(())
}

fn entertain(mut visitor: TcpStream) -> io::Result<()> {
    let mut kind = [0];
    visitor.read_exact(&mut kind)?;
    match kind {
        [TALK] => host(&visitor),
        [ECHO] => io::copy(&mut visitor.try_clone()?, &mut visitor).map(drop),
        _ => Err(io::Error::other(format!("a visitor that begins with {kind:?}"))),
    }
}

/// The host's part of a talk.
fn host(visitor: &TcpStream) -> io::Result<()> {
    let talk = Arc::new(Talk::default());
    let (mine, out) = (Arc::clone(&talk), visitor.try_clone()?);
    let speaker = thread::spawn(move || mine.speak(&out));
    let mut seconds = Seconds::new("stream");
    talk.listen(visitor, || seconds.tell(|| talk.to_string()))?;
    talk.end();
    speaker.join().expect("a thread that does not panic")?;
    let heard = talk.heard.load(Ordering::Relaxed);
    (&mut &*visitor).write_all(&[GOODBYE.to_le_bytes(), heard.to_le_bytes()].concat())?;
    visitor.shutdown(Shutdown::Write)?;
    println!("inner stream ended: {talk}");
    Ok(())
}

impl Talk {
    /// Sends words until the talk is over.
    pub(crate) fn speak(&self, mut to: &TcpStream) -> io::Result<()> {
        to.set_nodelay(true)?;
        while !self.over.load(Ordering::Relaxed) {
            let first = self.said.load(Ordering::Relaxed);
            let burst: Vec<u8> =
                (first..first + BURST).flat_map(|number| word(number).to_le_bytes()).collect();
            to.write_all(&burst)?;
            self.said.store(first + BURST, Ordering::Relaxed);
            thread::sleep(PAUSE);
        }
        Ok(())
    }

    /// From now on no more is said.
    pub(crate) fn end(&self) {
        self.over.store(true, Ordering::Relaxed);
    }

    /// Hears words until the other side has closed its direction or says goodbye, and checks each. Returns the goodbye.
    pub(crate) fn listen(&self, from: &TcpStream, mut after_each: impl FnMut()) -> io::Result<Option<u64>> {
        let mut from = io::BufReader::new(from);
        let mut last = Instant::now();
        while let Some(heard) = next(&mut from)? {
            let silence = last.elapsed().as_micros() as u64;
            last = Instant::now();
            self.longest_silence_us.fetch_max(silence, Ordering::Relaxed);
            if heard == GOODBYE {
                return next(&mut from);
            }
            let number = self.heard.load(Ordering::Relaxed);
            if heard != word(number) {
                let words = format!("word {number} is {heard:#x} instead of {:#x}", word(number));
                corrupt("stream", &words);
                return Err(io::Error::new(ErrorKind::InvalidData, words));
            }
            self.heard.store(number + 1, Ordering::Relaxed);
            after_each();
        }
        Ok(None)
    }
}

impl std::fmt::Display for Talk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [heard, said, silence] =
            [&self.heard, &self.said, &self.longest_silence_us].map(|it| it.load(Ordering::Relaxed));
        write!(f, "heard {heard} words, said {said}, longest silence {} ms", silence / 1000)
    }
}

/// Another word; `None` where the stream ends, which it must not within a word.
fn next(from: &mut impl io::BufRead) -> io::Result<Option<u64>> {
    if from.fill_buf()?.is_empty() {
        return Ok(None);
    }
    let mut bytes = [0; 8];
    from.read_exact(&mut bytes)?;
    Ok(Some(u64::from_le_bytes(bytes)))
}

/// The word of that number: every byte of it is telling.
fn word(number: u64) -> u64 {
    mix(number + 1) & !(1 << 63)
}
