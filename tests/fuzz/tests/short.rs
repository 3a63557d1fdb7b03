//! A short pass of every target: the corpus, and a moment of mutations. `tests/fuzz/run` goes on for longer.

use std::collections::BTreeMap;
use std::process::Command;

use fuzz::{TARGETS, driver};

/// Seconds of mutations.
const MOMENT: &str = "2";

/// Nothing in the corpus or near it makes this target panic, hang or take too much memory.
fn nothing_is_found(target: &str) {
    let output = Command::new(env!("CARGO_BIN_EXE_fuzz")).args(["run", MOMENT, target]).output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    assert!(output.status.success() && said.contains("nothing found"), "{said}");
}

/// After a change of a format old seeds would lead nowhere, and nobody would notice.
#[test]
fn the_corpus_has_the_seeds_of_today() {
    for target in &TARGETS {
        let corpus = driver::corpus(target).expect("the corpus can be read");
        let named = |(path, bytes): (std::path::PathBuf, _)| {
            let name = path.file_name().expect("a file").to_string_lossy().into_owned();
            name.strip_prefix("seed-").map(|name| (name.to_owned(), bytes))
        };
        let kept: BTreeMap<String, Vec<u8>> = corpus.into_iter().filter_map(named).collect();
        let made: BTreeMap<_, _> = (target.seeds)().into_iter().collect();
        assert!(kept == made, "{}: write its seeds anew by `cargo run -p fuzz -- seed`", target.name);
    }
}

#[test]
fn wire() {
    nothing_is_found("wire");
}

#[test]
fn arriving() {
    nothing_is_found("arriving");
}

#[test]
fn leaving() {
    nothing_is_found("leaving");
}

#[test]
fn journal() {
    nothing_is_found("journal");
}

#[test]
fn state() {
    nothing_is_found("state");
}

#[test]
fn control() {
    nothing_is_found("control");
}

#[test]
fn boot() {
    nothing_is_found("boot");
}

#[test]
fn virtio() {
    nothing_is_found("virtio");
}
