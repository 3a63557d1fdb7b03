//! Watches a process that feeds a target: a panic in any of its threads ends it, and so does an input that takes too long.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::Target;
use crate::limits;

/// A process under watch.
#[derive(Debug)]
pub struct Watch {
    /// The input under way, behind its length.
    present: Option<File>,
    born: Instant,
    /// When the input under way was begun, ms after birth and not 0; 0 between two inputs.
    begun: Arc<AtomicU64>,
}

impl Watch {
    /// From here on nothing goes wrong unseen. `present` takes the input under way.
    ///
    /// # Errors
    /// When the file cannot be made.
    pub fn start(present: Option<&Path>) -> io::Result<Self> {
        let say = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            say(panic);
            std::process::abort();
        }));
        let (born, begun) = (Instant::now(), Arc::new(AtomicU64::new(0)));
        let seen = Arc::clone(&begun);
        thread::spawn(move || {
            loop {
                thread::sleep(Duration::from_millis(200));
                let begun = seen.load(Ordering::Relaxed);
                let late = Duration::from_millis(begun) + limits::TIME;
                if begun != 0 && born.elapsed() > late {
                    eprintln!("fuzz: an input takes longer than {:?}", limits::TIME);
                    std::process::abort();
                }
            }
        });
        Ok(Self { present: present.map(File::create).transpose()?, born, begun })
    }

    /// Feeds one input.
    pub fn feed(&self, target: &Target, input: &[u8]) {
        if let Some(present) = &self.present {
            let bytes = [&(input.len() as u64).to_le_bytes()[..], input].concat();
            present.write_all_at(&bytes, 0).expect("a scratch file can be written");
        }
        self.begun.store(self.born.elapsed().as_millis() as u64 + 1, Ordering::Relaxed);
        (target.run)(input);
        self.begun.store(0, Ordering::Relaxed);
    }
}

/// The input that was under way.
pub(super) fn read_back(present: &Path) -> Option<Vec<u8>> {
    let bytes = std::fs::read(present).ok()?;
    let (length, rest) = bytes.split_first_chunk::<8>()?;
    Some(rest.get(..u64::from_le_bytes(*length) as usize)?.to_vec())
}
