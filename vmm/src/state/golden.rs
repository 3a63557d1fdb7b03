//! Golden files: saved state as it was written once, so that no change of the format goes unnoticed and what was written
//! stays readable (`docs/state.md`, Golden files).
//!
//! `vmm/tests/golden` has a stream of one section for each kind, `NAME-VERSION.bin`: what today's program writes. Others of
//! the kind, `NAME-*.bin`, are of programs before it: they need only be readable.
//! With `VMM_GOLDEN=write` the tests write the files anew instead of comparing.

use std::fs;
use std::path::{Path, PathBuf};

use super::{CHECKSUM_AT, FIELD_BYTES, HEADER_BYTES, Kind, SECTION_BYTES, SectionName, StreamWriter};

/// The golden file of a kind as it is written now.
pub(crate) fn path(kind: &Kind) -> PathBuf {
    folder().join(format!("{}-{}.bin", kind.name, kind.version))
}

/// All golden files.
pub(crate) fn all() -> Vec<(PathBuf, Vec<u8>)> {
    let entries =
        fs::read_dir(folder()).expect("the golden files' folder").map(|entry| entry.unwrap().path());
    let mut paths: Vec<_> = entries.filter(|path| path.extension().is_some_and(|end| end == "bin")).collect();
    paths.sort();
    paths.into_iter().map(|path| (path.clone(), fs::read(path).unwrap())).collect()
}

/// Those of one kind, of whatever age.
pub(crate) fn of(kind: &Kind) -> Vec<(PathBuf, Vec<u8>)> {
    let name = SectionName::new(kind.name, 0).name;
    all()
        .into_iter()
        .filter(|(_, bytes)| bytes.get(HEADER_BYTES..).is_some_and(|b| b.starts_with(&name)))
        .collect()
}

/// Today's program writes this kind as its golden file is, and `again`, which reads a stream and writes what it has read,
/// gives the same; older ones it can read.
pub(crate) fn holds(kind: &Kind, written: &[u8], again: impl Fn(&[u8]) -> Vec<u8>) {
    record(kind, written);
    let golden =
        fs::read(path(kind)).unwrap_or_else(|error| panic!("{error}: {}", broken(kind, "is missing")));
    assert!(golden == written, "{}", broken(kind, "is not what is written now"));
    for (file, bytes) in of(kind) {
        let read = again(&bytes);
        assert!(
            file != path(kind) || read == bytes,
            "{}",
            broken(kind, "is not written again as it was read")
        );
    }
}

/// Writes the golden file of a kind anew, if that is asked for.
pub(crate) fn record(kind: &Kind, stream: &[u8]) {
    if asked_to_write() {
        // Whole or not at all: other tests read it at the same time.
        let new = path(kind).with_extension("new");
        fs::write(&new, stream).and_then(|()| fs::rename(&new, path(kind))).unwrap();
    }
}

/// Whether the files are written anew: then not all need be there yet.
pub(crate) fn asked_to_write() -> bool {
    std::env::var_os("VMM_GOLDEN").is_some_and(|word| word == "write")
}

/// For state that KVM gives, and whose values are another each time: a `stream` of now has the fields of the golden file,
/// with their flags and sizes, in its order. Of `host`'s tags the size is up to the host, and if they may be skipped
/// also whether they are there.
pub(crate) fn has_form(kind: &Kind, stream: &[u8], host: &[u16]) {
    let golden =
        fs::read(path(kind)).unwrap_or_else(|error| panic!("{error}: {}", broken(kind, "is missing")));
    assert_eq!(
        form(stream, host),
        form(&golden, host),
        "{}",
        broken(kind, "has another form than what is written now")
    );
}

/// A stream of nothing but this section of `stream`, which was written here.
pub(crate) fn only(kind: &Kind, stream: &[u8]) -> Vec<u8> {
    let mut rest = &stream[HEADER_BYTES..];
    while !rest.starts_with(&SectionName::new(kind.name, 0).name) {
        rest = &rest[section_bytes(rest)..];
    }
    let mut writer = StreamWriter::new(Vec::new());
    writer.append(1, &rest[..section_bytes(rest)]);
    writer.finish()
}

fn section_bytes(section: &[u8]) -> usize {
    SECTION_BYTES + word(section, CHECKSUM_AT - 4) as usize
}

/// Tag, flags and size of the fields of the one section of a stream.
fn form(stream: &[u8], host: &[u16]) -> Vec<(u16, u16, Option<u32>)> {
    let mut rest = &stream[HEADER_BYTES + SECTION_BYTES..];
    let mut fields = Vec::new();
    while !rest.is_empty() {
        let (tag, flags, bytes) = (word(rest, 0) as u16, (word(rest, 0) >> 16) as u16, word(rest, 4));
        let free = host.contains(&tag);
        fields.extend((!free || flags != 0).then_some((tag, flags, (!free).then_some(bytes))));
        rest = &rest[FIELD_BYTES + bytes as usize..];
    }
    fields
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn folder() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden"))
}

fn broken(kind: &Kind, how: &str) -> String {
    let (path, name) = (path(kind), kind.name);
    format!(
        "golden file {} {how}: the format of section \"{name}\" has changed. If that is meant, docs/state.md says under \
         \"Golden files\" what else must change, and how to write them anew",
        path.display()
    )
}
