//! A short pass of every target: the corpus, and a moment of mutations. `tests/fuzz/run` goes on for longer.

use std::process::Command;

/// Seconds of mutations.
const MOMENT: &str = "2";

/// Nothing in the corpus or near it makes this target panic, hang or take too much memory.
fn nothing_is_found(target: &str) {
    let output = Command::new(env!("CARGO_BIN_EXE_fuzz")).args(["run", MOMENT, target]).output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    assert!(output.status.success() && said.contains("nothing found"), "{said}");
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
