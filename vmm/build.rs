//! Tells the tests what this machine lets them do, so that those that need KVM, userfaultfd, root or a network of their own are counted as ignored, with
//! the reason, instead of passing without having proven anything. The program itself does not depend on it.

use std::fs::OpenOptions;
use std::os::unix::fs::MetadataExt;
use std::process::Command;

fn main() {
    tell("/dev/kvm", "no_kvm");
    tell("/dev/userfaultfd", "no_userfaultfd");
    println!("cargo::rustc-check-cfg=cfg(no_root)");
    if !is_root() {
        println!("cargo::rustc-cfg=no_root");
        println!("cargo::warning=this is not root: the tests that become another user are IGNORED");
    }
    println!("cargo::rustc-check-cfg=cfg(no_netns)");
    if let Err(why) = try_network() {
        println!("cargo::rustc-cfg=no_netns");
        println!(
            "cargo::warning=no network of their own for tests ({why}): the tests that need one are IGNORED"
        );
    }
}

/// Whether the build, and so as a rule its tests, runs as root.
fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0)
}

/// Makes a network namespace and lets go of it, as the tests do.
fn try_network() -> Result<(), String> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/net/tun")
        .map_err(|error| format!("/dev/net/tun: {error}"))?;
    let name = format!("vmm-build-{}", std::process::id());
    for words in [["netns", "add"], ["netns", "delete"]] {
        let output = Command::new("ip").args(words).arg(&name).output();
        let output = output.map_err(|error| format!("ip of iproute2: {error}"))?;
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).trim().replace('\n', " "));
        }
    }
    Ok(())
}

/// Sets `cfg` where `device` cannot be used.
fn tell(device: &str, cfg: &str) {
    println!("cargo::rustc-check-cfg=cfg({cfg})");
    println!("cargo::rerun-if-changed={device}");
    if let Err(error) = OpenOptions::new().read(true).write(true).open(device) {
        println!("cargo::rustc-cfg={cfg}");
        println!("cargo::warning={device} cannot be used ({error}): the tests that need it are IGNORED");
    }
}
