//! The client outside of the guest: keeps a talk and a silent connection, and says what it was like.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use crate::stream::{ECHO, TALK, Talk};

/// No network is dead for so long.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks for the file that ends it.
const LOOK: Duration = Duration::from_millis(50);

/// Visits until a file is there. Succeeds when both sides have heard all that was said, and the silent connection was
/// there all the time.
pub(crate) fn run(address: &str, stop: &Path) -> io::Result<()> {
    let silent = call(address, ECHO)?;
    let talking = call(address, TALK)?;
    let talk = Arc::new(Talk::default());
    let [mine, his] = [&talk, &talk].map(Arc::clone);
    let [out, back] = [talking.try_clone()?, talking.try_clone()?];
    let speaker = thread::spawn(move || mine.speak(&out));
    let listener = thread::spawn(move || his.listen(&back, || ()));
    println!("stream talks to {address}");
    while !stop.exists() && !speaker.is_finished() && !listener.is_finished() {
        thread::sleep(LOOK);
    }
    talk.end();
    speaker.join().expect("a thread that does not panic")?;
    talking.shutdown(Shutdown::Write)?;
    let arrived = listener.join().expect("a thread that does not panic")?;
    println!("stream {talk}");
    let said = talk.said.load(Ordering::Relaxed);
    if arrived != Some(said) {
        return Err(io::Error::other(format!("of {said} words the guest says it has heard {arrived:?}")));
    }
    answers(&silent)
}

fn call(address: &str, kind: u8) -> io::Result<TcpStream> {
    let began = Instant::now();
    let mut stream = loop {
        match TcpStream::connect(address) {
            Err(_) if began.elapsed() < PATIENCE => thread::sleep(LOOK),
            other => break other?,
        }
    };
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.write_all(&[kind])?;
    Ok(stream)
}

/// The silent connection still works.
fn answers(mut silent: &TcpStream) -> io::Result<()> {
    silent.write_all(b"anybody there?")?;
    let mut answer = [0; 14];
    silent.read_exact(&mut answer)?;
    if answer != *b"anybody there?" {
        let answer = String::from_utf8_lossy(&answer);
        return Err(io::Error::other(format!("the silent connection answers {answer:?}")));
    }
    println!("stream: the silent connection answers");
    Ok(())
}
