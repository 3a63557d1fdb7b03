//! The rules of the house that a program can check (docs/architecture.md lists them all).
//!
//! Each test names its rule; a failure names the file, the line and what to do.

use std::fs;
use std::path::{Path, PathBuf};

/// Lines of a file that are not its tests. A room with more is two rooms.
const MAX_LINES: usize = 400;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace").to_path_buf()
}

/// Every file below `folder` with this ending, with its text.
fn files(folder: &str, ending: &str) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a folder of the workspace") {
            let path = entry.expect("an entry").path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if path.is_dir() && name != "target" && !name.starts_with('.') {
                folders.push(path);
            } else if name.ends_with(ending) {
                let text = fs::read_to_string(&path).expect("text");
                found.push((path, text));
            }
        }
    }
    assert!(!found.is_empty(), "no {ending} below {folder}: the test looks in the wrong place");
    found
}

fn rust() -> Vec<(PathBuf, String)> {
    ["guest", "migrate", "scheduling", "vmm", "tests"]
        .iter()
        .flat_map(|folder| files(folder, ".rs"))
        .collect()
}

/// The part of a file before its tests.
fn without_tests(text: &str) -> &str {
    text.split("#[cfg(test)]\nmod ").next().unwrap_or(text)
}

/// Fails with every offence at once.
fn none(offences: Vec<String>, rule: &str) {
    assert!(offences.is_empty(), "{rule}\n  {}", offences.join("\n  "));
}

fn lines_with<'a>(path: &'a Path, text: &'a str, word: &'a str) -> impl Iterator<Item = String> + 'a {
    text.lines()
        .enumerate()
        .filter(move |(_, line)| line.contains(word))
        .map(move |(number, line)| format!("{}:{}: {}", path.display(), number + 1, line.trim()))
}

#[test]
fn the_engine_knows_no_kvm_and_no_unsafe() {
    let manifest = fs::read_to_string(root().join("migrate/Cargo.toml")).unwrap();
    for word in ["kvm", "vm-memory", "libc", "vmm.", "guest."] {
        assert!(!manifest.contains(word), "migrate/Cargo.toml depends on {word}: the engine must not");
    }
    let front = fs::read_to_string(root().join("migrate/src/lib.rs")).unwrap();
    assert!(front.contains("#![forbid(unsafe_code)]"), "migrate/src/lib.rs must forbid unsafe code");
}

#[test]
fn the_machine_knows_nothing_of_migration() {
    let front = ["kvm.rs", "state.rs", "config.rs"].map(|file| {
        let path = root().join("vmm/src").join(file);
        let text = fs::read_to_string(&path).expect("a room's front door");
        (path, text)
    });
    let offences = ["machine", "memory", "vcpu", "devices", "boot", "kvm", "state"]
        .iter()
        .flat_map(|room| files(&format!("vmm/src/{room}"), ".rs"))
        .chain(front)
        .flat_map(|(path, text)| {
            lines_with(&path, &text, "migrate::")
                .chain(lines_with(&path, &text, "crate::migration"))
                .collect::<Vec<_>>()
        })
        .collect();
    none(offences, "rooms below the adapter must not use the engine:");
}

#[test]
fn every_file_says_what_it_is_first() {
    let offences = rust()
        .into_iter()
        .filter(|(_, text)| !text.starts_with("//!"))
        .map(|(path, _)| path.display().to_string())
        .collect();
    none(offences, "a file opens with `//!` and what it is:");
}

#[test]
fn a_file_is_one_room() {
    let offences = rust()
        .into_iter()
        .map(|(path, text)| (path, without_tests(&text).lines().count()))
        .filter(|(_, lines)| *lines > MAX_LINES)
        .map(|(path, lines)| format!("{}: {lines} lines", path.display()))
        .collect();
    none(offences, "a file has at most 400 lines without its tests:");
}

#[test]
fn unsafe_code_says_why_at_the_top_of_its_file() {
    let offences = rust()
        .into_iter()
        .filter(|(path, _)| !path.starts_with(root().join("guest/kernel")) && !path.ends_with("tidy.rs"))
        .filter(|(_, text)| {
            let words: String = text.split_whitespace().collect();
            text.contains("unsafe {") && !words.contains("expect(unsafe_code,reason=")
        })
        .map(|(path, _)| path.display().to_string())
        .collect();
    none(offences, "unsafe code stands in files that open with `expect(unsafe_code, reason = …)`:");
}

#[test]
fn nothing_is_left_half_done() {
    let words = [
        "to".to_owned() + "do!(",
        "unimple".to_owned() + "mented!(",
        "FIX".to_owned() + "ME",
        "dbg".to_owned() + "!(",
    ];
    let offences = rust()
        .iter()
        .flat_map(|(path, text)| {
            words.iter().flat_map(|word| lines_with(path, text, word)).collect::<Vec<_>>()
        })
        .collect();
    none(offences, "half-done work is left:");
}

#[test]
fn links_between_documents_lead_somewhere() {
    let mut documents = files("docs", ".md");
    documents.push((root().join("README.md"), fs::read_to_string(root().join("README.md")).unwrap()));
    let mut offences = Vec::new();
    for (path, text) in &documents {
        for target in text.split("](").skip(1).filter_map(|rest| rest.split([')', '#']).next()) {
            let outside = target.is_empty() || target.contains("://");
            if !outside && !path.parent().expect("a folder").join(target).exists() {
                offences.push(format!("{}: {target}", path.display()));
            }
        }
    }
    none(offences, "links that lead nowhere:");
}
