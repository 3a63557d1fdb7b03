//! The driver that needs nothing but stable Rust: replays the corpus, then mutates it without guidance.
//!
//! A run is two processes. The one that is asked starts another, which feeds the target and writes each input to a file
//! before it does; whatever ends that process, also a stack that overflows, the input is there. It is kept below
//! `tests/fuzz/artifacts`, with a word on how to replay it.

mod mutate;
mod watch;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::Target;
use mutate::{Chance, mutated};
pub use watch::Watch;

/// Where the corpus and what is found lie.
#[must_use]
pub fn home() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The inputs of a target that are kept with the sources, in the order of their names.
///
/// # Errors
/// When they cannot be read.
pub fn corpus(target: &Target) -> io::Result<Vec<(PathBuf, Vec<u8>)>> {
    let folder = home().join("corpus").join(target.name);
    let mut paths =
        fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<PathBuf>>>()?;
    paths.sort();
    paths.into_iter().map(|path| Ok((path.clone(), fs::read(path)?))).collect()
}

/// Writes the seeds of a target anew. What else is there, inputs that have found something, stays.
///
/// # Errors
/// When they cannot be written.
pub fn write_seeds(target: &Target) -> io::Result<usize> {
    let folder = home().join("corpus").join(target.name);
    fs::create_dir_all(&folder)?;
    for entry in fs::read_dir(&folder)? {
        let path = entry?.path();
        if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("seed-")) {
            fs::remove_file(path)?;
        }
    }
    let seeds = (target.seeds)();
    for (name, bytes) in &seeds {
        fs::write(folder.join(format!("seed-{name}")), bytes)?;
    }
    Ok(seeds.len())
}

/// Feeds a target in another process, so that what ends that one can be told.
///
/// # Errors
/// What was found: one line, with where the input is.
pub fn run(target: &Target, seconds: u64, seed: u64) -> Result<(), String> {
    let scratch = tempfile::tempdir().map_err(|error| format!("cannot make a folder: {error}"))?;
    let present = scratch.path().join("input");
    let program = std::env::current_exe().map_err(|error| format!("cannot find this program: {error}"))?;
    let mut command = Command::new(program);
    command.args(["feed", target.name, &seconds.to_string(), &seed.to_string()]).arg(&present);
    let status = command.status().map_err(|error| format!("cannot start the target: {error}"))?;
    if status.success() {
        return Ok(());
    }
    let input = watch::read_back(&present).unwrap_or_default();
    let kept = keep(target, &input).map_err(|error| format!("cannot keep an input: {error}"))?;
    let (name, kept) = (target.name, kept.display());
    Err(format!("{name}: {status} with {kept}\nreplay: cargo run -p fuzz -- replay {name} {kept}"))
}

fn keep(target: &Target, input: &[u8]) -> io::Result<PathBuf> {
    let folder = home().join("artifacts");
    fs::create_dir_all(&folder)?;
    let path = folder.join(format!("{}-{:08x}", target.name, crc32fast::hash(input)));
    fs::write(&path, input)?;
    Ok(path)
}

/// The other process: feeds the corpus, then mutations until the time is over, or the corpus alone where there is none.
///
/// # Errors
/// When the corpus cannot be read.
pub fn feed(target: &Target, seconds: u64, seed: u64, present: &Path) -> io::Result<u64> {
    let watch = Watch::start(Some(present))?;
    let corpus: Vec<_> = corpus(target)?.into_iter().map(|(_, bytes)| bytes).collect();
    let (mut chance, begin, mut inputs) = (Chance::new(seed), Instant::now(), 0);
    corpus.iter().for_each(|input| watch.feed(target, input));
    while begin.elapsed() < Duration::from_secs(seconds) {
        watch.feed(target, &mutated(&corpus, &mut chance));
        inputs += 1;
    }
    Ok(corpus.len() as u64 + inputs)
}

/// Feeds one input, here.
///
/// # Errors
/// When it cannot be read.
pub fn replay(target: &Target, path: &Path) -> io::Result<()> {
    Watch::start(None)?.feed(target, &fs::read(path)?);
    Ok(())
}
