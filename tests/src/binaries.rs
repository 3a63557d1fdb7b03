//! Where the programs under test are.
//!
//! Cargo builds a package's programs for that package's own integration tests only. So they are built here, once for a
//! test binary, with the profile of the test itself; when they are up to date already, that takes a fraction of a second.
//! `VMM_TEST_BINARIES` names a folder to take them from instead.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

/// The program of this name (`vmm`, `migrate`), as built from this workspace.
///
/// # Panics
/// When it cannot be built.
pub fn binary(name: &str) -> PathBuf {
    if let Some(folder) = std::env::var_os("VMM_TEST_BINARIES") {
        return Path::new(&folder).join(name);
    }
    static BUILT: OnceLock<HashMap<String, PathBuf>> = OnceLock::new();
    BUILT
        .get_or_init(build)
        .get(name)
        .unwrap_or_else(|| panic!("no program named {name} in this workspace"))
        .clone()
}

fn build() -> HashMap<String, PathBuf> {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| env!("CARGO").into());
    let mut command = Command::new(cargo);
    // Any test beside them will do. Without one Cargo leaves out what only tests need, and with it the features that this asks of
    // others: so it would build all libraries a second time, with fewer of them.
    command.current_dir(workspace).args([
        "build",
        "--workspace",
        "--bins",
        "--test=tidy",
        "--message-format=json-render-diagnostics",
    ]);
    command.args(["--profile", &profile()]).stderr(Stdio::inherit());
    let built = command.output().expect("cargo starts");
    assert!(built.status.success(), "the programs under test do not build");
    String::from_utf8_lossy(&built.stdout).lines().filter_map(executable).collect()
}

/// The folder of the profile with which this program was built: a test lies in `…/<profile>/deps`, a program above that.
pub(crate) fn built_in() -> PathBuf {
    let here = std::env::current_exe().expect("the path of this program");
    let folder = here.parent().expect("a folder");
    if folder.ends_with("deps") { folder.parent().expect("a folder").to_owned() } else { folder.to_owned() }
}

fn profile() -> String {
    match built_in().file_name().expect("a folder named after the profile").to_string_lossy().as_ref() {
        "debug" => "dev".to_owned(),
        other => other.to_owned(),
    }
}

/// Name and path of the program that a line of Cargo's messages tells of, if it does.
fn executable(line: &str) -> Option<(String, PathBuf)> {
    let message: serde_json::Value = serde_json::from_str(line).ok()?;
    let path = message["executable"].as_str()?;
    Some((message["target"]["name"].as_str()?.to_owned(), path.into()))
}
