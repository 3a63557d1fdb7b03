//! Numbered records with checksums, each on the disk before the next is begun.
//!
//! A record is a line of [`LENGTH`] bytes: its number, text that follows from it, and a checksum. It is no divisor of a
//! sector, so half a record would show. [`PER_FILE`] of them make a file, so that directories change as well.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;
use std::thread;
use std::time::Duration;

use crate::random::{Sequence, hash};
use crate::says::Seconds;

const LENGTH: usize = 701;
const PER_FILE: u64 = 64;
/// Between two records: the disk is there for others, too.
const PAUSE: Duration = Duration::from_millis(25);

/// Goes on until it is killed, in a folder that has none yet.
pub(crate) fn write(folder: &Path) -> io::Result<()> {
    let mut seconds = Seconds::new("records");
    for file in 0.. {
        let mut out = OpenOptions::new().append(true).create_new(true).open(folder.join(name(file)))?;
        File::open(folder)?.sync_all()?;
        for number in file * PER_FILE + 1..=(file + 1) * PER_FILE {
            out.write_all(record(number).as_bytes())?;
            out.sync_all()?;
            seconds.tell(|| format!("{number} on the disk"));
            thread::sleep(PAUSE);
        }
    }
    Ok(())
}

/// Whether the records 1 to `told`, at least, are all there, whole, in order and once. Of what was being written at the
/// end there may be a part.
pub(crate) fn check(folder: &Path, told: u64) -> io::Result<()> {
    let mut found = 0;
    for file in 0..fs::read_dir(folder)?.count() as u64 {
        let bytes = fs::read(folder.join(name(file)))?;
        for line in bytes.chunks(LENGTH) {
            if line == record(found + 1).as_bytes() {
                found += 1;
            } else if line.len() == LENGTH || found < told {
                let line = String::from_utf8_lossy(&line[..line.len().min(40)]).into_owned();
                return Err(wrong(format!("in place of record {} there is {line:?}", found + 1)));
            }
        }
    }
    if found < told {
        return Err(wrong(format!("{told} records were told to be on the disk, {found} are")));
    }
    println!("{found} records, {told} of them told");
    Ok(())
}

fn wrong(words: String) -> io::Error {
    io::Error::other(words)
}

fn name(file: u64) -> String {
    format!("records-{file:05}")
}

fn record(number: u64) -> String {
    let mut sequence = Sequence::new(number);
    let words: Vec<u64> = (0..40).map(|_| sequence.next()).collect();
    let mut text = format!("record {number:08} {:016x}", hash(&words));
    words.iter().for_each(|word| text.push_str(&format!(" {word:016x}")));
    text.truncate(LENGTH - 1);
    text + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder_with(bytes: &[u8]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(name(0)), bytes).unwrap();
        folder
    }

    #[test]
    fn all_there_is_well_and_half_a_record_at_the_end_too() {
        let two = record(1) + &record(2);
        for more in [0, 1, LENGTH - 1] {
            let text = two.clone() + &record(3)[..more];
            check(folder_with(text.as_bytes()).path(), 2).unwrap();
        }
    }

    #[test]
    fn lost_torn_and_repeated_records_are_found() {
        let torn = record(1) + &record(2).replace(" 0", " 1");
        for (text, told) in [
            (record(1), 2),
            (record(2), 1),
            (record(1) + &record(1), 1),
            (torn, 1),
            (record(1) + &record(2)[..100], 2),
        ] {
            assert!(check(folder_with(text.as_bytes()).path(), told).is_err(), "{text}");
        }
        assert_eq!(record(7).len(), LENGTH);
    }
}
