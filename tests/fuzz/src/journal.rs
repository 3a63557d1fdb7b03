//! Journals: a folder with files of hostile bytes, and what a VMM reads there before it boots a guest or takes one in.
//!
//! ```text
//! script = file*        file = slot, slot        slot = sealed (8 bits), text (counted)
//! ```
//!
//! A slot that is sealed has the right hash before its text; one that is not is what the text says.

use std::path::Path;

use migrate::journal::{Journals, Promise, Record, Side};
use uuid::Uuid;
use xxhash_rust::xxh3::xxh3_64;

use crate::script::{Script, counted};

/// Bytes of a slot.
const SLOT: usize = 1024;
/// Journals in the folder: more only take time.
const MOST_FILES: usize = 8;

pub(crate) fn run(input: &[u8]) {
    let folder = tempfile::tempdir().expect("a folder");
    fill(folder.path(), input);
    read(folder.path());
}

fn fill(folder: &Path, input: &[u8]) {
    let mut script = Script::new(input);
    for number in 0..MOST_FILES {
        if script.is_over() {
            break;
        }
        let bytes = [slot(&mut script), slot(&mut script)].concat();
        std::fs::write(folder.join(number.to_string()), bytes).expect("room");
    }
}

/// A slot, unless its text is too long: then what follows is out of place, as in a file of another make.
fn slot(script: &mut Script<'_>) -> Vec<u8> {
    let (sealed, text) = (script.u8() % 2 == 1, script.counted());
    let mut bytes = if sealed { format!("{:016x} ", xxh3_64(text)).into_bytes() } else { Vec::new() };
    bytes.extend(text);
    bytes.resize(bytes.len().max(SLOT), b' ');
    bytes
}

fn read(folder: &Path) {
    let journals = Journals::at(folder, "fuzz");
    for guest in [Uuid::nil(), Uuid::max()] {
        if let Some((path, record)) = journals.handed_on(guest) {
            assert!(record.guest == guest && path.starts_with(folder), "{record:?} in {}", path.display());
            assert!(matches!(record.promise, Promise::Leaving | Promise::Committed | Promise::Moved));
        }
        for epoch in [0, 1, u64::MAX - 1, u64::MAX] {
            let later = journals.superseding(guest, epoch);
            assert!(later.is_none_or(|record| record.guest == guest && record.epoch > epoch));
        }
    }
}

pub(crate) fn seeds() -> Vec<(String, Vec<u8>)> {
    let record = |promise, epoch, number| Record {
        guest: Uuid::nil(),
        session: Uuid::max(),
        epoch,
        side: if matches!(promise, Promise::Arriving | Promise::Running) {
            Side::Destination
        } else {
            Side::Source
        },
        promise,
        peer: "there:7000".to_owned(),
        boot: "a boot".to_owned(),
        number,
    };
    let sealed = |record: &Record| {
        let line = serde_json::to_vec(record).expect("plain data");
        [vec![1], counted(&line)].concat()
    };
    let file =
        |promise, epoch| [sealed(&record(promise, epoch, 1)), sealed(&record(promise, epoch, 2))].concat();
    let torn =
        [sealed(&record(Promise::Moved, 3, 1)), [vec![0], counted(b"0123 {\"guest\":")].concat()].concat();
    vec![
        ("moved".to_owned(), file(Promise::Moved, 3)),
        ("committed-at-the-last-epoch".to_owned(), file(Promise::Committed, u64::MAX)),
        ("forced-here".to_owned(), [file(Promise::Committed, 1), file(Promise::Forced, 2)].concat()),
        ("came-back".to_owned(), [file(Promise::Moved, 1), file(Promise::Running, 2)].concat()),
        ("arriving".to_owned(), file(Promise::Arriving, 4)),
        ("torn".to_owned(), torn),
        ("empty".to_owned(), [vec![0], counted(&[]), vec![0], counted(&[])].concat()),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the seeds say is read: the slots here are as the engine writes them.
    #[test]
    fn the_seeds_are_journals() {
        for (name, input) in seeds() {
            let folder = tempfile::tempdir().expect("a folder");
            fill(folder.path(), &input);
            let journals = Journals::at(folder.path(), "fuzz");
            let later = journals.superseding(Uuid::nil(), 0).map(|record| record.epoch);
            let expected = match name.as_str() {
                "moved" | "torn" => Some(3),
                "committed-at-the-last-epoch" => Some(u64::MAX),
                "forced-here" | "came-back" => Some(2),
                _ => None,
            };
            assert_eq!(later, expected, "{name}");
            let gone = matches!(name.as_str(), "moved" | "torn" | "committed-at-the-last-epoch");
            assert_eq!(journals.handed_on(Uuid::nil()).is_some(), gone, "{name}");
        }
    }
}
