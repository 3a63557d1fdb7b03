//! Compiles the freestanding kernel in `kernel/` into the ELF image the library embeds.
//!
//! The kernel is its own crate root, compiled by calling rustc directly: it needs flags that
//! Cargo can only give to a whole workspace (no libc, a linker script, no red zone), and the
//! host's own target suffices, so no further toolchain or target has to be installed. The user's
//! `RUSTFLAGS` are deliberately not passed on: the guest must run on any x86-64.

use std::env;
use std::path::Path;
use std::process::Command;

/// What makes the host's target freestanding. SSE2 stays on: all Rust runs in ring 3.
const CODEGEN: [&str; 7] = [
    "panic=abort",
    "opt-level=3",
    "codegen-units=1",
    "debuginfo=0",
    "strip=symbols",
    "no-redzone=yes",
    "relocation-model=static",
];

const LINK: [&str; 5] = ["-nostdlib", "-nostartfiles", "-static", "-no-pie", "-Wl,--build-id=none"];

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=kernel");
    println!("cargo:rerun-if-changed=src/telemetry.rs");

    let here = env::var("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR");
    let out = env::var("OUT_DIR").expect("cargo sets OUT_DIR");
    let rustc = env::var("RUSTC").expect("cargo sets RUSTC");
    let kernel = Path::new(&here).join("kernel");

    let mut command = Command::new(rustc);
    command.args(["--edition", "2024", "--crate-type", "bin", "--crate-name", "guest_kernel"]);
    command.args(CODEGEN.iter().flat_map(|option| ["-C", option]));
    command.args(LINK.iter().flat_map(|arg| ["-C".to_string(), format!("link-arg={arg}")]));
    command.arg("-C").arg(format!("link-arg=-Wl,-T,{}", kernel.join("link.ld").display()));
    command.args(["-C", "linker=gcc"]);
    command.arg("-o").arg(Path::new(&out).join("guest.elf"));
    command.arg(kernel.join("main.rs"));

    let status = command.status().expect("rustc starts");
    assert!(status.success(), "the guest kernel does not compile: {status}");
}
